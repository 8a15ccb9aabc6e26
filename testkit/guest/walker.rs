//! Executes the touches of a pattern: in rounds, freely or on command, and a final pass over everything.
//!
//! In: a clock, the command to go. Out: how long to pause, what a phase was like, and at the end the result. It works
//! in short steps, so that commands are heard. Which page is touched is not decided here: [`Pattern::touches`] says it.

use crate::memory::Memory;
use crate::pace::Pace;
use crate::phase::{Phase, Totals};
use anyhow::Result;
use std::time::Duration;
use tiering_testkit::pattern::{GuestResult, Pattern, PhaseResult, Touch, Touches};

/// Touches between the rounds in one step, and the pause after it: at most 640 touches a second.
const BETWEEN_BURST: usize = 64;
const BETWEEN_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause where there is nothing to do; a command ends it.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// The serial line is slow: a guest that runs freely says something at most this often.
const PHASE_EVERY: Duration = Duration::from_secs(1);

pub struct Walker {
    memory: Memory,
    pattern: Pattern,
    pace: Pace,
    touches: Touches,
    between: Touches,
    /// Rounds that were commanded and have not begun.
    asked: u64,
    /// Touches that the round under way has left.
    left: u64,
    /// When the latest round began; before the first one, when the guest was ready.
    round_began: Option<Duration>,
    /// Rounds that were not told yet.
    phase: Option<Phase>,
    phases: u64,
    told: Option<Duration>,
    /// All that was done, but for the phase under way.
    done: Totals,
}

/// What to do until the next step, and what to tell.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub pause: Duration,
    pub phase: Option<PhaseResult>,
}

impl Walker {
    /// Fills the memory.
    pub fn new(pattern: &Pattern) -> Result<Self> {
        Ok(Self {
            memory: Memory::new(pattern)?,
            pace: Pace::of(pattern),
            touches: pattern.touches(),
            between: pattern.between(),
            pattern: pattern.clone(),
            asked: 0,
            left: 0,
            round_began: None,
            phase: None,
            phases: 0,
            told: None,
            done: Totals::new(),
        })
    }

    /// One round more, where rounds are on command.
    pub fn go(&mut self) {
        self.asked += 1;
    }

    /// Does the next few touches.
    pub fn step(&mut self, clock: &impl Fn() -> Duration) -> Step {
        let now = clock();
        if self.left == 0 && !self.round_begins(now) {
            return Step { pause: self.step_between(now), phase: None };
        }
        let mut phase = self.phase.take().unwrap_or_else(|| Phase::new(now, self.done.touches));
        for _ in 0..self.left.min(self.pace.burst()) {
            let Some(touch) = self.touches.next() else {
                self.left = 0;
                break;
            };
            self.left -= 1;
            let ns = self.memory.access_ns(touch.page, touch.write);
            phase.max = phase.max.max(ns);
            phase.totals.latency.record(ns);
            phase.totals.touches += 1;
            self.touch(touch, &mut phase.totals);
        }
        let now = clock();
        let pause = self.pace.pause(now);
        if self.left > 0 {
            self.phase = Some(phase);
            return Step { pause, phase: None };
        }
        phase.totals.rounds += 1;
        let soon = self.told.is_some_and(|told| now.saturating_sub(told) < PHASE_EVERY);
        if soon && !self.pattern.rounds_on_command {
            self.phase = Some(phase);
            return Step { pause, phase: None };
        }
        self.told = Some(now);
        self.phases += 1;
        let result = phase.result(self.phases, &self.pattern, now);
        self.done.add(&phase.totals);
        Step { pause, phase: Some(result) }
    }

    /// Verifies every page once more.
    pub fn finish(&mut self) -> GuestResult {
        if let Some(phase) = self.phase.take() {
            self.done.add(&phase.totals);
        }
        for number in 0..self.memory.len() {
            self.done.ok &= self.memory.verify(number);
        }
        GuestResult {
            checksum_ok: self.done.ok,
            pages_verified: self.memory.len() as u64,
            touches: self.done.touches + self.done.between_touches,
            round_touches: self.done.touches,
            writes: self.done.writes,
            loops: self.done.rounds,
            touch_ns: self.done.latency.quantiles(),
        }
    }

    /// Begins a round if it is time or was commanded.
    fn round_begins(&mut self, now: Duration) -> bool {
        let began = *self.round_began.get_or_insert(now);
        let begins = if self.pattern.rounds_on_command {
            self.asked > 0
        } else {
            self.pattern.round_len() > 0 && now.saturating_sub(began) >= self.every()
        };
        if begins {
            self.asked = self.asked.saturating_sub(1);
            self.left = self.pattern.round_len();
            self.round_began = Some(now);
        }
        begins
    }

    fn every(&self) -> Duration {
        Duration::from_millis(self.pattern.round_every_ms())
    }

    /// What is to be done while no round is under way, and the pause after it.
    fn step_between(&mut self, now: Duration) -> Duration {
        if self.pattern.rounds_on_command {
            return IDLE_PAUSE;
        }
        let mut totals = Totals::new();
        for _ in 0..BETWEEN_BURST {
            let Some(touch) = self.between.next() else { break };
            totals.between_touches += 1;
            self.touch(touch, &mut totals);
        }
        self.done.add(&totals);
        if totals.between_touches > 0 {
            return BETWEEN_PAUSE;
        }
        let due = self.round_began.unwrap_or(now) + self.every();
        if self.pattern.round_len() == 0 { IDLE_PAUSE } else { due.saturating_sub(now).min(IDLE_PAUSE) }
    }

