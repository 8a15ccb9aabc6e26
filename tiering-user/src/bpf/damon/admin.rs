//! DAMON's files in sysfs (Documentation/admin-guide/mm/damon/usage.rst).
//!
//! In: the VMs to watch. Out: a kdamond that does, and the number of its thread. Nothing is written while there is
//! any kdamond that is not ours: to set their number deletes all there are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::Span;

/// Where they are on a host.
pub const ROOT: &str = "/sys/kernel/mm/damon/admin";
/// The set of operations that watches fixed ranges of a process: what the agent tells DAMON to watch, not all that the
/// process maps.
const OPERATIONS: &str = "fvaddr";
const NUMBER: &str = "kdamonds/nr_kdamonds";
const CONTEXT: &str = "kdamonds/0/contexts/0";

/// Whether DAMON may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    Free,
    /// A kdamond is there that is not ours.
    Taken,
    /// Why not.
    Absent(&'static str),
}

/// A process, and the addresses in it that are to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub pid: i32,
    pub ranges: Vec<Span>,
}

/// How all are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Ascending numbers of targets in the records are places in this list.
    pub targets: Vec<Watched>,
    /// Time between two looks at a region, and looks until the count of accesses is told.
    pub sample_every: Duration,
    pub samples: u32,
    /// Regions of all targets together.
    pub least_regions: u32,
    pub most_regions: u32,
}

/// The files.
#[derive(Clone, Debug)]
pub struct Admin {
    root: PathBuf,
}

impl Admin {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whether DAMON may be used now. Where nobody uses it, a kdamond is set up for a moment to see what the kernel
    /// offers.
    pub fn availability(&self) -> Availability {
        let Some(kdamonds) = self.read(NUMBER).ok().and_then(|text| text.parse::<u32>().ok()) else {
            return Availability::Absent("this kernel is built without CONFIG_DAMON_SYSFS");
        };
        match self.operations(kdamonds) {
            Some(sets) if !sets.lines().any(|set| set == OPERATIONS) => Availability::Absent(
                "this kernel is built without CONFIG_DAMON_VADDR, and what DAMON finds in physical memory (paddr) belongs to \
                 several VMs at once",
            ),
            _ if kdamonds == 0 => Availability::Free,
            _ => Availability::Taken,
        }
    }

    /// The sets of operations that this kernel has, one a line (Linux 5.19 and later). None where that cannot be told:
    /// what somebody else has set up is read, never changed.
    fn operations(&self, kdamonds: u32) -> Option<String> {
        let read = || self.read(&format!("{CONTEXT}/avail_operations")).ok();
        if kdamonds > 0 {
            return read();
        }
        self.write(NUMBER, "1").ok()?;
        let sets = self.write("kdamonds/0/contexts/nr_contexts", "1").ok().and_then(|()| read());
        self.write(NUMBER, "0").ok()?;
        sets
    }

    /// The thread of the one kdamond there is; none where it does not run, or there is not exactly one.
    pub fn kdamond(&self) -> Option<u32> {
        let is_on = self.read(NUMBER).ok()? == "1" && self.read("kdamonds/0/state").ok()? == "on";
        if is_on { self.read("kdamonds/0/pid").ok()?.parse().ok() } else { None }
    }

    /// The processes that the one kdamond there is was told to watch; none where there is not exactly one.
    pub fn watched(&self) -> Vec<i32> {
        if self.read(NUMBER).ok().as_deref() != Some("1") {
            return Vec::new();
        }
        let count =
            self.read(&format!("{CONTEXT}/targets/nr_targets")).ok().and_then(|text| text.parse().ok());
        let pid = |target| self.read(&format!("{CONTEXT}/targets/{target}/pid_target")).ok()?.parse().ok();
        (0..count.unwrap_or(0u32)).filter_map(pid).collect()
    }

    /// Sets a kdamond up and starts it. Returns the number of its thread.
    ///
    /// # Errors
    /// `EBUSY` where somebody else uses DAMON by other means than sysfs; what the kernel does not take, with the file.
    /// Nothing of ours is left then.
    pub fn start(&self, setup: &Setup) -> io::Result<u32> {
        if self.availability() != Availability::Free {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.write(NUMBER, "1")?;
        let started = self.fill(setup).and_then(|()| {
            self.write("kdamonds/0/state", "on")?;
            let pid = self.read("kdamonds/0/pid")?;
            pid.parse().map_err(|_| io::Error::other(format!("kdamonds/0/pid is `{pid}`")))
        });
        if started.is_err() {
            // The first error is the one to tell.
            self.stop().ok();
        }
        started
    }

    /// Ends the one kdamond there is and deletes it. For ours only.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn stop(&self) -> io::Result<()> {
        // One whose processes have all ended is off already, which the kernel calls an error.
        self.write("kdamonds/0/state", "off").ok();
        self.write(NUMBER, "0")
    }

