//! Which VMs may learn from each other, and what each of them holds in swap.
//!
//! VMs of different tenants share nothing: neither key nor index, nor what was learned of pairs. What was learned
//! outlives the agent as long as the key does.

mod likeness;
mod pairs;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;

use likeness::Likeness;

use super::managed::ManagedVm;
use super::remembered::{Remembered, What};
use crate::actuate::Outcome;
use crate::predict::{Match, Tag, TagKey, Tags, Tape};
use crate::similarity::Weights;
use crate::store::Record;
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;
use crate::vm::FileId;

/// Records of what was learned of a tenant's pairs.
const WEIGHTS: &str = "weights/";

/// Where the known contents of a leader are: in swap, and on its tape.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    /// None where it is the earlier self of a VM.
    pub vm: Option<VmId>,
    pub tape: &'a Tape,
}

/// The VMs of one tenant.
pub struct Tenant {
    key: Arc<TagKey>,
    /// Makes names of files that no other tenant has.
    names: RandomState,
    pub tags: Tags,
    pub members: Vec<VmId>,
    pub likeness: Likeness,
    /// What was learned as it is written down.
    kept: Weights,
}

impl Tenant {
    fn new(key: TagKey) -> Self {
        Self {
            key: Arc::new(key),
            names: RandomState::new(),
            tags: Tags::default(),
            members: Vec::new(),
            likeness: Likeness::default(),
            kept: Weights::default(),
        }
    }

    /// The page of the member `there` that corresponds to one of a leader with this content, whose address is
    /// that of `same_page` there; and how. The copy at the same address is the better one, of others one that `waits`.
    /// What holds a content that the leader `held` does not correspond by its address: its content does.
    pub fn corresponding(
        &self,
        tag: Option<Tag>,
        there: VmId,
        same_page: Option<PageIndex>,
        held: Option<Held<'_>>,
        waits: impl Fn(PageIndex) -> bool,
    ) -> Option<(PageIndex, Match)> {
        let tag_there = same_page.and_then(|page| self.tags.of(there, page));
        let by = if tag.is_some() && tag_there.is_some() { Match::Address } else { Match::Page };
        let copy = || {
            let mut copies = self.tags.copies_in(tag?, there).peekable();
            let first = *copies.peek()?;
            Some((copies.find(|page| waits(*page)).unwrap_or(first), Match::Content))
        };
        let is_matched = || held.zip(tag_there).is_some_and(|(held, tag)| self.holds(held, tag));
        match same_page {
            Some(page) if tag.is_some() && tag == tag_there => Some((page, Match::Content)),
            Some(page) => copy().or_else(|| (!is_matched()).then_some((page, by))),
            None => copy(),
        }
    }

    /// Whether the leader has this content in swap, or on its tape.
    pub fn holds(&self, held: Held<'_>, tag: Tag) -> bool {
        let Held { vm, tape } = held;
        tape.find_tag(tag).is_some() || vm.is_some_and(|vm| self.tags.copies_in(tag, vm).next().is_some())
    }
}

/// The tenants that the configuration names. A VM without one is its own tenant, and is not here.
#[derive(Default)]
pub struct Tenants(BTreeMap<String, Tenant>);

