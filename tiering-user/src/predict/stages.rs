//! Pages brought up ahead of need, and what became of them.
//!
//! Each stage ends in one of two ways: the page is touched (used; late if that was before the stage was done), or its
//! deadline passes (wasted). What it was staged for, its [`Origin`], is judged by that ([`Record`]): each has a
//! confidence of its own, and a window, by which it is limited how many of its stages are open since it had to prove
//! itself last. What an origin that is not trusted predicts is only noted ([`Shadows`]); and all that are trusted
//! without a proof have [`UNPROVEN_MOST`] together.
//!
//! # Limits
//! One confidence an origin, not one a page. Whether a page that is not touched is wasted shows at its deadline only.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::last_day::{LastDay, Worth};
use super::record::Record;
use super::shadow::Shadows;
use super::stage::{OriginCounts, Request, Stage, StageCounts, Used, Wasted};
use super::{Calibration, Delays, Foreseen, Match, Origin};
use crate::config::Priors;
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// Stages of a VM, open or waiting, of all origins together that have not proved anything.
const UNPROVEN_MOST: u32 = 1024;

/// What to do with a chance to stage a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chance {
    /// Stage it: it is likely enough to be used.
    Taken,
    /// Not for this reason alone: it is doubtful, or not known. It is to be [`shadowed`](Stages::shadowed).
    Shadowed,
    /// Perhaps later: so much is open that there is no room for more.
    NoRoom,
}

/// The stages of one VM.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    open: HashMap<PageIndex, Stage>,
    /// By when they end at the latest. A page may stand here after its stage has ended.
    deadlines: BTreeSet<(Monotonic, PageIndex)>,
    records: BTreeMap<Origin, Record>,
    shadows: Shadows,
    /// Touches of what was in swap and not staged.
    misses: u64,
    /// Of other VMs, where it is known how alike they are.
    expected: BTreeMap<VmId, f64>,
    /// Counts of VMs that have gone, by the kind of match.
    gone: BTreeMap<Option<Match>, StageCounts>,
    gone_foreseen: BTreeMap<Option<Match>, Foreseen>,
    calibration: Calibration,
    last_day: LastDay,
    without_feedback: bool,
    /// What origins begin with.
    pub priors: Priors,
    /// From a touch of another VM until what is staged for it was asked of the kernel; until it was mapped.
    pub delays: Delays,
    pub mapping_delays: Delays,
}

impl Stages {
    /// Nothing is learned from what becomes of stages: to measure what that is worth.
    pub fn without_feedback() -> Self {
        Self { without_feedback: true, ..Self::default() }
    }

    /// Of all origins.
    pub fn counts(&self) -> StageCounts {
        sum(self.records.values().map(|record| record.counts).chain(self.gone.values().copied()))
    }

    /// Of what is predicted from the VM's own touches, or by this kind of match from those of others.
    pub fn counts_by(&self, by: Option<Match>) -> StageCounts {
        let records = self.records.iter().filter(|(origin, _)| origin.by() == by);
        sum(records.map(|(_, record)| record.counts).chain(self.gone.get(&by).copied()))
    }

    /// What became of what was predicted in the shadow by this kind of match.
    pub fn predicted_by(&self, by: Option<Match>) -> Foreseen {
        let records = self.records.iter().filter(|(origin, _)| origin.by() == by);
        let all = records.map(|(_, record)| record.foreseen).chain(self.gone_foreseen.get(&by).copied());
        all.fold(Foreseen::default(), |mut sum, foreseen| {
            sum += foreseen;
            sum
        })
    }

    /// Of all that another VM predicted.
    pub fn counts_of(&self, leader: VmId) -> StageCounts {
        let records = self.records.iter().filter(|(origin, _)| origin.leader() == Some(leader));
        sum(records.map(|(_, record)| record.counts))
    }

