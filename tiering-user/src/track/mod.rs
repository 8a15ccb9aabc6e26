//! From samples of the kernel to accesses of pages.
//!
//! In: the ring's records. Out: [`Access`]es, in the order of the ring. Pure.

mod rearm;
mod sampling;

pub use rearm::{Limits, Rounds, Shown, Turn};
pub use sampling::{Budgets, LOOK_AT_LEAST_EVERY, Sampling};

use tiering_common::{SAMPLE_KVM, SAMPLE_WEIGHT_SHIFT, SAMPLE_WRITE, Sample};

use crate::sys::Monotonic;
use crate::vm::Hva;

/// Number the agent gives a VM; never given twice in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u32);

/// A page was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub time: Monotonic,
    pub vm: VmId,
    pub hva: Hva,
    pub write: bool,
    /// For so many accesses it stands, most of which were not sampled.
    pub weight: u32,
    /// The guest accessed it under KVM, so that `hva` is as right as the layout of its RAM.
    pub kvm: bool,
}

impl From<Sample> for Access {
    fn from(sample: Sample) -> Self {
        Self {
            time: Monotonic(sample.time_ns),
            vm: VmId(sample.vm),
            hva: Hva(sample.hva),
            write: sample.flags & SAMPLE_WRITE != 0,
            weight: 1u32.checked_shl(sample.flags >> SAMPLE_WEIGHT_SHIFT).unwrap_or(1),
            kvm: sample.flags & SAMPLE_KVM != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_apart() {
        let sample = |flags| Sample { time_ns: 7, hva: 0x1234, vm: 3, flags };
        let read = Access::from(sample(0));
        assert_eq!((read.vm, read.hva, read.time), (VmId(3), Hva(0x1234), Monotonic(7)));
        assert!(!read.write && !read.kvm && read.weight == 1);
        let write = Access::from(sample(SAMPLE_WRITE | SAMPLE_KVM | 3 << SAMPLE_WEIGHT_SHIFT));
        assert!(write.write && write.kvm && write.weight == 8);
    }
}