impl Tenants {
    /// Tenants with the keys that they had under an earlier agent, and what was learned then. Records of others are
    /// returned, to be removed.
    pub fn load(
        keys: BTreeMap<String, TagKey>,
        names: &[String],
        read: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> (Self, Vec<Record>) {
        let mut tenants: BTreeMap<_, _> =
            keys.into_iter().map(|(name, key)| (name, Tenant::new(key))).collect();
        let mut outdated = Vec::new();
        for name in names {
            let Some(tenant) = name.strip_prefix(WEIGHTS) else { continue };
            let parse = |bytes: Vec<u8>| serde_json::from_slice::<Weights>(&bytes).ok();
            let weights = read(name).and_then(parse).filter(Weights::are_plausible);
            match tenants.get_mut(tenant).zip(weights) {
                Some((tenant, weights)) => {
                    tenant.kept = weights.clone();
                    tenant.likeness = Likeness::with_weights(weights);
                }
                None => outdated.push((name.clone(), None)),
            }
        }
        (Self(tenants), outdated)
    }

    /// The indexes of content. The largest goes first.
    pub fn remembered(&self) -> impl Iterator<Item = Remembered> {
        self.0.iter().map(|(name, tenant)| {
            let bytes = tenant.tags.bytes();
            Remembered { what: What::Tags(name.clone()), used: u64::MAX - bytes, bytes }
        })
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Tenant> {
        self.0.get_mut(name)
    }

    /// What was learned since it was written down.
    pub fn records(&mut self) -> Vec<Record> {
        let changed = self.0.iter_mut().filter(|(_, tenant)| tenant.kept != *tenant.likeness.weights());
        let record = |(name, tenant): (&String, &mut Tenant)| {
            tenant.kept = tenant.likeness.weights().clone();
            // Plain numbers always become JSON.
            (format!("{WEIGHTS}{name}"), serde_json::to_vec(&tenant.kept).ok())
        };
        changed.map(record).collect()
    }

    /// A VM joins its tenant. Returns the key for its tags.
    pub fn join(
        &mut self,
        name: &str,
        vm: VmId,
        images: impl IntoIterator<Item = FileId>,
        now: Monotonic,
    ) -> Arc<TagKey> {
        let new = || Tenant::new(TagKey::new(&RandomState::new()));
        let tenant = self.0.entry(name.to_owned()).or_insert_with(new);
        tenant.members.push(vm);
        tenant.likeness.join(vm, images, &tenant.names, now);
        Arc::clone(&tenant.key)
    }

    /// A VM has gone.
    pub fn leave(&mut self, name: &str, vm: VmId) {
        if let Some(tenant) = self.0.get_mut(name) {
            tenant.members.retain(|member| *member != vm);
            tenant.tags.forget(vm);
            tenant.likeness.leave(vm);
        }
    }

    /// A step of `vm` is done: what of its pages is in swap now can be found by its content, what is not cannot.
    pub fn take_tags(&mut self, vm: &ManagedVm, outcome: &Outcome) {
        let Some(tenant) = self.of_mut(vm) else { return };
        // What is staged is as it was until it is touched.
        let may_change = |page: &&PageIndex| {
            let entry = vm.pages.get(**page);
            !vm.pages.in_swap(entry.place()) && !entry.staged()
        };
        for page in outcome.asked.iter().filter(may_change) {
            tenant.tags.remove(outcome.vm, *page);
        }
        for (page, tag) in &outcome.tags {
            if vm.pages.in_swap(vm.pages.get(*page).place()) && tenant.tags.insert(outcome.vm, *page, *tag) {
                tenant.likeness.hold(outcome.vm, vm.guest_page(*page), *tag);
            }
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Tenant> {
        self.0.values()
    }

    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Tenant> {
        self.0.values_mut()
    }

    pub fn of(&self, vm: &ManagedVm) -> Option<&Tenant> {
        self.0.get(vm.settings.tenant.as_deref()?)
    }

    pub fn of_mut(&mut self, vm: &ManagedVm) -> Option<&mut Tenant> {
        self.0.get_mut(vm.settings.tenant.as_deref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::similarity::Parts;

    #[test]
    fn content_comes_before_the_address_and_the_copy_there_first() {
        let (here, there) = (VmId(1), VmId(2));
        let mut tenants = Tenants::default();
        tenants.join("a", here, [], Monotonic(0));
        tenants.join("a", there, [], Monotonic(0));
        let tenant = tenants.0.get_mut("a").unwrap();
        for (page, tag) in [(3, 7), (9, 7), (4, 8)] {
            tenant.tags.insert(there, page, Tag(tag));
        }
        let mut tape = Tape::new(100);
        let found = |tag: Option<u64>, same, tape: &Tape| {
            let held = Some(Held { vm: Some(here), tape });
            tenant.corresponding(tag.map(Tag), there, same, held, |page| page != 3)
        };
        assert_eq!(
            found(Some(7), Some(9), &tape),
            Some((9, Match::Content)),
            "the same address, of two copies"
        );
        assert_eq!(found(Some(7), Some(4), &tape), Some((9, Match::Content)), "another address");
        assert_eq!(
            found(Some(7), None, &tape),
            Some((9, Match::Content)),
            "of two copies the one that waits"
        );
        assert_eq!(found(Some(1), Some(4), &tape), Some((4, Match::Address)), "other content");
        assert_eq!(found(Some(1), Some(5), &tape), Some((5, Match::Page)), "nothing known of it there");
        assert_eq!(found(None, Some(4), &tape), Some((4, Match::Page)), "nor here");
        assert_eq!(found(None, None, &tape), None);
        tape.record(70, Some(Tag(8)));
        assert_eq!(
            found(Some(1), Some(4), &tape),
            None,
            "the leader touched that content at another address"
        );
        assert_eq!(found(None, Some(4), &tape), None);
        assert_eq!(found(Some(1), Some(9), &tape), Some((9, Match::Address)));
        tenant.tags.insert(here, 50, Tag(7));
        let found = |same| {
            tenant.corresponding(
                Some(Tag(1)),
                there,
                same,
                Some(Held { vm: Some(here), tape: &tape }),
                |_| true,
            )
        };
        assert_eq!(found(Some(9)), None, "it holds that content in swap");
        let by_address = tenant.corresponding(None, there, Some(9), None, |_| true);
        assert_eq!(by_address, Some((9, Match::Page)), "where contents do not count");
    }

    #[test]
    fn what_was_learned_outlives_the_agent_as_long_as_the_key() {
        let keys = |names: &[&str]| {
            let key = |name: &&str| (name.to_string(), TagKey::new(&RandomState::new()));
            names.iter().map(key).collect::<BTreeMap<_, _>>()
        };
        let mut first = Tenants::load(keys(&["a/b", "c"]), &[], |_| None).0;
        let mut learned = Weights::default();
        let clone =
            Parts { content: Some(1.0), placed: None, files: None, behaviour: None, lagged: Some(1.0) };
        learned.learn(&clone, 1, 100);
        first.0.get_mut("a/b").unwrap().likeness = Likeness::with_weights(learned.clone());
        let mut written = first.records();
        assert_eq!(written.len(), 1, "of the other nothing was learned");
        assert_eq!(first.records(), [], "it is written once");

        written
            .push(("weights/c".to_owned(), Some(br#"{"bias":7.0,"parts":[0.0,0.0,0.0,0.0,0.0]}"#.to_vec())));
        written.push(("weights/gone".to_owned(), written[0].1.clone()));
        let names: Vec<_> = written.iter().map(|(name, _)| name.clone()).collect();
        let read = |wanted: &str| written.iter().find(|(name, _)| name == wanted)?.1.clone();
        let (mut next, outdated) = Tenants::load(keys(&["a/b", "c"]), &names, read);
        let score = next.0["a/b"].likeness.weights().score(&clone);
        assert!((score - learned.score(&clone)).abs() < 1e-9 && score < Weights::default().score(&clone));
        assert_eq!(*next.0["c"].likeness.weights(), Weights::default(), "nobody can have learned that");
        assert_eq!(outdated, [("weights/c".to_owned(), None), ("weights/gone".to_owned(), None)]);
        assert_eq!(next.records(), [], "it is as it was written");
    }

    #[test]
    fn tenants_share_neither_key_nor_tags() {
        let mut tenants = Tenants::default();
        let (one, other) =
            (tenants.join("a", VmId(1), [], Monotonic(0)), tenants.join("b", VmId(2), [], Monotonic(0)));
        let content = [7; 4096];
        assert_ne!(one.tag(&content), other.tag(&content));
        tenants.0.get_mut("a").unwrap().tags.insert(VmId(1), 3, Tag(7));
        let tape = Tape::new(1);
        let held = Some(Held { vm: Some(VmId(2)), tape: &tape });
        assert_eq!(tenants.0["b"].corresponding(Some(Tag(7)), VmId(1), None, held, |_| true), None);
        assert_eq!(tenants.0["b"].members, [VmId(2)]);
    }
}
