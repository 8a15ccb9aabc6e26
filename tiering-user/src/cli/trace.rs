//! `tiering record` and `tiering replay`.
//!
//! In: an agent, and a file for what it tells; or such a file, and rules. Out: the file, and a line that says what is
//! in it; or what would have become of each VM, as a table.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, INTERNAL, IO, USAGE};
use super::table::Table;
use super::units::size;
use crate::config::Config;
use crate::profile::COMPONENTS;
use crate::replay::{Outcome, Replay, Told, TooLarge};
use crate::telemetry::client::Client;
use crate::trace::{Event, Reader, TraceError};

/// Records until `duration` is over, a signal comes or the agent ends. A file that is there already is left as it is.
pub(super) async fn record(
    client: &Client,
    vms: &[String],
    path: &Path,
    duration: Option<Duration>,
) -> Result<(), Failure> {
    if path.try_exists().unwrap_or(false) {
        let text = format!("{} is there already: remove it, or record to another file", path.display());
        return Err(Failure::new(IO, text));
    }
    let catch = |kind| signal(kind).map_err(|error| Failure::new(INTERNAL, format!("no signals ({error})")));
    let (mut interrupted, mut terminated) =
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    let over = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    // Made when the agent says yes. Which pages a VM uses when is nobody else's business.
    let mut file: Option<File> = None;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let take = |bytes: &[u8]| {
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(options.open(path)?),
        };
        file.write_all(bytes)
    };
    let recorded = tokio::select! {
        recorded = client.record(vms, take) => recorded,
        () = over => Ok(Ok(())),
        _ = interrupted.recv() => Ok(Ok(())),
        _ = terminated.recv() => Ok(Ok(())),
    };
    let failure = match recorded {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Failure::new(IO, format!("{}: {error}", path.display()))),
        Err(error) => Some(error.into()),
    };
    let summary = file.is_some().then(|| summary(path)).transpose()?;
    match (failure, summary) {
        (None, summary) => {
            println!("{}", summary.as_deref().unwrap_or("nothing was recorded"));
            Ok(())
        }
        (Some(failure), None) => Err(failure),
        (Some(Failure { code, message }), Some(summary)) => {
            Err(Failure::new(code, format!("{message}; what was recorded can be replayed: {summary}")))
        }
    }
}

/// What is in a trace, in a line.
fn summary(path: &Path) -> Result<String, Failure> {
    let (mut vms, mut accesses, mut lost) = (0u64, 0u64, 0u64);
    let mut reader = open(path)?;
    let read = reader.for_each(|timed| match &timed.event {
        Event::Appeared(_) => vms += 1,
        Event::Accessed { .. } => accesses += 1,
        Event::Lost(more) => lost += more,
        _ => {}
    });
    read.map_err(|error| unreadable(path, &error))?;
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    Ok(format!("{}: {accesses} accesses of {vms} VMs in {}, {lost} lost", path.display(), size(bytes)))
}

fn open(path: &Path) -> Result<Reader<BufReader<File>>, Failure> {
    let file = File::open(path).map_err(|error| Failure::new(IO, format!("{}: {error}", path.display())))?;
    Reader::new(BufReader::new(file)).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &TraceError) -> Failure {
    let code = if matches!(error, TraceError::Io(_)) { IO } else { USAGE };
    Failure::new(code, format!("{}: {error}", path.display()))
}

/// What would have become of the VMs of a trace.
#[derive(Debug, Serialize)]
pub(super) struct Replayed {
    #[serde(rename = "machines")]
    vms: Vec<Outcome>,
    /// Accesses that were not recorded.
    lost: u64,
    /// The trace ends within a block.
    torn: bool,
}

/// Replays a trace under a configuration; writes decisions, and profiles as of the end of each epoch, a line each, to
/// files if there are some for them.
pub(super) fn replay(
    path: &Path,
    config: &Config,
    decisions: Option<&Path>,
    epochs: Option<&Path>,
) -> Result<Replayed, Failure> {
    let mut armed = BTreeSet::new();
    let listed = open(path)?.for_each(|timed| {
        if let Event::Armed(vm) = timed.event {
            armed.insert(vm);
        }
    });
    listed.map_err(|error| unreadable(path, &error))?;
    let failed = |to: &Path, error: &dyn fmt::Display| Failure::new(IO, format!("{}: {error}", to.display()));
    let mut lines = match decisions {
        Some(to) => Some((to, BufWriter::new(File::create(to).map_err(|error| failed(to, &error))?))),
        None => None,
    };
    let mut rows = match epochs {
        Some(to) => Some((to, csv::Writer::from_path(to).map_err(|error| failed(to, &error))?)),
        None => None,
    };
    let mut reader = open(path)?;
    let mut replay = Replay::new(config, armed);
    let (mut written, mut listed, mut fits) = (Ok(()), Ok(()), Ok::<(), TooLarge>(()));
    if let Some((_, rows)) = &mut rows {
        listed = rows.write_record(["machine", "second"].into_iter().chain(COMPONENTS));
    }
    let mut tell = |told: Told<'_>| match told {
        Told::Decision(decision) => {
            if let (Some((_, lines)), Ok(())) = (&mut lines, &written) {
                written = writeln!(lines, "{decision}");
            }
        }
        Told::Epoch { second, vm, profile } => {
            if let (Some((_, rows)), Ok(()), Some(vector)) = (&mut rows, &listed, profile.vector()) {
                let components = vector.iter().map(|component| format!("{component:.4}"));
                let row = [vm.to_owned(), second.to_string()].into_iter().chain(components);
                listed = rows.write_record(row);
            }
        }
    };
    let read = reader.for_each(|timed| {
        if fits.is_ok() {
            fits = replay.take(timed, &mut tell);
        }
    });
    read.map_err(|error| unreadable(path, &error))?;
    fits.map_err(|error| Failure::new(USAGE, format!("{}: {error}", path.display())))?;
    let lost = replay.lost;
    let vms = replay.end(&mut tell);
    if let Some((to, lines)) = &mut lines {
        written.and_then(|()| lines.flush()).map_err(|error| failed(to, &error))?;
    }
    if let Some((to, rows)) = &mut rows {
        listed.and_then(|()| Ok(rows.flush()?)).map_err(|error| failed(to, &error))?;
    }
    Ok(Replayed { lost, torn: reader.is_torn(), vms })
}

