//! The VMs of one tenant and how alike they are, kept up as they change.
//!
//! In: portraits of VMs that changed, VMs that are gone, and what became of stages. Out, after each
//! [`refresh`](Similarity::refresh): neighbours and scores. Only the pairs of VMs that changed are computed anew.
//!
//! # Limits
//! Only candidates have a score (see [`super::bands`]). What was learned shows in the scores after the next refresh.

use std::collections::{BTreeMap, BTreeSet};

use super::bands::Bands;
use super::parts::{Parts, Seen};
use super::portrait::Portrait;
use super::sketch::Sketch;
use super::weights::Weights;
use crate::track::VmId;

/// So many of the best are named as neighbours.
pub const MOST_NEIGHBOURS: usize = 16;

/// A VM that another one might follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// The leader.
    pub vm: VmId,
    /// Probability that what is staged for the follower because of it is used.
    pub score: f64,
    pub parts: Parts,
}

/// What a refresh did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefreshCounts {
    /// VMs that had changed.
    pub vms: usize,
    /// Pairs that were compared.
    pub pairs: usize,
    /// Buckets of so many VMs that not all of their pairs were.
    pub crowded: usize,
}

/// One VM.
#[derive(Clone, Debug)]
struct Member {
    portrait: Portrait,
    /// All that is on its trail.
    seen: Sketch,
    /// All candidates, best first. Whoever is in this list has this VM in its own.
    leaders: Vec<Neighbour>,
}

impl Member {
    fn as_seen(&self) -> Seen<'_> {
        Seen { portrait: &self.portrait, seen: &self.seen }
    }

    /// Of those that are as good the next ones of higher number come first: so all lead about as many.
    fn sort(&mut self, own: VmId) {
        let distance = |leader: &Neighbour| leader.vm.0.wrapping_sub(own.0);
        self.leaders.sort_by(|a, b| b.score.total_cmp(&a.score).then(distance(a).cmp(&distance(b))));
    }
}

/// The VMs of one tenant.
#[derive(Clone, Debug, Default)]
pub struct Similarity {
    members: BTreeMap<VmId, Member>,
    /// Changed, or gone, since the last refresh.
    stale: BTreeSet<VmId>,
    bands: Bands,
    weights: Weights,
    /// The weights have changed since the last refresh.
    learned: bool,
}

impl Similarity {
    /// With what was learned before.
    pub fn with_weights(weights: Weights) -> Self {
        Self { weights, ..Self::default() }
    }

    /// What was learned.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// A VM is new, or has changed.
    pub fn update(&mut self, id: VmId, portrait: &Portrait) {
        let (portrait, seen) = (portrait.clone(), portrait.trail.seen());
        self.stale.insert(id);
        match self.members.get_mut(&id) {
            Some(member) => (member.portrait, member.seen) = (portrait, seen),
            None => drop(self.members.insert(id, Member { portrait, seen, leaders: Vec::new() })),
        }
    }

    /// A VM is gone; at once it is nobody's neighbour.
    pub fn forget(&mut self, id: VmId) {
        let Some(member) = self.members.remove(&id) else { return };
        self.stale.insert(id);
        for neighbour in member.leaders {
            if let Some(other) = self.members.get_mut(&neighbour.vm) {
                other.leaders.retain(|leader| leader.vm != id);
            }
        }
    }

    /// Brings neighbours and scores up to date.
    pub fn refresh(&mut self) -> RefreshCounts {
        let stale: Vec<VmId> = std::mem::take(&mut self.stale).into_iter().collect();
        let mut counts = RefreshCounts::default();
        if !stale.is_empty() {
            self.part(&stale);
            counts = self.index(&stale);
        }
        if std::mem::take(&mut self.learned) {
            for (id, member) in &mut self.members {
                member.leaders.iter_mut().for_each(|leader| leader.score = self.weights.score(&leader.parts));
                member.sort(*id);
            }
        }
        counts
    }

    /// Forgets the pairs of these VMs, sorted.
    fn part(&mut self, stale: &[VmId]) {
        let mut others = BTreeSet::new();
        for id in stale {
            if let Some(member) = self.members.get_mut(id) {
                others.extend(member.leaders.drain(..).map(|leader| leader.vm));
            }
        }
        for id in others {
            if let Some(member) = self.members.get_mut(&id) {
                member.leaders.retain(|leader| stale.binary_search(&leader.vm).is_err());
            }
        }
    }

    /// Finds and compares the pairs of these VMs, sorted.
    fn index(&mut self, stale: &[VmId]) -> RefreshCounts {
        self.bands.remove(stale);
        let mut vms = 0;
        for id in stale {
            if let Some(member) = self.members.get(id) {
                vms += 1;
                self.bands.insert(*id, &member.as_seen());
            }
        }
        self.bands.settle();
        let (pairs, crowded) = self.bands.pairs(stale);
        let known: Vec<_> = self.members.iter().map(|(id, member)| (*id, member.as_seen())).collect();
        let mut found = vec![Vec::new(); known.len()];
        let place = |id: VmId| known.binary_search_by_key(&id, |(id, _)| *id).ok();
        for (first, second) in &pairs {
            let (Some(one), Some(other)) = (place(*first), place(*second)) else { continue };
            let (forth, back) = Parts::between(&known[one].1, &known[other].1);
            let neighbour = |id, parts| Neighbour { vm: id, score: self.weights.score(&parts), parts };
            found[other].push(neighbour(*first, forth));
            found[one].push(neighbour(*second, back));
        }
        let found = self.members.iter_mut().zip(found);
        for ((id, member), leaders) in found.filter(|(_, leaders)| !leaders.is_empty()) {
            member.leaders.extend(leaders);
            member.sort(*id);
        }
        RefreshCounts { vms, pairs: pairs.len(), crowded }
    }

    /// The VMs that this one might follow, best first, at most [`MOST_NEIGHBOURS`].
    pub fn neighbours(&self, follower: VmId) -> &[Neighbour] {
        let all = self.members.get(&follower).map_or(&[][..], |member| &member.leaders);
        &all[..all.len().min(MOST_NEIGHBOURS)]
    }

    /// Probability that what is staged for the follower because of the leader is used; None where they were not
    /// compared.
    pub fn score(&self, leader: VmId, follower: VmId) -> Option<f64> {
        self.pair(leader, follower).map(|pair| pair.score)
    }

    /// Of `ended` stages for the follower because of the leader, `used` were used. Says whether the pair is known;
    /// of one that is not, nothing can be learned.
    pub fn learn(&mut self, leader: VmId, follower: VmId, used: u32, ended: u32) -> bool {
        let Some(parts) = self.pair(leader, follower).map(|pair| pair.parts) else { return false };
        self.weights.learn(&parts, used, ended);
        self.learned = true;
        true
    }

    /// All pairs that have a score: the follower, and who it might follow.
    pub fn pairs(&self) -> impl Iterator<Item = (VmId, &Neighbour)> {
        self.members
            .iter()
            .flat_map(|(follower, member)| member.leaders.iter().map(|leader| (*follower, leader)))
    }

    fn pair(&self, leader: VmId, follower: VmId) -> Option<&Neighbour> {
        self.members.get(&follower)?.leaders.iter().find(|neighbour| neighbour.vm == leader)
    }
}