    fn fill(&self, setup: &Setup) -> io::Result<()> {
        self.write("kdamonds/0/contexts/nr_contexts", "1")?;
        let write = |file: &str, value: u128| self.write(&format!("{CONTEXT}/{file}"), &value.to_string());
        self.write(&format!("{CONTEXT}/operations"), OPERATIONS)?;
        let intervals = "monitoring_attrs/intervals";
        write(&format!("{intervals}/sample_us"), setup.sample_every.as_micros())?;
        write(&format!("{intervals}/aggr_us"), (setup.sample_every * setup.samples).as_micros())?;
        write("monitoring_attrs/nr_regions/min", setup.least_regions.into())?;
        write("monitoring_attrs/nr_regions/max", setup.most_regions.into())?;
        write("targets/nr_targets", setup.targets.len() as u128)?;
        for (number, target) in setup.targets.iter().enumerate() {
            write(&format!("targets/{number}/pid_target"), target.pid.cast_unsigned().into())?;
            let regions = format!("targets/{number}/regions");
            write(&format!("{regions}/nr_regions"), target.ranges.len() as u128)?;
            for (region, range) in target.ranges.iter().enumerate() {
                write(&format!("{regions}/{region}/start"), range.start.into())?;
                write(&format!("{regions}/{region}/end"), (range.start + range.bytes).into())?;
            }
        }
        Ok(())
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new(&self.root).join(file)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let path = self.path(file);
        let text = fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
        Ok(text.trim().to_owned())
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let path = self.path(file);
        // Not created where the kernel has it not.
        let mut open = fs::OpenOptions::new();
        let written = open.write(true).truncate(true).open(&path);
        let written = written.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|error| named(&path, &error))
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Files as the kernel has them once all numbers are written: unlike the kernel's they are all there from the
    /// start.
    pub(in super::super) fn files(kdamonds: &str) -> (tempfile::TempDir, Admin) {
        let folder = tempfile::tempdir().unwrap();
        let mut files = vec![(format!("{CONTEXT}/avail_operations"), "vaddr\nfvaddr\npaddr")];
        files.push((NUMBER.to_owned(), kdamonds));
        for (file, text) in [("state", "off"), ("pid", "4711"), ("contexts/nr_contexts", "0")] {
            files.push((format!("kdamonds/0/{file}"), text));
        }
        for file in ["operations", "targets/nr_targets"] {
            files.push((format!("{CONTEXT}/{file}"), "0"));
        }
        for file in ["intervals/sample_us", "intervals/aggr_us", "nr_regions/min", "nr_regions/max"] {
            files.push((format!("{CONTEXT}/monitoring_attrs/{file}"), "0"));
        }
        for target in 0..2 {
            for file in ["pid_target", "regions/nr_regions", "regions/0/start", "regions/0/end"] {
                files.push((format!("{CONTEXT}/targets/{target}/{file}"), "0"));
            }
        }
        for (file, text) in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let admin = Admin::new(folder.path().to_owned());
        (folder, admin)
    }

    pub(in super::super) fn setup() -> Setup {
        let watched = |pid, start| Watched { pid, ranges: vec![Span { start, bytes: 0x1000 }] };
        Setup {
            targets: vec![watched(10, 0x7000_0000), watched(20, 0x8000_0000)],
            sample_every: Duration::from_millis(50),
            samples: 20,
            least_regions: 10,
            most_regions: 1000,
        }
    }

    #[test]
    fn what_is_free_is_set_up_started_and_given_back() {
        let (_folder, admin) = files("0");
        assert_eq!(admin.availability(), Availability::Free);
        assert_eq!(admin.watched(), [0; 0]);
        assert_eq!(admin.start(&setup()).unwrap(), 4711);
        let read = |file: &str| admin.read(&format!("kdamonds/0/{file}")).unwrap();
        assert_eq!(read("state"), "on");
        assert_eq!(read("contexts/0/operations"), "fvaddr");
        assert_eq!(read("contexts/0/monitoring_attrs/intervals/aggr_us"), "1000000");
        assert_eq!(read("contexts/0/targets/1/regions/0/end"), (0x8000_1000u64).to_string());
        assert_eq!((admin.watched(), admin.kdamond()), (vec![10, 20], Some(4711)));
        admin.stop().unwrap();
        assert_eq!(admin.kdamond(), None);
        assert_eq!((read("state").as_str(), admin.availability()), ("off", Availability::Free));
    }

    #[test]
    fn what_somebody_else_has_is_left_alone() {
        let (folder, admin) = files("1");
        assert_eq!(admin.availability(), Availability::Taken);
        let before = fs::read_to_string(folder.path().join("kdamonds/0/contexts/0/operations")).unwrap();
        let error = admin.start(&setup()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        let after = fs::read_to_string(folder.path().join("kdamonds/0/contexts/0/operations")).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn a_kernel_without_it_and_one_that_takes_no_fixed_ranges_are_told() {
        let absent = Admin::new(PathBuf::from("/nonexistent"));
        assert!(matches!(absent.availability(), Availability::Absent(_)));
        let (folder, admin) = files("0");
        fs::remove_file(folder.path().join("kdamonds/0/contexts/0/operations")).unwrap();
        let error = admin.start(&setup()).unwrap_err().to_string();
        assert!(error.contains("contexts/0/operations"), "{error}");
        assert_eq!(admin.availability(), Availability::Free, "nothing of ours is left");
    }

    #[test]
    fn a_kernel_that_watches_physical_memory_only_is_told_by_its_missing_option_whoever_uses_it() {
        for (kdamonds, left) in [("0", "0"), ("1", "1")] {
            let (folder, admin) = files(kdamonds);
            fs::write(folder.path().join(CONTEXT).join("avail_operations"), "paddr\n").unwrap();
            let Availability::Absent(why) = admin.availability() else { panic!("it cannot be used") };
            assert!(why.contains("CONFIG_DAMON_VADDR"), "{why}");
            assert_eq!(admin.read(NUMBER).unwrap(), left, "as it was");
        }
    }
}
