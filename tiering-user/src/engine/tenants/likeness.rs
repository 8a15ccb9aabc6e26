//! How alike the VMs of one tenant are, and who learns from whom.
//!
//! In: what goes to swap and what is touched, as it happens; what became of stages. Out, brought up to date every
//! [`COMPARE_EVERY`]: for each VM the leaders that it follows, best first, and how likely they are to be right.
//!
//! # Limits
//! Only content that has been to swap is known, and it counts for [`GENERATION`] to twice as long after it came up,
//! whether or not it was written since: a sketch forgets nothing, so it is drawn anew.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Bound;
use std::time::Duration;

use crate::engine::Engine;
use crate::predict::Tag;
use crate::similarity::{MOST_NEIGHBOURS, Neighbour, Portrait, Similarity, Weights};
use crate::sys::Monotonic;
use crate::track::VmId;
use crate::vm::FileId;

const COMPARE_EVERY: Duration = Duration::from_secs(2);
/// What is touched in this time counts as touched together; about as long as a stage waits for its use.
const EPOCH: Duration = Duration::from_secs(10);
/// What is staged for a page of the same content, or address, is used so often before more is known of the two
/// VMs.
const AT_LEAST: f64 = 2.0 / 3.0;

/// What a VM held counts so long, at least.
const GENERATION: Duration = Duration::from_mins(10);

/// A VM's portrait.
#[derive(Debug, Default)]
struct Drawn {
    portrait: Portrait,
    changed: bool,
    /// Something is on its trail since the epoch began.
    touched: bool,
    /// What it holds since this generation began, which will be the portrait of the next.
    next: Portrait,
    since: Monotonic,
}

/// The VMs of one tenant.
#[derive(Debug, Default)]
pub struct Likeness {
    similarity: Similarity,
    drawn: BTreeMap<VmId, Drawn>,
    /// Who is worth learning from, best first; and the same the other way round.
    leaders: BTreeMap<VmId, Vec<VmId>>,
    followers: BTreeMap<VmId, Vec<VmId>>,
    compared: Monotonic,
    turned: Monotonic,
}

impl Likeness {
    /// With what was learned before.
    pub fn with_weights(weights: Weights) -> Self {
        Self { similarity: Similarity::with_weights(weights), ..Self::default() }
    }

    /// What was learned.
    pub fn weights(&self) -> &Weights {
        self.similarity.weights()
    }

    pub fn join(
        &mut self,
        vm: VmId,
        images: impl IntoIterator<Item = FileId>,
        names: &RandomState,
        now: Monotonic,
    ) {
        let files = images.into_iter().map(|file| names.hash_one((file.device, file.inode))).collect();
        let portrait = Portrait { files, ..Portrait::default() };
        self.drawn.insert(vm, Drawn { portrait, changed: true, since: now, ..Drawn::default() });
        self.choose();
    }

    pub fn leave(&mut self, vm: VmId) {
        self.drawn.remove(&vm);
        self.similarity.forget(vm);
        self.choose();
    }

    /// `vm` has this content in the page of this number of the guest's.
    pub fn hold(&mut self, vm: VmId, guest_page: u64, tag: Tag) {
        if let Some(drawn) = self.drawn.get_mut(&vm) {
            drawn.portrait.hold(guest_page, tag.0);
            drawn.next.hold(guest_page, tag.0);
            drawn.changed = true;
        }
    }

    /// `vm` touched a page, by its content or else by its place.
    pub fn touch(&mut self, vm: VmId, guest_page: u64, tag: Option<Tag>) {
        if let Some(drawn) = self.drawn.get_mut(&vm) {
            drawn.portrait.trail.note(tag.map_or(guest_page, |tag| tag.0));
            (drawn.changed, drawn.touched) = (true, true);
        }
    }

    /// `vm` behaves like this, by its profile.
    fn behaves(&mut self, vm: VmId, behaviour: &[f32]) {
        if let Some(drawn) = self.drawn.get_mut(&vm)
            && drawn.portrait.behaviour.as_deref() != Some(behaviour)
        {
            drawn.portrait.behaviour = Some(behaviour.to_vec());
            drawn.changed = true;
        }
    }

    /// The VMs whose portraits are to be drawn anew now: few at a time, and all of them in a generation.
    pub fn outdated(&self, now: Monotonic) -> Vec<VmId> {
        let turns = (GENERATION.as_secs() / COMPARE_EVERY.as_secs()) as usize;
        let mut due: Vec<_> =
            self.drawn.iter().filter(|(_, drawn)| now.since(drawn.since) >= GENERATION).collect();
        due.sort_by_key(|(_, drawn)| drawn.since);
        due.into_iter().take(self.drawn.len().div_ceil(turns)).map(|(vm, _)| *vm).collect()
    }

