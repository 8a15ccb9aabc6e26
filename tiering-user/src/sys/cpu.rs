//! One thread on one CPU, for as long as it matters: swap slots are handed out CPU by CPU.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Bound from [`OneCpu::bind`] until it is dropped.
#[derive(Debug)]
pub struct OneCpu(Option<CpuSet>);

impl OneCpu {
    /// Binds the calling thread to the CPU it is on, if it may.
    pub fn bind() -> Self {
        nix::sched::sched_getcpu().map_or(Self(None), Self::bind_to)
    }

    /// Binds the calling thread to this CPU, if it may.
    pub fn bind_to(cpu: usize) -> Self {
        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).ok();
        let mut one = CpuSet::new();
        let bound = one.set(cpu).and_then(|()| sched_setaffinity(this, &one));
        // Unbound, a few pages may go to another area, which is read back.
        Self(bound.ok().and(all))
    }
}

/// Keeps the calling thread, for the rest of its life, on those of these CPUs that it may use; where there is none, it
/// stays where it is.
///
/// # Errors
/// As `sched_setaffinity(2)`.
pub fn stay_on_cpus(cpus: &[usize]) -> std::io::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut chosen = CpuSet::new();
    let usable: Vec<_> = cpus.iter().copied().filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect();
    for cpu in &usable {
        chosen.set(*cpu)?;
    }
    if usable.is_empty() { Ok(()) } else { Ok(sched_setaffinity(this, &chosen)?) }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        if let Some(all) = &self.0 {
            sched_setaffinity(Pid::from_raw(0), all).ok();
        }
    }
}

/// Has this thread run ahead of ordinary ones, for one that does little at a time and keeps others waiting meanwhile.
/// Where it is forbidden, it runs like all others.
pub fn run_ahead() {
    // SAFETY: three numbers; 0 is the calling thread (setpriority(2), "C library/kernel differences").
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_on_the_cpus_it_may_use() {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).unwrap();
        let cpu = (0..CpuSet::count()).rev().find(|cpu| before.is_set(*cpu).unwrap()).unwrap();
        stay_on_cpus(&[]).unwrap();
        assert_eq!(sched_getaffinity(this).unwrap(), before);
        stay_on_cpus(&[CpuSet::count() - 1, cpu]).unwrap();
        assert_eq!(nix::sched::sched_getcpu().unwrap(), cpu);
        sched_setaffinity(this, &before).unwrap();
    }
}