    /// How what other VMs predicted ended since the last call: the VM, pages used, and pages that ended.
    pub fn take_ends(&mut self) -> Vec<(VmId, u64, u64)> {
        let mut ends: BTreeMap<VmId, (u64, u64)> = BTreeMap::new();
        for (origin, record) in &mut self.records {
            if let Some(leader) = origin.leader() {
                let (used, ended) = record.take_ends();
                let sum = ends.entry(leader).or_default();
                (sum.0, sum.1) = (sum.0 + used, sum.1 + ended);
            }
        }
        let some = ends.into_iter().filter(|(_, (_, ended))| *ended > 0);
        some.map(|(leader, (used, ended))| (leader, used, ended)).collect()
    }

    /// What is known of each origin of which anything is.
    pub fn origins(&self) -> impl Iterator<Item = (Origin, OriginCounts)> + '_ {
        let told = |record: &Record| OriginCounts {
            counts: record.counts,
            confidence: record.confidence(),
            window: record.window(),
            foreseen: record.foreseen,
        };
        self.records
            .iter()
            .filter(|(_, record)| {
                record.counts != StageCounts::default() || record.foreseen != Foreseen::default()
            })
            .map(move |(origin, record)| (*origin, told(record)))
    }

    /// How well what was thought of stages agrees with what became of them.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// What staging was worth lately.
    pub fn last_day(&self) -> &LastDay {
        &self.last_day
    }

    /// The VM touched a page that was staged for this, and did not wait for a read.
    pub fn spared(&mut self, origin: Origin, now: Monotonic) {
        self.last_day.note(origin.leader(), Worth { avoided: 1, wasted: 0 }, now);
    }

    /// Whether pages are staged for this.
    pub fn is_trusted(&self, origin: Origin, threshold: f64) -> bool {
        self.record(origin).is_trusted(threshold)
    }

    /// Before anything is known of what another VM predicts, it is thought right with this probability.
    pub fn expect(&mut self, leader: VmId, probability: f64) {
        self.expected.insert(leader, probability);
        let of_it = self.records.iter_mut().filter(|(origin, _)| origin.leader() == Some(leader));
        of_it.for_each(|(_, record)| record.expect(probability));
    }

    /// How many pages ahead may be staged for this.
    pub fn window(&self, origin: Origin) -> u32 {
        self.record(origin).window()
    }

    /// What to do with a chance to stage for this.
    pub fn chance(&mut self, origin: Origin, threshold: f64, now: Monotonic) -> Chance {
        let misses = self.misses;
        let wrong = self.shadows.expire(origin, now);
        let shadow_has_room = self.shadows.has_room(origin);
        let record = self.record_mut(origin);
        (0..wrong).for_each(|_| record.foresaw(false, misses));
        record.fade(now);
        record.look_for_silence(misses);
        if !record.is_trusted(threshold) {
            if shadow_has_room { Chance::Shadowed } else { Chance::NoRoom }
        } else if self.has_room(origin, now) {
            Chance::Taken
        } else {
            Chance::NoRoom
        }
    }

    fn has_room(&self, origin: Origin, now: Monotonic) -> bool {
        let record = self.record(origin);
        let unproven = || self.records.values().filter(|record| !record.is_proven());
        // One that was proven and is not any more may have many: they do not stop all others.
        let pending = || unproven().map(|record| record.pending().min(UNPROVEN_MOST / 4)).sum::<u32>();
        record.has_room(now) && (record.is_proven() || pending() < UNPROVEN_MOST)
    }

    /// `origin`, which is not trusted, predicts `page`, which is in swap. Returns how sure it is, if that is known.
    pub fn shadowed(&mut self, page: PageIndex, origin: Origin, now: Monotonic) -> Option<f64> {
        self.shadows.note(origin, page, now);
        let record = self.record(origin);
        record.has_proof().then(|| record.confidence())
    }

    /// `page` was touched, which was in swap or staged; `missed` if it had not been staged.
    pub fn came_up(&mut self, page: PageIndex, missed: bool, now: Monotonic) {
        self.misses += u64::from(missed);
        for (origin, right) in self.shadows.touched(page, now) {
            let misses = self.misses;
            self.record_mut(origin).foresaw(right, misses);
        }
    }

    /// Takes the room of one page in the window, if there is any, until it is [`requested`](Self::requested) or
    /// [`withdrawn`](Self::withdrawn).
    pub fn reserve(&mut self, origin: Origin, now: Monotonic) -> bool {
        let room = self.has_room(origin, now);
        self.record_mut(origin).waiting += u32::from(room);
        room
    }

    /// A page that was worth it came up before it was requested.
    pub fn withdrawn(&mut self, origin: Origin, now: Monotonic) {
        self.dropped(origin);
        let misses = self.misses;
        if let Some(record) = self.records.get_mut(&origin) {
            record.was_right(misses);
            record.met(true, now);
        }
    }

    /// A page that was worth it waited too long, or too little memory is left.
    pub fn dropped(&mut self, origin: Origin) {
        if let Some(record) = self.records.get_mut(&origin) {
            record.waiting = record.waiting.saturating_sub(1);
        }
    }

    fn record_mut(&mut self, origin: Origin) -> &mut Record {
        let expected = origin.leader().and_then(|leader| self.expected.get(&leader)).copied();
        let (without_feedback, priors) = (self.without_feedback, self.priors);
        self.records.entry(origin).or_insert_with(|| match without_feedback {
            true => Record::of(origin, None, &priors).without_feedback(),
            false => Record::of(origin, expected, &priors),
        })
    }

    fn record(&self, origin: Origin) -> Record {
        let expected = || origin.leader().and_then(|leader| self.expected.get(&leader)).copied();
        self.records.get(&origin).copied().unwrap_or_else(|| Record::of(origin, expected(), &self.priors))
    }

    /// Whether pages that are staged for this may be mapped at once.
    pub fn is_sure(&self, origin: Origin) -> bool {
        self.record(origin).is_sure()
    }

    /// Probability that a page that is staged for this will be used.
    pub fn confidence(&self, origin: Origin) -> f64 {
        self.record(origin).confidence()
    }

    /// A page was asked to be brought up.
    pub fn requested(&mut self, request: Request, now: Monotonic) {
        // It may have come up and gone down again unseen: then the former stage counts neither way.
        self.failed(request.page);
        let misses = self.misses;
        let record = self.record_mut(request.origin);
        let attempt = record.opened(misses);
        let confidence = record.confidence();
        let stage = Stage { request, requested: now, done: None, confidence, attempt, mapped: false };
        self.open.insert(request.page, stage);
        self.deadlines.insert((stage.deadline(), request.page));
    }

    /// `page` is up.
    pub fn done(&mut self, page: PageIndex, now: Monotonic) {
        if let Some(stage) = self.open.get_mut(&page) {
            stage.done = Some(now);
            let Request { origin, in_memory, .. } = stage.request;
            match origin {
                Origin::Touched(..) if in_memory => self.delays.note(now.since(stage.request.predicted)),
                _ => {}
            }
            self.tally(origin).lifted += u64::from(!in_memory);
        }
    }

    /// `page`, which was to go to a faster swap tier, is there; or it is not, and the stage came to nothing. A stage
    /// into memory that began since is none of that.
    pub fn lifted(&mut self, page: PageIndex, arrived: bool, now: Monotonic) {
        if self.open.get(&page).is_some_and(|stage| !stage.request.in_memory) {
            if arrived { self.done(page, now) } else { self.failed(page) }
        }
    }

    /// Whether `page` is on its way to a faster swap tier.
    pub fn is_lifted(&self, page: PageIndex) -> bool {
        self.open.get(&page).is_some_and(|stage| !stage.request.in_memory && stage.done.is_none())
    }

    /// `page`, which is up, is to be mapped too.
    pub fn mapping(&mut self, page: PageIndex) {
        if let Some(stage) = self.open.get_mut(&page) {
            stage.mapped = true;
        }
    }

    /// The origin of the stage of `page`, if one is open.
    pub fn origin_of(&self, page: PageIndex) -> Option<Origin> {
        self.open.get(&page).map(|stage| stage.request.origin)
    }

    /// Pages that are up in memory and wait, not mapped, for their first touch.
    pub fn up_unmapped(&self) -> impl Iterator<Item = PageIndex> + '_ {
        let waits = |stage: &Stage| stage.done.is_some() && stage.request.in_memory && !stage.mapped;
        self.open.iter().filter(move |(_, stage)| waits(stage)).map(|(page, _)| *page)
    }

    /// `page`, which is up, was mapped too.
    pub fn mapped(&mut self, page: PageIndex, now: Monotonic) {
        if let Some(stage) = self.open.get(&page) {
            let Request { origin, predicted, .. } = stage.request;
            if let Origin::Touched(..) = origin {
                self.mapping_delays.note(now.since(predicted));
            }
            self.tally(origin).mapped += 1;
        }
    }

    /// The stage of `page` came to nothing, or it was sent down again: it counts neither way.
    pub fn failed(&mut self, page: PageIndex) {
        if let Some(stage) = self.open.remove(&page) {
            let counts = self.tally(stage.request.origin);
            counts.issued -= 1;
            counts.lifted -= u64::from(!stage.request.in_memory && stage.done.is_some());
            self.close(&stage);
        }
    }

    /// `page` was touched at `time`. Returns the stage that ended by it, if one did.
    pub fn touched(&mut self, page: PageIndex, time: Monotonic) -> Option<Used> {
        let stage = self.open.remove(&page)?;
        let late = stage.done.is_none_or(|done| time < done);
        let counts = self.tally(stage.request.origin);
        counts.used += 1;
        counts.late += u64::from(late);
        self.calibration.note(stage.confidence, true);
        let misses = self.misses;
        if let Some(record) = self.close(&stage) {
            record.used(misses);
            record.met(late, time);
        }
        Some(Used { origin: stage.request.origin, in_time: !late, tier: stage.request.to })
    }

    /// Stages that were not used in time end: as wasted where their use would have been seen, else they count neither
    /// way, and those that are mapped are told of apart: they may be in use. All touches were seen since `unseen`.
    pub fn expire(&mut self, now: Monotonic, unseen: Monotonic) -> Wasted {
        let mut wasted = Wasted::default();
        while let Some((deadline, page)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_first();
            // A page may have been used and staged anew since.
            let Some(stage) = self.open.get(&page).copied().filter(|stage| stage.deadline() == deadline)
            else {
                continue;
            };
            let seen = stage.requested >= unseen;
            match (stage.request.in_memory, stage.mapped) {
                (true, true) if !seen => wasted.in_use.push(page),
                (true, true) => wasted.mapped.push(page),
                (true, false) => wasted.unmapped.push(page),
                (false, _) => {}
            }
            if !seen {
                self.failed(page);
                continue;
            }
            self.open.remove(&page);
            self.tally(stage.request.origin).wasted += 1;
            self.last_day.note(stage.request.origin.leader(), Worth { avoided: 0, wasted: 1 }, now);
            self.calibration.note(stage.confidence, false);
            if let Some(record) = self.close(&stage) {
                record.wasted();
            }
        }
        wasted.unmapped.sort_unstable();
        wasted.mapped.sort_unstable();
        wasted
    }

    /// Forgets what is known about another VM, which has gone.
    pub fn forget(&mut self, vm: VmId) {
        self.expected.remove(&vm);
        self.shadows.forget(vm);
        for (origin, record) in self.records.extract_if(.., |origin, _| origin.leader() == Some(vm)) {
            *self.gone.entry(origin.by()).or_default() += record.counts;
            *self.gone_foreseen.entry(origin.by()).or_default() += record.foreseen;
        }
    }

    fn tally(&mut self, origin: Origin) -> &mut StageCounts {
        match self.records.get_mut(&origin) {
            Some(record) => &mut record.counts,
            None => self.gone.entry(origin.by()).or_default(),
        }
    }

    /// A stage is not open any more. Returns the record that is judged by it: of a VM that has gone there is none, and
    /// none for what was staged before its origin had to prove itself anew.
    fn close(&mut self, stage: &Stage) -> Option<&mut Record> {
        let record = self.records.get_mut(&stage.request.origin)?;
        record.closed(stage.attempt).then_some(record)
    }
}

fn sum(counts: impl Iterator<Item = StageCounts>) -> StageCounts {
    counts.fold(StageCounts::default(), |mut sum, counts| {
        sum += counts;
        sum
    })
}

#[cfg(test)]
#[path = "stages_tests.rs"]
mod tests;
