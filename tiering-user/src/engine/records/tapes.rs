//! Tapes beyond the process whose touches they hold, and beyond this agent.
//!
//! In: the tapes of VMs that are there, or have just gone; records of an earlier agent. Out: records; for a
//! VM that comes its own tape, if it is the same process, or that of its earlier self, if it was started anew.
//! Pure: time is an argument.
//!
//! A tape belongs to the tenant and the namespace for which it was recorded: a VM of another one gets nothing of
//! it. With each tape that has a tenant, the key of the tenant's tags is written, and the key is removed with the last
//! of them.
//!
//! # Limits
//! At most [`MOST_BYTES`] of records, in memory and on disk alike; what was written longest ago is dropped first. Each
//! VM that is there has an equal share. Encoding a tape of the longest, all of it tagged, took 37 ms, reading it
//! 41 ms (2 busy cores), in which the agent does nothing else. Earlier selves of another layout of RAM are known by
//! content only, and until the VM's own tape is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::managed::{Earlier, ManagedVm};
use crate::engine::remembered::{Remembered, What};
use crate::predict::{MOST_TOUCHES, TagKey, Tape, decode, encode};
use crate::store::{Kept, Record};
use crate::vm::ProcessKey;

const TAPES: &str = "tape/";
const KEYS: &str = "tenant/";
const MOST_BYTES: usize = 64 << 20;
/// What a touch takes at most, as a rule: a tag, and a step of up to 1 GiB.
const TOUCH_BYTES: usize = 11;
/// While the VM is there, its tape is written when so much of it, at least of this length, is new: a quarter.
const WORTH_IT: u64 = 1024;
const NEW_PART: u64 = 4;

/// Whose tape it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Header {
    saved_unix_s: u64,
    boot_id: String,
    pid: i32,
    start_time_ticks: u64,
    pages: u32,
    tenant: Option<String>,
    namespace: Option<String>,
    /// Guest-physical address, length and first page of each part of its RAM; empty where these are not known.
    shape: Vec<(u64, u64, u32)>,
    /// Touches of this process: the last ones. Those before are of its earlier self.
    own: usize,
}