/// One line a VM.
pub(super) fn table(replayed: &Replayed) -> String {
    let mut table = Table::new([
        "MACHINE",
        ">ACCESSES",
        ">PAGES",
        ">DEMOTED",
        ">IN MEMORY",
        ">CAME BACK",
        ">IF LRU",
        ">AT BEST",
        ">GAP CLOSED",
    ]);
    for vm in &replayed.vms {
        table.row([
            vm.vm.clone(),
            vm.accesses.to_string(),
            vm.accessed_pages.to_string(),
            size(vm.demoted_bytes),
            size(vm.mean_bytes),
            vm.came_back.to_string(),
            vm.came_back_lru.to_string(),
            vm.came_back_best.to_string(),
            vm.gap_closed.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
        ]);
    }
    let mut text = table.to_string();
    if replayed.lost > 0 {
        text += &format!("{} accesses were not recorded: the reader was too slow\n", replayed.lost);
    }
    if replayed.torn {
        text += "the trace ends within a block: what recorded it was ended by force, or the disk was full\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use twox_hash::XxHash3_64;

    use super::*;
    use crate::sys::Monotonic;
    use crate::trace::{Appeared, Block, MAGIC};
    use crate::track::VmId;

    fn trace(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("trace");
        let mut block = Block::default();
        let vm = VmId(1);
        let appeared = Appeared { vm, name: "web-1".to_owned(), pages: 1024, priority: 50, node_tiers: 1 };
        block.push(Monotonic(0), &Event::Appeared(appeared));
        for second in 0..1000u64 {
            // All of it in the first second and every five minutes; a few pages all the time.
            let pages = if second % 300 == 0 { 0..1024 } else { 0..16 };
            for page in pages {
                let event = Event::Accessed { vm, page, write: false, weight_log2: 0 };
                block.push(Monotonic(second * 1_000_000_000), &event);
            }
            if second % 10 == 9 {
                block.push(Monotonic(second * 1_000_000_000), &Event::Used { vm, usage: None });
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(block.take());
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_trace_is_replayed_to_the_same_lines_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = trace(folder.path());
        let mut config = Config::default();
        config.policy.demote_after = "60s".parse().unwrap();
        let epochs = folder.path().join("epochs");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let replayed = replay(&path, &config, Some(&one), Some(&epochs)).unwrap();
        replay(&path, &config, Some(&two), None).unwrap();
        let lines = std::fs::read_to_string(&one).unwrap();
        assert_eq!(lines, std::fs::read_to_string(&two).unwrap());
        assert!(lines.lines().count() > 3, "{lines}");
        let epochs = std::fs::read_to_string(&epochs).unwrap();
        assert!(epochs.starts_with("machine,second,accesses,writes,"), "{epochs}");
        assert!(epochs.contains("\nweb-1,10,") && epochs.contains("\nweb-1,1000,"), "{epochs}");
        assert_eq!(epochs.lines().count(), 101, "a head, and one every ten seconds");
        let table = table(&replayed);
        assert!(table.lines().nth(1).unwrap().starts_with("web-1"), "{table}");
        assert!(replayed.vms[0].came_back_without_read > 0, "{table}");
    }

    /// Redis and memcached, recorded elsewhere for a minute (docs/replay.md): what is decided about them, and what
    /// their profiles say, is the same on any host. Where either is changed on purpose, so are these numbers.
    #[test]
    fn a_trace_of_another_host_is_replayed_to_the_same_bytes_here() {
        let trace = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/redis-memcached.trace");
        let folder = tempfile::tempdir().unwrap();
        let [decisions, epochs] = ["decisions", "epochs"].map(|name| folder.path().join(name));
        let mut config = Config::default();
        config.policy.demote_after = "5s".parse().unwrap();
        let replayed = replay(&trace, &config, Some(&decisions), Some(&epochs)).unwrap();
        let outcomes: Vec<_> =
            replayed.vms.iter().map(|vm| (vm.vm.as_str(), vm.accesses, vm.came_back_without_read)).collect();
        assert_eq!(outcomes, [("tt-redis-8-0-2", 13_724, 1165), ("tt-memcached-8-0-2", 11_308, 637)]);
        let hash = |path| XxHash3_64::oneshot(&std::fs::read(path).unwrap());
        assert_eq!(
            (hash(decisions), hash(epochs)),
            (15_627_454_883_359_443_960, 8_334_013_842_078_771_481),
            "decisions, and profiles"
        );
    }

    #[test]
    fn what_cannot_be_replayed_is_said_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none");
        let failure = replay(&none, &Config::default(), None, None).unwrap_err();
        assert_eq!(failure.code, IO);
        std::fs::write(&none, "not a trace").unwrap();
        let failure = replay(&none, &Config::default(), None, None).unwrap_err();
        assert!(failure.message.contains("none: this is not a trace"), "{failure}");
        assert_eq!(failure.code, USAGE);
    }
}
