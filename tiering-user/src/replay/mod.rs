//! What the policy would have done to machines whose accesses were recorded.
//!
//! In: the events of a trace, and the rules. Out: decisions and profiles, one after another, and for each machine how
//! much was read back, beside what would have been with as much memory at each moment if the least recently used had
//! gone first, and at best. The mapping table, the policy and what is freed when are the agent's own; moves succeed at
//! once, in the place of a machine's memory. Pure: time is the trace's.
//!
//! # Limits
//! A recorded access is one that showed: of a page that stays mapped one a round. A page that goes down in the replay
//! and had stayed in memory when this was recorded comes back at its next access that showed, at the latest. Staging is
//! not replayed, nor what limits the agent: write limits, brakes other than `refault_limit`, control groups, room for
//! others. Huge pages are not told apart. A machine has one processor, and a read takes 100 us.

mod cache;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::policy::{
    Action, Bands, HeatHistogram, Reason, Refaults, Rules, cooling_epoch, demotions, note_return, promotions,
};
use crate::profile::{HORIZONS, Observed, Profile};
use crate::reclaim::{Budget, Reclaim, Return};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{Layout, PageEntry, PageIndex, PageRun, Place, Seconds, VmPages, into_runs};
use crate::tiers::{NodeTiers, TierId};
use crate::trace::{Event, Machine, Timed};
use crate::track::VmId;
use crate::vm::{Backing, Hva, RamRegion};

pub use cache::{AccessAt, lru, min};

/// Pages that may go to each tier, of each machine, in a second: 256 MiB.
const PAGES_A_SECOND: u64 = 65_536;
const READ_WAIT: Duration = Duration::from_micros(100);

/// What is replayed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub demote_after: Duration,
    pub refault_limit_percent: f64,
    /// Tiers of the ladder.
    pub tiers: u8,
}

/// Pages that were sent somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Since the trace began.
    pub second: u64,
    pub machine: String,
    pub run: PageRun,
    pub to: TierId,
    pub reason: Reason,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { second, machine, run: PageRun { first, count }, to: TierId(level), reason } = self;
        write!(f, "{second} s: {machine}: pages {first} to {} to tier {level}: {reason}", first + count - 1)
    }
}

/// What a replay tells while it goes on.
#[derive(Debug)]
pub enum Told<'a> {
    Decision(Decision),
    /// An epoch of a machine has ended, so many seconds after the trace began.
    Epoch {
        second: u64,
        machine: &'a str,
        profile: &'a Profile,
    },
}

/// What became of one machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    pub machine: String,
    pub accesses: u64,
    /// Pages that were accessed.
    pub accessed_pages: u64,
    pub demoted_bytes: u64,
    /// Pages in the first tier, the mean over the seconds.
    pub mean_bytes: u64,
    /// Accesses to pages that had been in the first tier, and neither were there any more nor had a copy there.
    pub came_back: u64,
    /// Accesses to pages that had gone out and had a copy in memory.
    pub came_back_without_read: u64,
    /// What was read, with as much memory at each moment, the least recently used going first, and at best.
    pub came_back_lru: u64,
    pub came_back_best: u64,
    /// How much of what the best has ahead of the least recently used is reached: 1 is all; below 0 is worse than that.
    /// None where both are alike.
    pub gap_closed: Option<f64>,
}

/// A replay, as far as it has come.
#[derive(Debug)]
pub struct Replay {
    settings: Settings,
    began: Option<Monotonic>,
    second: u64,
    guests: BTreeMap<VmId, Guest>,
    over: Vec<Outcome>,
    /// Accesses that were not recorded.
    pub lost: u64,
}

/// One machine.
#[derive(Debug)]
struct Guest {
    machine: Machine,
    pages: VmPages,
    profile: Profile,
    refaults: Refaults,
    reclaim: Reclaim,
    armed_at: Option<Seconds>,
    round_began: bool,
    cooled_at: u64,
    returned: u64,
    /// In memory when the recording began, and accesses since.
    first: Vec<PageIndex>,
    /// Were in the first tier at some time. Before that none of it can come back.
    seen: HashSet<PageIndex>,
    accesses: Vec<AccessAt>,
    came_back: u64,
    came_back_without_read: u64,
    demoted: u64,
    /// Sum over seconds of pages in the first tier, and how many seconds.
    in_first: (u64, u64),
}

impl Replay {
    pub fn new(settings: Settings) -> Self {
        Self { settings, began: None, second: 0, guests: BTreeMap::new(), over: Vec::new(), lost: 0 }
    }

