//! Which pages a process waits for: its major faults within a range of addresses, as the kernel counts them with the
//! address of each (perf_event_open(2)).
//!
//! In: a process and a range. Out: their addresses since.
//!
//! # Limits
//! Threads that begin later are not seen.

use anyhow::{Result, bail, ensure};
use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag, Sampler};
use procfs::process::Process;
use std::ops::Range;

/// Of each thread: some 170,000 faults.
const RING_BYTES: usize = 4 << 20;

/// Counts from the moment on at which it is made.
pub struct MajorFaults {
    range: Range<u64>,
    threads: Vec<Sampler>,
}

impl MajorFaults {
    pub fn of(pid: u32, range: Range<u64>) -> Result<Self> {
        let mut threads = Vec::new();
        for thread in Process::new(i32::try_from(pid)?)?.tasks()? {
            let mut faults = Builder::new(Software::PAGE_FAULTS_MAJ);
            faults.observe_pid(thread?.tid).any_cpu().include_kernel();
            let mut sampler =
                faults.sample_period(1).sample(SampleFlag::ADDR).build()?.sampled(RING_BYTES)?;
            sampler.as_counter_mut().enable()?;
            threads.push(sampler);
        }
        ensure!(!threads.is_empty(), "process {pid} has no threads");
        Ok(Self { range, threads })
    }

    /// Their addresses, in order, but for those of different threads.
    pub fn addresses(mut self) -> Result<Vec<u64>> {
        let mut addresses = Vec::new();
        for thread in &mut self.threads {
            while let Some(record) = thread.next_record() {
                match record.parse_record()? {
                    Record::Sample(fault) => {
                        addresses.extend(fault.addr().filter(|address| self.range.contains(address)));
                    }
                    Record::Lost(_) | Record::LostSamples(_) => bail!("more faults than there is room for"),
                    _ => {}
                }
            }
        }
        Ok(addresses)
    }
}
