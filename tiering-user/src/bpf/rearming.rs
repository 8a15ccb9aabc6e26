//! Re-arming as a source: it makes `kvm_page_fault` show the accesses to what is mapped already.

use std::fs;
use std::time::Duration;

use super::kvm::{KvmSource, is_on};
use super::source::{Delivery, Source};
use crate::sys;

/// What a shown access costs where that cannot be measured.
const COST_ASSUMED: Duration = Duration::from_micros(5);
/// What it costs more than in the measurement that an access becomes a sample: `cargo xtask bench tracking --part
/// fault`.
const SAMPLE: Duration = Duration::from_nanos(400);

/// Whether mapped pages of KVM guests can be made to show their accesses anew.
#[derive(Debug)]
pub struct Rearming(Result<Armable, &'static str>);

#[derive(Debug)]
struct Armable {
    /// What an access costs that shows.
    cost: Duration,
    measured: bool,
    soft_dirty: bool,
}

impl Rearming {
    pub(super) fn of(kvm: &KvmSource) -> Self {
        Self(match kvm {
            KvmSource::Unavailable(_) => Err("it needs kvm_page_fault"),
            KvmSource::Active(_) if !sys::can_rearm() => Err("this kernel has no /proc/PID/clear_refs"),
            // The older way of KVM maps the neighbours of a page as well, which then show no access of their own.
            KvmSource::Active(_) if !has_tdp_mmu() => Err("KVM runs without its TDP MMU (kvm.tdp_mmu)"),
            KvmSource::Active(_) => Ok(Armable::measured()),
        })
    }

    /// What it costs a guest that an access shows; none where none can be made to.
    pub fn cost(&self) -> Option<Duration> {
        self.0.as_ref().ok().map(|armable| armable.cost)
    }
}

impl Armable {
    fn measured() -> Self {
        let cost = sys::shown_access();
        if let Err(error) = &cost {
            tracing::warn!(%error, "what an access costs that KVM shows was not measured, and is taken for {COST_ASSUMED:?}");
        }
        Self {
            measured: cost.is_ok(),
            cost: cost.map_or(COST_ASSUMED, |cost| cost + SAMPLE),
            soft_dirty: sys::keeps_soft_dirty().unwrap_or(false),
        }
    }
}

fn has_tdp_mmu() -> bool {
    fs::read_to_string("/sys/module/kvm/parameters/tdp_mmu").is_ok_and(|text| is_on(&text))
}

impl Source for Rearming {
    fn name(&self) -> &'static str {
        "rearming"
    }

    fn delivery(&self) -> Delivery {
        match &self.0 {
            Ok(Armable { cost, measured, soft_dirty }) => {
                let how = if *measured { "" } else { " (assumed)" };
                let bits = if *soft_dirty { "" } else { "; no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)" };
                let us = cost.as_nanos() as f64 / 1e3;
                Delivery::Active(format!("clear_refs; {us:.1} us an access that shows{how}{bits}"))
            }
            Err(why) => Delivery::Unavailable((*why).to_owned()),
        }
    }

    fn lost_without(&self) -> &'static str {
        "a page that stays mapped shows no accesses: a few of each block are demoted to find out"
    }
}