    /// Takes in an event, after all that is due until then; `tell` is told what is decided meanwhile, and of epochs
    /// that end.
    pub fn take(&mut self, timed: &Timed, mut tell: impl FnMut(Told<'_>)) {
        let began = *self.began.get_or_insert(timed.time);
        let second = timed.time.since(began).as_secs();
        while self.second < second {
            self.second += 1;
            // Nothing happens to nobody: traces may have gaps.
            if self.guests.is_empty() {
                self.second = second;
            }
            for (vm, guest) in &mut self.guests {
                let time = began.after(Duration::from_secs(self.second));
                guest.every_second(*vm, (self.second, time), &self.settings, &mut |decision| {
                    tell(Told::Decision(decision));
                });
            }
        }
        let now = seconds(self.second);
        match &timed.event {
            Event::Appeared(machine) => self.appeared(machine, timed.time),
            Event::Gone(vm) => {
                let gone = self.guests.remove(vm);
                self.over.extend(gone.map(Guest::outcome));
            }
            Event::Lost(accesses) => self.lost += accesses,
            Event::Accessed { vm, page, write, weight_log2 } => {
                if let Some(guest) = self.guests.get_mut(vm).filter(|guest| *page < guest.machine.pages) {
                    guest.profile.access(*page, *write, timed.time, 1 << weight_log2.min(&31));
                    guest.accessed(
                        *page,
                        *write,
                        1 << weight_log2.min(&31),
                        &self.settings,
                        (timed.time, now),
                    );
                }
            }
            Event::Found { vm, run, place } => {
                if let Some(guest) = self.guests.get_mut(vm)
                    && run.first.checked_add(run.count).is_some_and(|end| end <= guest.machine.pages)
                {
                    guest.found(*run, *place, now);
                }
            }
            Event::Armed(vm) => {
                if let Some(guest) = self.guests.get_mut(vm) {
                    guest.armed_at = Some(now);
                    guest.round_began = true;
                }
            }
            // What was done then is not what is done now.
            Event::Moved { .. } => {}
            Event::Epoch { vm, usage } => {
                if let Some(guest) = self.guests.get_mut(vm) {
                    let working_sets = guest.pages.used_within(HORIZONS, now);
                    guest.profile.end_epoch(timed.time, Observed { working_sets, usage: *usage });
                    let (machine, profile) = (&guest.machine.name, &guest.profile);
                    tell(Told::Epoch { second: self.second, machine, profile });
                }
            }
        }
    }

    /// All machines, in the order in which they went, then those that were there to the end.
    pub fn outcomes(self) -> Vec<Outcome> {
        self.over.into_iter().chain(self.guests.into_values().map(Guest::outcome)).collect()
    }

    fn appeared(&mut self, machine: &Machine, time: Monotonic) {
        // Told of again after blocks were lost.
        if self.guests.get(&machine.vm).is_some_and(|guest| guest.machine == *machine) {
            return;
        }
        let replaced = self.guests.insert(machine.vm, Guest::new(machine, self.second, time));
        self.over.extend(replaced.map(Guest::outcome));
    }
}

fn seconds(second: u64) -> Seconds {
    // Wraps, as the table expects.
    Seconds((second & 0xffff) as u16)
}

impl Guest {
    fn new(machine: &Machine, second: u64, time: Monotonic) -> Self {
        // Where its RAM lies does not matter.
        let bytes = u64::from(machine.pages) * PAGE_BYTES;
        let layout = Layout::new(&[RamRegion { start: Hva(0), bytes, backing: Backing::Anonymous }]);
        Self {
            machine: machine.clone(),
            pages: VmPages::new(layout, NodeTiers(machine.node_tiers)),
            profile: Profile::new(machine.pages, time),
            refaults: Refaults::default(),
            reclaim: Reclaim::default(),
            armed_at: None,
            round_began: false,
            cooled_at: second,
            returned: 0,
            first: Vec::new(),
            seen: HashSet::new(),
            accesses: Vec::new(),
            came_back: 0,
            came_back_without_read: 0,
            demoted: 0,
            in_first: (0, 0),
        }
    }

    fn rules(&self, settings: &Settings, bands: Bands) -> Rules {
        let (demote_after, priority) = (settings.demote_after, self.machine.priority);
        let armed_at = self.armed_at;
        Rules { demote_after, priority, excess_pages: 0, bands, armed_at, keep_huge: false }
    }

    fn found(&mut self, run: PageRun, place: Place, now: Seconds) {
        for page in run.pages() {
            // Told again after blocks were lost, the replay knows better.
            if self.pages.get(page).place() != Place::Untouched {
                continue;
            }
            self.pages.update(page, |_| PageEntry::found(place, now));
            if place == Place::In(TierId(0)) {
                self.first.push(page);
                self.seen.insert(page);
            }
        }
    }