impl Header {
    fn of(vm: &ManagedVm, boot_id: &str) -> Self {
        let ProcessKey { pid, start_time_ticks } = vm.info.vm.key;
        let layout = vm.pages.layout();
        let parts = vm.info.vm.guest_ranges.iter();
        let shape = parts.map(|part| Some((part.gpa?.0, part.bytes, layout.page(part.start)?)));
        Self {
            boot_id: boot_id.to_owned(),
            pid,
            start_time_ticks,
            pages: layout.pages(),
            tenant: vm.settings.tenant.clone(),
            namespace: vm.info.vm.namespace.clone(),
            shape: shape.collect::<Option<_>>().unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Whether they may know of each other. A UUID is chosen by whoever starts the VM: it does not lead out of a
    /// namespace.
    fn same_owner(&self, other: &Self) -> bool {
        (&self.tenant, &self.namespace) == (&other.tenant, &other.namespace)
    }

    fn same_process(&self, other: &Self) -> bool {
        (&self.boot_id, self.pid, self.start_time_ticks, self.pages)
            == (&other.boot_id, other.pid, other.start_time_ticks, other.pages)
    }

    fn same_shape(&self, other: &Self) -> bool {
        !self.shape.is_empty() && (&self.shape, self.pages) == (&other.shape, other.pages)
    }
}

/// The tapes that are kept, by identity.
#[derive(Debug, Default)]
pub struct Tapes {
    kept: BTreeMap<String, Kept<Header>>,
    due: BTreeMap<String, Option<Vec<u8>>>,
}

impl Tapes {
    /// What the records say of VMs that are known, and the keys of their tenants. All others are to be removed.
    pub fn load(
        names: &[String],
        read: &impl Fn(&str) -> Option<Vec<u8>>,
        known: impl Fn(&str) -> bool,
    ) -> (Self, BTreeMap<String, TagKey>) {
        let mut tapes = Self::default();
        for name in names {
            let Some(identity) = name.strip_prefix(TAPES) else { continue };
            match read(name).as_deref().and_then(Kept::parse).filter(|_| known(identity)) {
                Some(kept) => {
                    tapes.kept.insert(identity.to_owned(), kept);
                    tapes.trim();
                }
                None => drop(tapes.due.insert(name.clone(), None)),
            }
        }
        let mut keys = BTreeMap::new();
        for name in names {
            let Some(tenant) = name.strip_prefix(KEYS) else { continue };
            let key = read(name).as_deref().and_then(TagKey::from_bytes);
            match key.filter(|_| tapes.has_tenant(tenant)) {
                Some(key) => drop(keys.insert(tenant.to_owned(), key)),
                None => drop(tapes.due.insert(name.clone(), None)),
            }
        }
        (tapes, keys)
    }

    /// A VM has come, and no other one of its identity is there: gives it its own tape, or that of its earlier
    /// self.
    pub fn recall(&mut self, identity: &str, vm: &mut ManagedVm, boot_id: &str) {
        let Some(Kept { header, bytes }) = self.kept.get(identity) else { return };
        let now = Header::of(vm, boot_id);
        let Some(touches) = decode(bytes).filter(|_| header.same_owner(&now)) else {
            self.remove(identity);
            return;
        };
        let own = if header.same_process(&now) { header.own.min(touches.len()) } else { 0 };
        let (earlier, own) = touches.split_at(touches.len() - own);
        vm.prefetch.tape = Tape::of(own, now.pages);
        vm.knowledge.tape_kept = vm.prefetch.tape.end();
        let same_shape = header.same_shape(&now);
        if !earlier.is_empty() && (same_shape || now.tenant.is_some()) {
            let tape = if same_shape {
                Tape::of(earlier, now.pages)
            } else {
                // Only contents mean something: any page will do.
                let contents: Vec<_> = earlier.iter().map(|(_, tag)| (0, *tag)).collect();
                Tape::of(&contents, now.pages)
            };
            vm.prefetch.earlier = Some(Earlier { tape, same_shape });
        }
    }

    /// Keeps the tape of a VM, one of `vms`, if much of it is new, or anything at all if it is the `last`
    /// chance.
    pub fn keep(
        &mut self,
        identity: &str,
        vm: &mut ManagedVm,
        (boot_id, unix_s): (&str, u64),
        vms: usize,
        last: bool,
    ) {
        let new = vm.prefetch.tape.end().since(vm.knowledge.tape_kept);
        let worth_it = (vm.prefetch.tape.len() as u64).max(WORTH_IT) / NEW_PART;
        if new == 0 || !last && new < worth_it {
            return;
        }
        vm.knowledge.tape_kept = vm.prefetch.tape.end();
        let most = MOST_TOUCHES.min(MOST_BYTES / TOUCH_BYTES / vms.max(1));
        let mut header = Header { saved_unix_s: unix_s, ..Header::of(vm, boot_id) };
        let most = most.min(header.pages as usize);
        header.own = vm.prefetch.tape.len().min(most);
        let before = vm.prefetch.earlier.as_ref().filter(|earlier| earlier.same_shape);
        let before = before.into_iter().flat_map(|earlier| earlier.tape.latest(most - header.own));
        let kept = Kept { bytes: encode(before.chain(vm.prefetch.tape.latest(header.own))), header };
        if let (Some(tenant), Some(key)) = (&kept.header.tenant, &vm.info.tag_key) {
            self.due.insert(format!("{KEYS}{tenant}"), Some(key.as_bytes().to_vec()));
        }
        self.due.insert(format!("{TAPES}{identity}"), Some(kept.record()));
        let former = self.kept.insert(identity.to_owned(), kept);
        self.forget_key(former);
        self.trim();
    }

    /// What is on record.
    pub fn remembered(&self) -> impl Iterator<Item = Remembered> {
        self.kept.iter().map(|(identity, kept)| Remembered {
            what: What::TapeOnRecord(identity.clone()),
            used: kept.header.saved_unix_s,
            bytes: kept.bytes.len() as u64,
        })
    }

    /// Forgets the tape of a VM.
    pub fn remove(&mut self, identity: &str) {
        if let Some(kept) = self.kept.remove(identity) {
            self.due.insert(format!("{TAPES}{identity}"), None);
            self.forget_key(Some(kept));
        }
    }

    /// What must be written down.
    pub fn take_due(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.due).into_iter().collect()
    }

    /// Drops what was kept longest ago until the rest is small enough.
    fn trim(&mut self) {
        let mut bytes: usize = self.kept.values().map(|kept| kept.bytes.len()).sum();
        while bytes > MOST_BYTES
            && let Some((identity, kept)) = self.kept.iter().min_by_key(|(_, kept)| kept.header.saved_unix_s)
        {
            bytes -= kept.bytes.len();
            let identity = identity.clone();
            self.remove(&identity);
        }
    }

    /// This tape is not kept any more: nor is the key of its tenant, if it was the last one.
    fn forget_key(&mut self, kept: Option<Kept<Header>>) {
        if let Some(tenant) = kept.and_then(|kept| kept.header.tenant)
            && !self.has_tenant(&tenant)
        {
            self.due.insert(format!("{KEYS}{tenant}"), None);
        }
    }

    fn has_tenant(&self, tenant: &str) -> bool {
        self.kept.values().any(|kept| kept.header.tenant.as_deref() == Some(tenant))
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::predict::Tag;
    use crate::sys::Monotonic;
    use crate::tiers::NodeTiers;
    use crate::track::VmId;
    use crate::vm::{Hva, testing};

    const PAGES: u32 = 4000;

    /// A VM of process `start_time_ticks`.
    fn vm(start_time_ticks: u64, pages: u32, tenant: Option<&str>) -> ManagedVm {
        let own = 7;
        let key = ProcessKey { pid: own, start_time_ticks };
        let vm = testing::vm(key, Hva(0x10_0000), u64::from(pages) * 4096);
        let mut settings = Config::default().vm_settings("web-1");
        settings.tenant = tenant.map(str::to_owned);
        let key = tenant.map(|_| Arc::new(TagKey::new(&RandomState::new())));
        ManagedVm::new(VmId(1), "web-1".into(), vm, settings, NodeTiers(1), key, Monotonic(0))
    }

    fn walk(vm: &mut ManagedVm, pages: std::ops::Range<u32>) {
        for page in pages {
            let tag = vm.settings.tenant.is_some().then_some(Tag(u64::from(page) + 1));
            vm.prefetch.tape.record(page, tag);
        }
    }

    fn touches(tape: &Tape) -> Vec<u32> {
        tape.latest(usize::MAX).map(|(page, _)| page).collect()
    }

    /// The store's content after these records.
    #[derive(Default)]
    struct Disk(BTreeMap<String, Vec<u8>>);

    impl Disk {
        fn write(&mut self, records: Vec<Record>) {
            for (name, bytes) in records {
                match bytes {
                    Some(bytes) => drop(self.0.insert(name, bytes)),
                    None => drop(self.0.remove(&name)),
                }
            }
        }

        fn load(&self) -> (Tapes, BTreeMap<String, TagKey>) {
            Tapes::load(&self.names(), &|name| self.0.get(name).cloned(), |identity| identity != "unknown")
        }

        fn names(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }
    }

    /// What is on disk when this VM has gone.
    fn disk_after(vm: &mut ManagedVm) -> Disk {
        let (mut tapes, mut disk) = (Tapes::default(), Disk::default());
        tapes.keep("web", vm, ("boot", 100), 1, true);
        disk.write(tapes.take_due());
        disk
    }

    #[test]
    fn the_same_process_goes_on_with_its_tape_and_another_one_has_an_earlier_self() {
        let mut first = vm(1, PAGES, None);
        walk(&mut first, 0..100);
        let disk = disk_after(&mut first);

        let mut same = vm(1, PAGES, None);
        disk.load().0.recall("web", &mut same, "boot");
        assert_eq!(touches(&same.prefetch.tape), touches(&first.prefetch.tape));
        assert!(same.prefetch.earlier.is_none());

        for (boot, ticks) in [("boot", 2), ("later", 1)] {
            let mut other = vm(ticks, PAGES, None);
            disk.load().0.recall("web", &mut other, boot);
            assert!(other.prefetch.tape.is_empty(), "{boot} {ticks}");
            let earlier = other.prefetch.earlier.unwrap();
            assert_eq!((touches(&earlier.tape), earlier.same_shape), (touches(&first.prefetch.tape), true));
        }
    }

    #[test]
    fn what_a_restarted_vm_touches_stands_behind_what_its_earlier_self_did() {
        let mut first = vm(1, PAGES, None);
        walk(&mut first, 0..100);
        let disk = disk_after(&mut first);
        let (mut tapes, _) = disk.load();
        let mut second = vm(2, PAGES, None);
        tapes.recall("web", &mut second, "boot");
        walk(&mut second, 50..60);
        tapes.keep("web", &mut second, ("boot", 200), 1, true);

        let mut same = vm(2, PAGES, None);
        tapes.recall("web", &mut same, "boot");
        assert_eq!(
            touches(&same.prefetch.tape),
            touches(&second.prefetch.tape),
            "its own and the other one's are told apart"
        );
        assert_eq!(touches(&same.prefetch.earlier.unwrap().tape), touches(&first.prefetch.tape));
        let mut third = vm(3, PAGES, None);
        tapes.recall("web", &mut third, "boot");
        assert_eq!(
            touches(&third.prefetch.earlier.unwrap().tape),
            (0..100).chain(50..60).collect::<Vec<_>>()
        );

        // One that ends before it touched anything takes nothing away.
        let mut idle = vm(4, PAGES, None);
        tapes.recall("web", &mut idle, "boot");
        tapes.keep("web", &mut idle, ("boot", 300), 1, true);
        let mut fifth = vm(5, PAGES, None);
        tapes.recall("web", &mut fifth, "boot");
        assert_eq!(fifth.prefetch.earlier.unwrap().tape.len(), 110);
    }

    #[test]
    fn of_another_size_it_is_known_by_content_only_and_not_at_all_without() {
        for tenant in [None, Some("a")] {
            let mut first = vm(1, PAGES, tenant);
            walk(&mut first, 0..100);
            let disk = disk_after(&mut first);
            let mut larger = vm(2, 2 * PAGES, tenant);
            disk.load().0.recall("web", &mut larger, "boot");
            let found = larger.prefetch.earlier.map(|it| (it.same_shape, it.tape.find_tag(Tag(8)).is_some()));
            assert_eq!(found, tenant.map(|_| (false, true)));
        }
    }

    #[test]
    fn nothing_of_it_is_for_another_tenant() {
        for (before, now) in [(Some("a"), Some("b")), (Some("a"), None), (None, Some("a"))] {
            let mut first = vm(1, PAGES, before);
            walk(&mut first, 0..100);
            let mut disk = disk_after(&mut first);
            for ticks in [1, 2] {
                let (mut tapes, _) = disk.load();
                let mut other = vm(ticks, PAGES, now);
                tapes.recall("web", &mut other, "boot");
                assert!(
                    other.prefetch.tape.is_empty() && other.prefetch.earlier.is_none(),
                    "{before:?} {now:?}"
                );
                if ticks == 2 {
                    disk.write(tapes.take_due());
                    assert_eq!(disk.names(), [""; 0], "nor is it kept, or its key");
                }
            }
        }
    }

    #[test]
    fn a_uuid_does_not_lead_into_another_namespace() {
        let disk = disk_after(&mut vm_that_walked());
        let mut other = vm(2, PAGES, None);
        Arc::get_mut(&mut other.info.vm).unwrap().namespace = Some("b".into());
        disk.load().0.recall("web", &mut other, "boot");
        assert!(other.prefetch.earlier.is_none());
    }

    #[test]
    fn the_key_of_a_tenant_is_kept_as_long_as_a_tape_of_it() {
        let (mut one, mut two) = (vm(1, PAGES, Some("a/b")), vm(2, PAGES, Some("a/b")));
        walk(&mut one, 0..100);
        walk(&mut two, 0..100);
        let mut disk = disk_after(&mut one);
        let (mut tapes, keys) = disk.load();
        let same = keys["a/b"].tag(&[7; 4096]) == one.info.tag_key.as_ref().unwrap().tag(&[7; 4096]);
        assert!(same, "tags of the former agent mean the same to this one");
        tapes.keep("two", &mut two, ("boot", 100), 1, true);
        disk.write(tapes.take_due());
        assert_eq!(disk.names(), ["tape/two", "tape/web", "tenant/a/b"]);
        tapes.remove("web");
        disk.write(tapes.take_due());
        assert_eq!(disk.names(), ["tape/two", "tenant/a/b"]);
        tapes.remove("two");
        disk.write(tapes.take_due());
        assert_eq!(disk.names(), [""; 0]);

        // A key alone, tapes that are damaged, and those of VMs that are not known.
        disk.write(vec![
            ("tenant/c".to_owned(), Some(vec![0; 192])),
            ("tape/web".to_owned(), Some(b"{}".to_vec())),
            ("tape/unknown".to_owned(), disk_after(&mut vm_that_walked()).0.remove("tape/web")),
        ]);
        let (mut tapes, keys) = disk.load();
        assert!(keys.is_empty());
        disk.write(tapes.take_due());
        assert_eq!(disk.names(), [""; 0]);
    }

    fn vm_that_walked() -> ManagedVm {
        let mut vm = vm(1, PAGES, None);
        walk(&mut vm, 0..100);
        vm
    }

    #[test]
    fn it_is_written_when_a_good_part_is_new_and_at_the_end() {
        let (mut tapes, mut there) = (Tapes::default(), vm(1, PAGES, None));
        let mut written = |vm: &mut ManagedVm, last| {
            tapes.keep("web", vm, ("boot", 100), 1, last);
            !tapes.take_due().is_empty()
        };
        assert!(!written(&mut there, true), "nothing was touched");
        walk(&mut there, 0..255);
        assert!(!written(&mut there, false));
        walk(&mut there, 0..1);
        assert!(written(&mut there, false));
        assert!(!written(&mut there, false) && !written(&mut there, true), "nothing new");
        walk(&mut there, 0..1);
        assert!(written(&mut there, true));
        walk(&mut there, 0..PAGES);
        assert!(written(&mut there, false));
        walk(&mut there, 0..999);
        assert!(!written(&mut there, false), "of {PAGES} a quarter is more");
        walk(&mut there, 999..1000);
        assert!(written(&mut there, false));
    }

    #[test]
    fn all_of_them_are_bounded_and_the_oldest_go() {
        let mut tapes = Tapes::default();
        for number in 0..9u32 {
            let header = Header { saved_unix_s: u64::from(9 - number), ..Header::default() };
            let kept = Kept { header, bytes: vec![0; 10 << 20] };
            tapes.kept.insert(number.to_string(), kept);
        }
        tapes.trim();
        assert_eq!(tapes.kept.keys().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5"]);
        assert_eq!(tapes.take_due(), ["tape/6", "tape/7", "tape/8"].map(|name| (name.to_owned(), None)));
        // Of many VMs that are there each has its share.
        let mut one = vm_that_walked();
        tapes.keep("web", &mut one, ("boot", 100), MOST_BYTES / TOUCH_BYTES / 10, true);
        assert_eq!(tapes.kept["web"].header.own, 10);
    }
}
