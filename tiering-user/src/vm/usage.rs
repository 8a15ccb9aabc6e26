//! What a process has used of the host so far, and what it holds. In: `/proc/PID/stat`, `io` and `status`. Out:
//! [`Usage`].

use std::path::Path;
use std::time::Duration;

use procfs::process::Process;
use procfs::{ProcResult, ticks_per_second};

use super::ProcessKey;
use super::process::Proc;

/// Of one process, with all its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far.
    pub cpu: Duration,
    /// Read from and written to disks so far.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Resident memory, by kind.
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
    pub shared_bytes: u64,
}

/// None where the process has ended, or does not tell.
#[must_use]
pub fn usage(proc_root: &Path, key: ProcessKey) -> Option<Usage> {
    Proc::open_key(proc_root, key).and_then(|process| process.read("stat", read)).ok()
}

fn read(process: &Process) -> ProcResult<Usage> {
    let (stat, io, status) = (process.stat()?, process.io()?, process.status()?);
    let kib = |value: Option<u64>| value.unwrap_or(0).saturating_mul(1024);
    Ok(Usage {
        cpu: Duration::from_secs_f64((stat.utime + stat.stime) as f64 / ticks_per_second() as f64),
        read_bytes: io.read_bytes,
        written_bytes: io.write_bytes,
        anonymous_bytes: kib(status.rssanon),
        file_bytes: kib(status.rssfile),
        shared_bytes: kib(status.rssshmem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_and_holds_memory_shows_it() {
        let own = std::process::id().cast_signed();
        let own = Proc::open(Path::new("/proc"), own).and_then(|process| process.key()).unwrap();
        let before = usage(Path::new("/proc"), own).unwrap();
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(began.elapsed());
        }
        let after = usage(Path::new("/proc"), own).unwrap();
        assert!(after.cpu > before.cpu, "{before:?} {after:?}");
        assert!(after.anonymous_bytes >= before.anonymous_bytes + (60 << 20), "{before:?} {after:?}");
        drop(memory);
        let earlier = ProcessKey { start_time_ticks: own.start_time_ticks - 1, ..own };
        assert_eq!(usage(Path::new("/proc"), earlier), None, "of the one that had its number before");
    }
}