    /// A generation of a VM has ended; it has this in swap now.
    pub fn redraw(&mut self, vm: VmId, held: impl Iterator<Item = (u64, Tag)>, now: Monotonic) {
        let Some(drawn) = self.drawn.get_mut(&vm) else { return };
        let Portrait { content, placed, .. } = std::mem::take(&mut drawn.next);
        (drawn.portrait.content, drawn.portrait.placed) = (content, placed);
        (drawn.changed, drawn.since) = (true, now);
        for (guest_page, tag) in held {
            self.hold(vm, guest_page, tag);
        }
    }

    /// Whether it is time to compare.
    pub fn is_due(&self, now: Monotonic) -> bool {
        now.since(self.compared) >= COMPARE_EVERY
    }

    /// Compares what has changed.
    pub fn compare(&mut self, now: Monotonic) {
        self.compared = now;
        for (vm, drawn) in self.drawn.iter_mut().filter(|(_, drawn)| drawn.changed) {
            drawn.changed = false;
            self.similarity.update(*vm, &drawn.portrait);
        }
        self.similarity.refresh();
        if now.since(self.turned) >= EPOCH {
            self.turned = now;
            for drawn in self.drawn.values_mut() {
                drawn.portrait.trail.turn();
                // With the next comparison nothing of it is recent any more.
                drawn.changed |= std::mem::take(&mut drawn.touched);
            }
        }
        self.choose();
    }

    /// Who follows whom: the neighbours, and where there is room others too, of which nothing is known yet.
    fn choose(&mut self) {
        self.leaders.clear();
        self.followers.clear();
        for vm in self.drawn.keys() {
            let near = self.similarity.neighbours(*vm).iter().map(|neighbour| neighbour.vm);
            let mut leaders: Vec<VmId> = near.collect();
            let room = MOST_NEIGHBOURS - leaders.len();
            // Those that come next: so each has about as many followers as leaders.
            let next =
                self.drawn.range((Bound::Excluded(*vm), Bound::Unbounded)).chain(self.drawn.range(..*vm));
            let strangers = next.map(|(other, _)| *other).filter(|other| !leaders.contains(other));
            let strangers: Vec<VmId> = strangers.take(room).collect();
            leaders.extend(strangers);
            for leader in &leaders {
                self.followers.entry(*leader).or_default().push(*vm);
            }
            self.leaders.insert(*vm, leaders);
        }
    }

    /// A follower, and another VM that it was compared with.
    pub fn pairs(&self) -> impl Iterator<Item = (VmId, &Neighbour)> {
        self.similarity.pairs()
    }

    /// The VMs that this one learns from, best first.
    pub fn leaders(&self, follower: VmId) -> &[VmId] {
        self.leaders.get(&follower).map_or(&[], Vec::as_slice)
    }

    /// The VMs that learn from this one.
    pub fn followers(&self, leader: VmId) -> &[VmId] {
        self.followers.get(&leader).map_or(&[], Vec::as_slice)
    }

    /// Of `ended` stages for the follower because of the leader, `used` were used.
    pub fn learn(&mut self, leader: VmId, follower: VmId, used: u64, ended: u64) {
        let few = |pages| u32::try_from(pages).unwrap_or(u32::MAX);
        self.similarity.learn(leader, follower, few(used), few(ended));
    }

    /// How likely what a leader predicts is to be right, for each that was compared.
    pub fn expectations(&self, follower: VmId) -> impl Iterator<Item = (VmId, f64)> + '_ {
        // That pages correspond speaks for them, and so does, independently of that, how alike the VMs are.
        let expected = |score: f64| 1.0 - (1.0 - AT_LEAST) * (1.0 - score);
        let near = self.similarity.neighbours(follower).iter();
        near.map(move |neighbour| (neighbour.vm, expected(neighbour.score)))
    }
}