    fn accessed(
        &mut self,
        page: PageIndex,
        write: bool,
        weight: u32,
        settings: &Settings,
        (time, now): (Monotonic, Seconds),
    ) {
        let block = self.pages.block_of(page);
        let touch = self.pages.touch(page, now, write);
        let rules = self.rules(settings, Bands::ROOMY);
        let was_there = touch.before.place() == Place::In(TierId(0));
        let cost = touch.was_lower.then(|| self.reclaim.waited_for(page, weight, READ_WAIT, time));
        let read = cost.map_or(!was_there, |cost| cost == Return::Read);
        let in_use = cost == Some(Return::Copy { soon: true });
        note_return(&mut self.pages, page, touch, block, &rules, (in_use, now));
        self.came_back += u64::from(!self.seen.insert(page) && read);
        self.came_back_without_read += u64::from(touch.was_lower && !read);
        self.returned += if touch.was_lower && read { weight.into() } else { 0 };
        let capacity = self.pages.counts().get(Place::In(TierId(0))) + self.reclaim.copies();
        self.accesses.push(AccessAt { page, capacity: u32::try_from(capacity).unwrap_or(u32::MAX) });
    }

    fn every_second(
        &mut self,
        vm: VmId,
        (second, time): (u64, Monotonic),
        settings: &Settings,
        decided: &mut impl FnMut(Decision),
    ) {
        let now = seconds(second);
        let cool = match self.armed_at {
            Some(_) => std::mem::take(&mut self.round_began),
            None => {
                let epoch = cooling_epoch(&self.rules(settings, Bands::ROOMY));
                Duration::from_secs(second - self.cooled_at) >= epoch
            }
        };
        if cool {
            self.cooled_at = second;
        }
        self.pages.age(now, cool);
        let rules = self.rules(settings, HeatHistogram::of(&self.pages).bands(self.machine.pages.into()));
        let in_memory: u64 =
            (0..self.machine.node_tiers).map(|level| self.pages.counts().get(Place::In(TierId(level)))).sum();
        self.refaults.second(std::mem::take(&mut self.returned), in_memory, settings.refault_limit_percent);
        let many = self.refaults.too_many().is_some();
        let touched = u64::from(self.machine.pages) - self.pages.counts().get(Place::Untouched);
        self.reclaim.set_budget(Budget::new(1, touched, settings.refault_limit_percent, READ_WAIT));
        let sent = self.reclaim.may_send(touched, settings.demote_after, time);
        let allowance: Vec<u64> = (0..settings.tiers)
            .map(|level| match level.cmp(&self.machine.node_tiers) {
                _ if many && level >= self.machine.node_tiers => 0,
                Ordering::Equal => sent.min(PAGES_A_SECOND),
                Ordering::Less | Ordering::Greater => PAGES_A_SECOND,
            })
            .collect();
        let mut steps = demotions(vm, &self.pages, &rules, &allowance, now);
        steps.extend(promotions(vm, &self.pages, &rules, PAGES_A_SECOND, now));
        for step in steps {
            let Action::Place { to } = step.action else { continue };
            for run in into_runs(&step.pages, u32::MAX) {
                self.pages.place(run, Place::In(to));
                let machine = self.machine.name.clone();
                decided(Decision { second, machine, run, to, reason: step.reason });
            }
            if to > TierId(0) {
                self.demoted += step.pages.len() as u64;
            }
            if to.0 >= self.machine.node_tiers {
                self.reclaim.sent(&step.pages, time);
            }
            if to == TierId(1) {
                let window = u16::try_from(rules.window().as_secs()).unwrap_or(u16::MAX);
                self.pages.sent_down(&step.pages, window, now, now);
            }
        }
        let due = self.reclaim.due(PAGES_A_SECOND, time, |_| true);
        self.reclaim.freed(&due);
        self.in_first.0 += self.pages.counts().get(Place::In(TierId(0))) + self.reclaim.copies();
        self.in_first.1 += 1;
    }

