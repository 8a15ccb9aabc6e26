//! The faults of KVM guests, and the frames that KVM maps for them.
//!
//! In: the loaded object. Out: the programs attached as raw or as classic tracepoints, both events the same way, or
//! why not. KVM's events are there only while its module is loaded; it stays loaded while programs are attached.

use std::fs;
use std::path::Path;

use aya::Ebpf;

use super::attach_kind::{AttachKind, Attachment};
use super::source::{Delivery, Source};

/// Whether accesses of KVM guests are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmSource {
    Active(AttachKind),
    /// Why not.
    Unavailable(String),
}

#[derive(Clone, Copy)]
struct Event {
    category: &'static str,
    name: &'static str,
    raw: &'static str,
    classic: &'static str,
}

const EVENTS: [Event; 2] = [
    Event { category: "kvm", name: "kvm_page_fault", raw: "kvm_fault_raw", classic: "kvm_fault_tp" },
    Event { category: "kvmmmu", name: "kvm_mmu_set_spte", raw: "kvm_spte_raw", classic: "kvm_spte_tp" },
];

/// The attach kinds that lead to events of a module: BTF-typed ones do not, in this version of aya.
pub const KVM_ATTACH_KINDS: [AttachKind; 2] = [AttachKind::Raw, AttachKind::Classic];

impl KvmSource {
    /// Attaches by the first of `attach_kinds` that works.
    pub(super) fn attach(ebpf: &mut Ebpf, attach_kinds: &[AttachKind]) -> Self {
        if !Path::new("/sys/module/kvm").exists() {
            return Self::Unavailable("KVM is not loaded".to_owned());
        }
        // Without it KVM's faults have addresses of the guest's own page tables.
        let nested_paging = ["kvm_intel/parameters/ept", "kvm_amd/parameters/npt"];
        let on =
            |name| fs::read_to_string(Path::new("/sys/module").join(name)).is_ok_and(|text| is_on(&text));
        if !nested_paging.into_iter().any(on) {
            return Self::Unavailable(
                "KVM runs without EPT or NPT (or without a processor's module)".to_owned(),
            );
        }
        let mut reasons = Vec::new();
        for attach_kind in attach_kinds {
            match attach_kind.attach_all(ebpf, &EVENTS.map(|event| event.attachment(*attach_kind))) {
                Ok(()) => return Self::Active(*attach_kind),
                Err(reason) => reasons.push(format!("{}: {reason}", attach_kind.name())),
            }
        }
        Self::Unavailable(reasons.join("; "))
    }

    /// The programs that are attached, by name.
    pub(super) fn programs(&self) -> Vec<&'static str> {
        match self {
            Self::Active(AttachKind::Classic) => EVENTS.iter().map(|event| event.classic).collect(),
            Self::Active(_) => EVENTS.iter().map(|event| event.raw).collect(),
            Self::Unavailable(_) => Vec::new(),
        }
    }
}

impl Source for KvmSource {
    fn name(&self) -> &'static str {
        "kvm_page_fault"
    }

    fn delivery(&self) -> Delivery {
        match self {
            Self::Active(attach_kind) => Delivery::Active(attach_kind.name().to_owned()),
            Self::Unavailable(why) => Delivery::Unavailable(why.clone()),
        }
    }

    fn lost_without(&self) -> &'static str {
        "accesses of KVM guests are seen only where QEMU itself faults: their pages are placed by idle time alone and nothing is \
         staged for them"
    }
}

/// A parameter of a module that is a yes.
pub(super) fn is_on(text: &str) -> bool {
    matches!(text.trim(), "Y" | "1")
}

impl Event {
    fn attachment(&self, attach_kind: AttachKind) -> Attachment {
        Attachment { program: self.program(attach_kind), category: self.category, event: self.name }
    }

    fn program(&self, attach_kind: AttachKind) -> &'static str {
        match attach_kind {
            AttachKind::Classic => self.classic,
            AttachKind::Raw | AttachKind::TpBtf => self.raw,
        }
    }
}
