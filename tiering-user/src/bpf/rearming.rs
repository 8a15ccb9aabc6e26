//! Re-arming as a source: it makes `kvm_page_fault` show the accesses to what is mapped already.

use std::fs;

use super::kvm::{KvmSource, is_on};
use super::source::{Delivery, Source};
use crate::sys;

/// Whether mapped pages of KVM guests can be made to show their accesses anew.
#[derive(Debug)]
pub struct Rearming(Result<&'static str, &'static str>);

impl Rearming {
    pub(super) fn of(kvm: &KvmSource) -> Self {
        Self(match kvm {
            KvmSource::Unavailable(_) => Err("it needs kvm_page_fault"),
            KvmSource::Active(_) if !sys::can_rearm() => Err("this kernel has no /proc/PID/clear_refs"),
            // The older way of KVM maps the neighbours of a page as well, which then show no access of their own.
            KvmSource::Active(_) if !has_tdp_mmu() => Err("KVM runs without its TDP MMU (kvm.tdp_mmu)"),
            KvmSource::Active(_) if sys::keeps_soft_dirty().unwrap_or(false) => {
                Ok("clear_refs, soft-dirty bits")
            }
            KvmSource::Active(_) => Ok("clear_refs; no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)"),
        })
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
        match self.0 {
            Ok(how) => Delivery::Active(how.to_owned()),
            Err(why) => Delivery::Unavailable(why.to_owned()),
        }
    }

    fn lost_without(&self) -> &'static str {
        "a page that stays mapped shows no accesses: a few of each block are demoted to find out"
    }
}