    fn outcome(self) -> Outcome {
        let (sum, seconds) = self.in_first;
        let mean = sum.checked_div(seconds).unwrap_or(0);
        let came_back_lru = lru(&self.first, &self.accesses);
        let came_back_best = min(&self.first, &self.accesses);
        let ahead = came_back_lru as f64 - came_back_best as f64;
        let reached = came_back_lru as f64 - self.came_back as f64;
        let mut accessed: Vec<_> = self.accesses.iter().map(|access| access.page).collect();
        accessed.sort_unstable();
        accessed.dedup();
        Outcome {
            machine: self.machine.name,
            accesses: self.accesses.len() as u64,
            accessed_pages: accessed.len() as u64,
            demoted_bytes: self.demoted * PAGE_BYTES,
            mean_bytes: mean * PAGE_BYTES,
            came_back: self.came_back,
            came_back_without_read: self.came_back_without_read,
            came_back_lru,
            came_back_best,
            gap_closed: (ahead > 0.0).then(|| reached / ahead),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings =
        Settings { demote_after: Duration::from_secs(20), refault_limit_percent: 100.0, tiers: 3 };
    const VM: VmId = VmId(3);

    fn at(ms: u64, event: Event) -> Timed {
        Timed { time: Monotonic(1_000_000_000_000 + ms * 1_000_000), event }
    }

    fn appeared() -> Timed {
        at(
            0,
            Event::Appeared(Machine {
                vm: VM,
                name: "web-1".into(),
                pages: 2048,
                priority: 50,
                node_tiers: 1,
            }),
        )
    }

    /// A hundred pages that are accessed every second, and a walk through a thousand others once in two minutes, for
    /// ten.
    fn trace() -> Vec<Timed> {
        walk_every(120)
    }

    fn walk_every(seconds: u64) -> Vec<Timed> {
        let mut events = vec![appeared()];
        let access = |page| Event::Accessed { vm: VM, page, write: false, weight_log2: 0 };
        for second in 0..600 {
            events.extend((0..100).map(|page| at(second * 1000 + u64::from(page), access(page))));
            if second % seconds == 5 {
                events.extend((1000..2000).map(|page| at(second * 1000 + 100, access(page))));
            }
        }
        events
    }

    fn replay(events: &[Timed], settings: Settings) -> (Vec<String>, Vec<Outcome>) {
        let mut replay = Replay::new(settings);
        let mut decisions = Vec::new();
        events.iter().for_each(|event| {
            replay.take(event, |told| {
                if let Told::Decision(decision) = told {
                    decisions.push(decision.to_string());
                }
            });
        });
        (decisions, replay.outcomes())
    }

    #[test]
    fn what_is_idle_goes_down_and_what_comes_back_is_counted() {
        let (decisions, outcomes) = replay(&trace(), SETTINGS);
        let [outcome] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!((outcome.accesses, outcome.accessed_pages), (100 * 600 + 5000, 1100));
        assert!(outcome.came_back_without_read > 0 && outcome.demoted_bytes > 0, "{outcome:?}");
        assert!(outcome.came_back * 10 < outcome.came_back_without_read, "{outcome:?}");
        assert!(outcome.came_back_best <= outcome.came_back_lru);
        let hot = decisions.iter().filter(|decision| decision.contains("pages 0 to "));
        assert_eq!(hot.count(), 0, "what is in use stays");
        // The walk began at second 5; its heat is gone with the second epoch of 40 s.
        assert!(decisions[0].ends_with("to tier 1: idle for 75 s or more"), "{}", decisions[0]);
    }

    #[test]
    fn other_rules_decide_otherwise_and_the_same_ones_the_same() {
        let (patient, outcomes) =
            replay(&trace(), Settings { demote_after: Duration::from_secs(300), ..SETTINGS });
        assert!(patient.is_empty() && outcomes[0].came_back == 0, "{patient:?}");
        assert_eq!(outcomes[0].gap_closed, None, "all fits");
        assert_eq!(replay(&trace(), SETTINGS), replay(&trace(), SETTINGS));
        let strict = Settings { refault_limit_percent: 0.0, ..SETTINGS };
        let came_back = |settings| replay(&walk_every(300), settings).1[0].came_back;
        assert_eq!((came_back(strict), came_back(SETTINGS)), (0, 1000), "what nobody may wait for is kept");
    }

    #[test]
    fn what_was_down_from_the_beginning_has_not_come_back() {
        let run = PageRun { first: 0, count: 100 };
        let mut events = trace();
        events.insert(1, at(0, Event::Found { vm: VM, run, place: Place::In(TierId(1)) }));
        assert_eq!(replay(&events, SETTINGS).1[0].came_back, replay(&trace(), SETTINGS).1[0].came_back);
    }

    #[test]
    fn events_that_make_no_sense_do_no_harm() {
        let events = [
            at(0, Event::Accessed { vm: VM, page: 1, write: false, weight_log2: 0 }),
            appeared(),
            at(1, Event::Accessed { vm: VM, page: 2048, write: true, weight_log2: 31 }),
            at(
                1,
                Event::Found {
                    vm: VM,
                    run: PageRun { first: 2000, count: 100 },
                    place: Place::In(TierId(0)),
                },
            ),
            at(
                1,
                Event::Found { vm: VM, run: PageRun { first: 5, count: u32::MAX }, place: Place::Untouched },
            ),
            at(2, Event::Accessed { vm: VM, page: 2047, write: true, weight_log2: 31 }),
            at(3, Event::Lost(7)),
            appeared(),
            at(4, Event::Gone(VM)),
            at(5, Event::Gone(VM)),
            at(1 << 40, appeared().event),
        ];
        let (_, outcomes) = replay(&events, SETTINGS);
        assert_eq!(outcomes.iter().map(|outcome| outcome.accesses).collect::<Vec<_>>(), [1, 0]);
    }
}