impl Engine {
    /// Brings up to date how alike VMs are, and tells each what to expect of its leaders.
    pub(in crate::engine) fn compare_vms(&mut self) {
        let now = self.clock.now;
        for tenant in self.tenants.all_mut().filter(|tenant| tenant.likeness.is_due(now)) {
            for id in tenant.likeness.outdated(now) {
                let Some(vm) = self.vms.get(&id) else { continue };
                let held = tenant.tags.of_vm(id).map(|(page, tag)| (vm.guest_page(page), tag));
                tenant.likeness.redraw(id, held, now);
            }
            for id in tenant.members.clone() {
                let Some(vm) = self.vms.get_mut(&id) else { continue };
                if let Some(behaviour) = vm.profile.vector().filter(|_| vm.profile.is_at_work()) {
                    tenant.likeness.behaves(id, behaviour);
                }
                for (leader, used, ended) in vm.prefetch.stages.take_ends() {
                    if self.config.prefetch.feedback {
                        tenant.likeness.learn(leader, id, used, ended);
                    }
                }
            }
            tenant.likeness.compare(now);
            for id in &tenant.members {
                if let Some(vm) = self.vms.get_mut(id) {
                    for (leader, probability) in tenant.likeness.expectations(*id) {
                        vm.prefetch.stages.expect(leader, probability);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: VmId = VmId(1);
    const OTHER: VmId = VmId(2);

    fn second(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    fn of(vms: impl Iterator<Item = u32>) -> Likeness {
        let mut likeness = Likeness::default();
        vms.for_each(|vm| likeness.join(VmId(vm), [], &RandomState::new(), second(0)));
        likeness
    }

    fn fill(likeness: &mut Likeness, vm: VmId, tags: std::ops::Range<u64>) {
        tags.for_each(|tag| likeness.hold(vm, tag, Tag(tag)));
    }

    #[test]
    fn few_vms_all_learn_from_each_other_and_of_many_the_alike_ones() {
        let mut likeness = of(1..=3);
        assert_eq!(likeness.leaders(VmId(2)), [VmId(3), VmId(1)], "nothing is known yet");
        likeness.leave(VmId(1));
        assert_eq!(likeness.leaders(VmId(2)), [VmId(3)]);

        let mut likeness = of(1..=100);
        let most = (1..=100).map(|vm| likeness.followers(VmId(vm)).len()).max();
        assert_eq!(most, Some(MOST_NEIGHBOURS), "nobody is followed by all");
        for vm in [90, 91, 92] {
            fill(&mut likeness, VmId(vm), 0..1000);
        }
        likeness.compare(second(10));
        let mut leaders = likeness.leaders(VmId(90)).to_vec();
        assert_eq!(leaders.len(), MOST_NEIGHBOURS);
        leaders.truncate(2);
        leaders.sort();
        assert_eq!(leaders, [VmId(91), VmId(92)]);
        assert!(likeness.followers(VmId(92)).contains(&VmId(91)));
        assert!(likeness.expectations(VmId(90)).all(|(_, expected)| expected > 0.9));
    }

    #[test]
    fn what_a_vm_held_counts_for_one_generation_more_and_what_is_in_swap_always() {
        let mut likeness = of(1..=2);
        fill(&mut likeness, ONE, 0..1000);
        fill(&mut likeness, OTHER, 0..1000);
        let content = |likeness: &mut Likeness, at| {
            likeness.compare(at);
            likeness.similarity.neighbours(OTHER).first().and_then(|neighbour| neighbour.parts.content)
        };
        assert_eq!(content(&mut likeness, second(10)), Some(1.0));
        assert_eq!(likeness.outdated(second(599)), []);
        assert_eq!(likeness.outdated(second(600)), [ONE], "one at a time");
        // All of it came up meanwhile; then other things go down.
        likeness.redraw(ONE, [].into_iter(), second(600));
        assert_eq!(likeness.outdated(second(600)), [OTHER]);
        likeness.redraw(OTHER, (0..1000).map(|tag| (tag, Tag(tag))), second(600));
        assert_eq!(likeness.outdated(second(600)), []);
        fill(&mut likeness, ONE, 5000..6000);
        assert_eq!(content(&mut likeness, second(602)), Some(1.0));
        likeness.redraw(ONE, (5000..6000).map(|tag| (tag, Tag(tag))), second(1200));
        assert_eq!(content(&mut likeness, second(1202)), None, "nothing in common any more");
    }

    #[test]
    fn what_was_staged_in_vain_lowers_what_is_expected() {
        let mut likeness = of(1..=2);
        fill(&mut likeness, ONE, 0..1000);
        fill(&mut likeness, OTHER, 0..1000);
        likeness.compare(second(10));
        let expected = |likeness: &Likeness| likeness.expectations(ONE).next().unwrap();
        let (leader, before) = expected(&likeness);
        assert_eq!(leader, OTHER);
        (0..50).for_each(|_| likeness.learn(OTHER, ONE, 0, 1000));
        assert!(!likeness.is_due(second(11)) && likeness.is_due(second(12)));
        likeness.compare(second(12));
        assert!(expected(&likeness).1 < before - 0.1, "{before}");
    }
}