    fn touch(&mut self, touch: Touch, totals: &mut Totals) {
        totals.ok &= self.memory.verify(touch.page);
        if touch.write {
            self.memory.write(touch.page);
            totals.writes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiering_testkit::pattern::Access;

    const SECOND: Duration = Duration::from_secs(1);

    fn small(access: Access) -> Pattern {
        Pattern { seed: 1, mem_mib: 3, access, ..Pattern::default() }
    }

    fn walker(pattern: &Pattern) -> Walker {
        pattern.check().unwrap();
        Walker::new(pattern).unwrap()
    }

    /// Steps at one moment until a phase is told, and the pauses on the way.
    fn round(walker: &mut Walker, now: Duration) -> (PhaseResult, Vec<Duration>) {
        let mut pauses = Vec::new();
        loop {
            let step = walker.step(&|| now);
            pauses.push(step.pause);
            if let Some(phase) = step.phase {
                return (phase, pauses);
            }
            assert!(pauses.len() < 1000, "no end");
        }
    }

    #[test]
    fn the_loop_set_is_walked_once_a_period_and_the_hot_set_meanwhile() {
        let access = Access::HotAndLoop { hot_mib: 1, loop_mib: 1, loop_every_ms: 1000 };
        let mut walker = walker(&Pattern { write_one_in: 2, ..small(access) });
        let quiet = Step { pause: BETWEEN_PAUSE, phase: None };
        assert_eq!(walker.step(&|| SECOND), quiet);
        let (phase, pauses) = round(&mut walker, 2 * SECOND);
        assert_eq!(pauses, [Duration::from_millis(5); 4]);
        assert_eq!((phase.number, phase.touches, phase.rounds, phase.ok), (1, 256, 1, true));
        assert_eq!(walker.step(&|| 2 * SECOND), quiet);
        let result = walker.finish();
        assert!(result.checksum_ok);
        assert_eq!((result.loops, result.touches), (1, 256 + 2 * BETWEEN_BURST as u64));
        assert_eq!((result.pages_verified, result.round_touches), (768, 256));
    }

    #[test]
    fn on_command_nothing_is_touched_but_one_round_for_each_go() {
        let access = Access::Follow { set_mib: 1, order_seed: 2, overlap_percent: 50 };
        let mut walker = walker(&Pattern { rounds_on_command: true, write_one_in: 3, ..small(access) });
        let idle = Step { pause: IDLE_PAUSE, phase: None };
        assert_eq!(walker.step(&|| SECOND), idle);
        walker.go();
        walker.go();
        let truth: Vec<_> = walker.pattern.touches().take(512).collect();
        for (number, truth) in (1..).zip(truth.chunks(256)) {
            let (phase, _) = round(&mut walker, 2 * SECOND);
            assert_eq!((phase.number, phase.name.as_str(), phase.rounds), (number, "follow", 1));
            assert_eq!(phase.truth(&walker.pattern).collect::<Vec<_>>(), truth);
            assert_eq!(phase.writes, truth.iter().filter(|touch| touch.write).count() as u64);
            assert_eq!(phase.latency.iter().map(|(_, count)| count).sum::<u64>(), 256);
            assert!(phase.p50 <= phase.p99 && phase.max > 0, "{phase:?}");
        }
        assert_eq!(walker.step(&|| 3 * SECOND), idle);
        assert_eq!(walker.finish().touches, 512);
    }

    #[test]
    fn short_rounds_are_told_together_at_most_once_a_second() {
        let mut walker = walker(&Pattern { round_touches: 10, ..small(Access::Uniform { set_mib: 1 }) });
        assert_eq!(round(&mut walker, SECOND).0.rounds, 1);
        for _ in 0..5 {
            assert_eq!(walker.step(&|| SECOND), Step { pause: Duration::ZERO, phase: None });
        }
        let (phase, _) = round(&mut walker, 2 * SECOND);
        assert_eq!((phase.number, phase.rounds, phase.first, phase.touches), (2, 6, 10, 60));
    }

    #[test]
    fn a_periodic_guest_waits_for_its_time() {
        let mut walker = walker(&small(Access::Periodic { set_mib: 1, every_ms: 1500 }));
        let pause = |pause| Step { pause, phase: None };
        assert_eq!(walker.step(&|| SECOND), pause(IDLE_PAUSE));
        assert_eq!(walker.step(&|| 2 * SECOND), pause(SECOND / 2));
        assert_eq!(round(&mut walker, 5 * SECOND / 2).0.touches, 256);
        assert_eq!(walker.finish().loops, 1);
    }

    #[test]
    fn an_idle_guest_touches_nothing_and_answers_a_go() {
        let idle = small(Access::Idle);
        assert_eq!(walker(&idle).step(&|| SECOND), Step { pause: IDLE_PAUSE, phase: None });
        let mut walker = walker(&Pattern { rounds_on_command: true, ..idle });
        walker.go();
        assert_eq!(round(&mut walker, SECOND).0.touches, 0);
    }
}
