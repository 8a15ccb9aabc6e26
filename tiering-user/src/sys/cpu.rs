//! One thread on one CPU, for as long as it matters: swap slots are handed out CPU by CPU.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Bound from [`OneCpu::bind`] until it is dropped.
#[derive(Debug)]
pub struct OneCpu(Option<CpuSet>);

impl OneCpu {
    /// Binds the calling thread to the CPU it is on, if it may.
    pub fn bind() -> Self {
        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).ok();
        let bound = nix::sched::sched_getcpu().and_then(|cpu| {
            let mut one = CpuSet::new();
            one.set(cpu)?;
            sched_setaffinity(this, &one)
        });
        // Unbound, a few pages may go to another area, which is read back.
        Self(bound.ok().and(all))
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        if let Some(all) = &self.0 {
            sched_setaffinity(Pid::from_raw(0), all).ok();
        }
    }
}
