//! How fast pages of one VM may go to one tier.
//!
//! In, once a second: a [`Load`]. Out: a [`Rate`], and what limits it. Fast down, slow up: while something brakes, the
//! rate halves every second; when nothing does, it grows by [`STEP`] every second, so that it is whole again after a
//! minute. Where the VM waits for memory more than it does by itself, where too many pages come back, and where
//! pages would have to come up first and there is no memory for that, nothing goes at all; a slow device leaves a
//! trickle, which shows when it is over.
//!
//! The first two spare the VM, and never keep room from those who lack it: what it has beyond its share of the first
//! tier, or of a control group that holds several VMs, goes all the same while that is short. Otherwise the kernel would
//! take pages of whomever it meets.
//!
//! Pure: one call is one second.
//!
//! # Limits
//! The numbers are chosen, not tuned: they were not compared with others under real load.

use std::fmt;
use std::time::Duration;

use super::refaults::TooMany;
use super::stalls::Stall;
use super::tier_load::TierLoad;

/// Most pages a second: 256 MiB, as many as are planned at a time.
pub const MOST: u64 = 65_536;
/// What a rate grows by in a second without a brake: 4 MiB.
pub const STEP: u64 = 1024;
/// What a rate does not fall below: 1 MiB a second.
pub const LEAST: u64 = 256;
/// A tier is slow when a read takes this many times what it took at rest.
const SLOW_FACTOR: u64 = 4;
/// Requests that a device has at a time when it is busy enough.
const LONG_QUEUE: u64 = 64;

/// What the brakes go by; none where it cannot be told, which brakes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// The VM waits for memory more than it does by itself.
    pub stall: Option<Stall>,
    /// Percent of the first tier that is free, and the least of it for moves that need memory on the way.
    pub free_percent: Option<f64>,
    pub least_free_percent: f64,
    /// The pages come from another swap tier.
    pub from_swap: bool,
    pub tier: TierLoad,
    /// Below which mean no device is slow: a fast disk that is merely in use is no reason to wait.
    pub slow_read: Duration,
    /// The VM waited for too many of the pages that went down.
    pub refaults: Option<TooMany>,
    /// Pages that make room which others lack: those go whatever the VM itself waits for.
    pub relief_pages: u64,
}

/// What slows demotion down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Brake {
    Stalls(Stall),
    LittleMemory { percent: f64, least: f64 },
    SlowDevice { read_latency_ns: u64, at_rest_ns: u64 },
    LongQueue { in_flight: u64 },
    Refaults(TooMany),
}

/// What a brake leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Nothing,
    Relief,
    Trickle,
}

impl Brake {
    /// The brakes that this load calls for, the hardest first.
    fn all(load: &Load) -> impl Iterator<Item = Self> {
        let least = load.least_free_percent;
        let short = load.free_percent.filter(|free| load.from_swap && *free < least);
        let slow = |ns: &u64| {
            let rest = load.tier.read_latency_at_rest_ns;
            Duration::from_nanos(*ns) > load.slow_read && rest.is_some_and(|rest| *ns > rest * SLOW_FACTOR)
        };
        let slow = load.tier.read_latency_ns.filter(slow).zip(load.tier.read_latency_at_rest_ns);
        let long = load.tier.in_flight.filter(|in_flight| *in_flight > LONG_QUEUE);
        let brakes = [
            load.stall.map(Self::Stalls),
            short.map(|percent| Self::LittleMemory { percent, least }),
            load.refaults.map(Self::Refaults),
            slow.map(|(read_latency_ns, at_rest_ns)| Self::SlowDevice { read_latency_ns, at_rest_ns }),
            long.map(|in_flight| Self::LongQueue { in_flight }),
        ];
        brakes.into_iter().flatten()
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Stalls(_) => "stalls",
            Self::LittleMemory { .. } => "little memory",
            Self::SlowDevice { .. } => "slow device",
            Self::LongQueue { .. } => "long queue",
            Self::Refaults(_) => "refaults",
        }
    }

    fn leaves(self) -> Leaves {
        match self {
            Self::LittleMemory { .. } => Leaves::Nothing,
            Self::Stalls(_) | Self::Refaults(_) => Leaves::Relief,
            Self::SlowDevice { .. } | Self::LongQueue { .. } => Leaves::Trickle,
        }
    }
}

impl fmt::Display for Brake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalls(stall) => stall.fmt(f),
            Self::LittleMemory { percent, least } => write!(
                f,
                "{percent:.1} % of the first tier is free: pages come up on their way between swap tiers from {least} % on"
            ),
            Self::SlowDevice { read_latency_ns, at_rest_ns } => write!(
                f,
                "a read from the tier takes {} us, at rest {} us",
                read_latency_ns / 1000,
                at_rest_ns / 1000
            ),
            Self::LongQueue { in_flight } => write!(f, "the tier's device has {in_flight} requests to do"),
            Self::Refaults(TooMany { debt_pages, pages_a_minute }) => write!(
                f,
                "it waited for {debt_pages:.0} demoted pages more than it may ({pages_a_minute:.0} a minute)"
            ),
        }
    }
}

impl Limited {
    /// A word for what limits, without its numbers.
    pub fn kind(self) -> Option<&'static str> {
        match self {
            Self::No => None,
            Self::By(brake) | Self::ButForRelief(brake) | Self::Until(brake) => Some(brake.kind()),
        }
    }
}

/// How fast pages may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub pages_per_s: u64,
    pub limited_by: Limited,
}

/// Whether something limits a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limited {
    No,
    /// Now.
    By(Brake),
    /// Now, and what makes room that others lack goes all the same.
    ButForRelief(Brake),
    /// It is over, and the rate is on its way up again.
    Until(Brake),
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("nothing"),
            Self::By(brake) => brake.fmt(f),
            Self::ButForRelief(brake) => {
                write!(f, "{brake}; only what makes room where memory is short goes down")
            }
            Self::Until(brake) => write!(f, "slowly up again: {brake}"),
        }
    }
}

/// The brakes of one VM towards one tier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Governor {
    all: Ramp,
    /// What the tier's device bears, which holds for relief too.
    device: Ramp,
    last: Option<Brake>,
}

/// A rate that falls fast and rises slowly, pages a second.
#[derive(Clone, Copy, Debug)]
struct Ramp(u64);

impl Default for Ramp {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Ramp {
    fn second(&mut self, braked: bool) {
        self.0 = if braked { (self.0 / 2).max(LEAST) } else { (self.0 + STEP).min(MOST) };
    }
}

impl Governor {
    /// A second has passed.
    pub fn second(&mut self, load: &Load) -> Rate {
        let any = |leaves| Brake::all(load).any(|brake| brake.leaves() == leaves);
        let brake = Brake::all(load).next();
        self.all.second(brake.is_some());
        self.device.second(any(Leaves::Trickle));
        self.last = brake.or(self.last).filter(|_| self.all.0 < MOST);
        let stops = any(Leaves::Nothing);
        let relief = if stops { 0 } else { load.relief_pages.min(self.device.0) };
        let ordinary = if stops || any(Leaves::Relief) { 0 } else { self.all.0 };
        let limited_by = match (brake, self.last) {
            (Some(brake), _) if ordinary == 0 && relief > 0 => Limited::ButForRelief(brake),
            (Some(brake), _) => Limited::By(brake),
            (None, Some(last)) => Limited::Until(last),
            (None, None) => Limited::No,
        };
        Rate { pages_per_s: ordinary.max(relief), limited_by }
    }
}

/// How sparse the agent's own periodic work is, so that it stays within its CPU budget.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    every_s: u16,
}

/// At the sparsest, a VM's pages are walked once in so many seconds.
const SPARSEST_S: u16 = 16;

impl Default for Pace {
    fn default() -> Self {
        Self { every_s: 1 }
    }
}

impl Pace {
    /// What the agent used since the last call against what it may use, both in percent of one core: twice as sparse at
    /// once, a little denser while well below.
    pub fn adjust(&mut self, used_percent: f64, limit_percent: f64) {
        if used_percent > limit_percent {
            self.every_s = (self.every_s * 2).min(SPARSEST_S);
        } else if used_percent < limit_percent * 0.75 {
            self.every_s = (self.every_s - 1).max(1);
        }
    }

    /// One second's work is done once in so many.
    pub fn every_s(self) -> u16 {
        self.every_s
    }

    /// Whether it is the turn of the VM with this number. Not all have theirs in the same second.
    pub fn is_turn(self, vm: u32, second: u16) -> bool {
        u32::from(second).wrapping_add(vm).is_multiple_of(self.every_s.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::StallSource;
    use proptest::prelude::*;

    const CALM: Load = Load {
        stall: None,
        free_percent: Some(50.0),
        least_free_percent: 5.0,
        from_swap: false,
        tier: TierLoad { read_latency_ns: None, read_latency_at_rest_ns: None, in_flight: None, reads: 0 },
        slow_read: Duration::from_millis(1),
        refaults: None,
        relief_pages: 0,
    };

    const TOO_MANY: TooMany = TooMany { debt_pages: 900.4, pages_a_minute: 600.0 };
    const STALL: Stall =
        Stall { source: StallSource::Group, percent: 3.25, own_percent: 0.1, limit_percent: 0.5 };

    fn load() -> impl Strategy<Value = Load> {
        let percent = || proptest::option::of(0.0..100.0_f64);
        let number = || proptest::option::of(0..1_000_000_u64);
        let tier = (number(), number(), number());
        let relief = prop_oneof![Just(0), 0..1_000_000_u64];
        (percent(), any::<[bool; 3]>(), tier, relief).prop_map(
            |(free_percent, [stalls, too_many, from_swap], tier, relief_pages)| Load {
                stall: stalls.then_some(STALL),
                free_percent,
                least_free_percent: 5.0,
                from_swap,
                tier: TierLoad {
                    read_latency_ns: tier.0,
                    read_latency_at_rest_ns: tier.1,
                    in_flight: tier.2,
                    reads: 0,
                },
                slow_read: Duration::from_millis(1),
                refaults: too_many.then_some(TOO_MANY),
                relief_pages,
            },
        )
    }

    proptest! {
        #[test]
        fn a_brake_halves_at_once_and_the_rate_comes_back_by_small_steps(
            loads in proptest::collection::vec(load(), 0..50),
        ) {
            let mut governor = Governor::default();
            let mut before = MOST;
            for load in &loads {
                let rate = governor.second(load);
                prop_assert!(rate.pages_per_s <= MOST);
                let most = match rate.limited_by {
                    Limited::By(_) => (before / 2).max(LEAST).max(load.relief_pages),
                    Limited::ButForRelief(_) => load.relief_pages,
                    Limited::Until(_) | Limited::No => (before + STEP).max(load.relief_pages),
                };
                prop_assert!(rate.pages_per_s <= most);
                before = governor.all.0;
            }
            let seconds = (0..).take_while(|_| governor.second(&CALM).limited_by != Limited::No).count() as u64;
            prop_assert!(seconds <= MOST / STEP, "{} s to recover", seconds);
            prop_assert_eq!(governor.second(&CALM).pages_per_s, MOST);
        }

        #[test]
        fn what_makes_room_is_held_back_by_nothing_that_the_vm_waits_for(
            loads in proptest::collection::vec(load(), 1..50), relief_pages in 1..1_000_000_u64,
        ) {
            let (mut stalls, mut calm) = (Governor::default(), Governor::default());
            for load in loads {
                let load = Load { relief_pages, ..load };
                let without = calm.second(&Load { stall: None, refaults: None, ..load });
                prop_assert!(stalls.second(&load).pages_per_s >= relief_pages.min(without.pages_per_s));
            }
        }

        #[test]
        fn what_cannot_be_told_brakes_nothing(relief_pages: u64, from_swap: bool) {
            let rate = Governor::default().second(&Load { relief_pages, from_swap, ..Load::default() });
            prop_assert_eq!(rate, Rate { pages_per_s: MOST, limited_by: Limited::No });
        }

        #[test]
        fn each_vm_has_its_turn(vm: u32, used in proptest::collection::vec(0.0..20.0_f64, 0..20)) {
            let mut pace = Pace::default();
            for used in used {
                pace.adjust(used, 5.0);
            }
            let turns = (0..16u16 * 15).filter(|second| pace.is_turn(vm % 1_000_000, *second)).count();
            prop_assert!(turns >= usize::from(16u16 * 15 / pace.every_s()));
            prop_assert!(pace.every_s() <= SPARSEST_S);
        }
    }

    fn brake(change: impl Fn(&mut Load)) -> Rate {
        let mut load = CALM;
        change(&mut load);
        Governor::default().second(&load)
    }

    #[test]
    fn while_the_vm_waits_for_memory_nothing_goes_and_the_reason_is_told() {
        let rate = brake(|load| load.stall = Some(STALL));
        assert_eq!(rate, Rate { pages_per_s: 0, limited_by: Limited::By(Brake::Stalls(STALL)) });
        assert!(rate.limited_by.to_string().starts_with("its control group waited for memory for 3.25 % of"));
    }

    #[test]
    fn what_makes_room_goes_while_the_vm_waits_but_not_faster_than_the_device_bears() {
        let mut load = Load { stall: Some(STALL), relief_pages: 700, ..CALM };
        let rate = Governor::default().second(&load);
        assert_eq!(rate, Rate { pages_per_s: 700, limited_by: Limited::ButForRelief(Brake::Stalls(STALL)) });
        assert!(
            rate.limited_by.to_string().ends_with("; only what makes room where memory is short goes down")
        );
        load.relief_pages = u64::MAX;
        assert_eq!(Governor::default().second(&load).pages_per_s, MOST);
        load.tier.in_flight = Some(65);
        assert_eq!(Governor::default().second(&load).pages_per_s, MOST / 2);
        load.from_swap = true;
        load.free_percent = Some(4.0);
        assert_eq!(Governor::default().second(&load).pages_per_s, 0, "it would need the room that is short");
    }

    #[test]
    fn short_memory_stops_what_needs_memory_on_the_way() {
        let short = |from_swap| {
            brake(|load| {
                load.free_percent = Some(4.0);
                load.from_swap = from_swap;
            })
        };
        assert_eq!(short(true).pages_per_s, 0);
        assert_eq!(short(false).limited_by, Limited::No, "page-out is what helps then");
    }

    #[test]
    fn a_slow_device_slows_down_and_does_not_stop() {
        let slow = |read, rest| {
            brake(|load| {
                load.tier.read_latency_ns = Some(read);
                load.tier.read_latency_at_rest_ns = rest;
            })
        };
        assert_eq!(slow(4_001_000, Some(1_000_000)).pages_per_s, MOST / 2);
        assert_eq!(slow(4_000_000, Some(1_000_000)).limited_by, Limited::No);
        assert_eq!(slow(900_000, Some(50_000)).limited_by, Limited::No, "fast all the same");
        assert_eq!(slow(1_100_000, Some(50_000)).pages_per_s, MOST / 2);
        let patient = |read| {
            brake(|load| {
                load.slow_read = Duration::from_millis(20);
                load.tier.read_latency_ns = Some(read);
                load.tier.read_latency_at_rest_ns = Some(50_000);
            })
        };
        assert_eq!(patient(20_000_000).limited_by, Limited::No, "what is slow is the operator's to say");
        assert_eq!(patient(20_000_001).pages_per_s, MOST / 2);
        assert_eq!(slow(400_000_000, None).limited_by, Limited::No, "slow compared with what?");
        assert_eq!(brake(|load| load.tier.in_flight = Some(65)).pages_per_s, MOST / 2);
    }

    #[test]
    fn nothing_goes_while_too_much_comes_back() {
        let rate = brake(|load| load.refaults = Some(TOO_MANY));
        assert_eq!(rate.pages_per_s, 0);
        assert_eq!(
            rate.limited_by.to_string(),
            "it waited for 900 demoted pages more than it may (600 a minute)"
        );
    }

    #[test]
    fn the_rate_stays_limited_until_it_is_whole_again() {
        let mut governor = Governor::default();
        let stalls = Load { stall: Some(STALL), ..CALM };
        for _ in 0..20 {
            governor.second(&stalls);
        }
        let rate = governor.second(&CALM);
        assert_eq!(rate.pages_per_s, LEAST + STEP);
        assert!(rate.limited_by.to_string().starts_with("slowly up again: its control group"));
        let rate = governor.second(&Load { relief_pages: 9000, ..CALM });
        assert_eq!(rate.pages_per_s, 9000, "and what makes room at once");
    }

    #[test]
    fn beyond_its_budget_the_agent_works_half_as_often() {
        let mut pace = Pace::default();
        pace.adjust(5.1, 5.0);
        pace.adjust(9.0, 5.0);
        assert_eq!(pace.every_s(), 4);
        pace.adjust(4.0, 5.0);
        assert_eq!(pace.every_s(), 4, "about right");
        pace.adjust(1.0, 5.0);
        assert_eq!(pace.every_s(), 3);
    }
}
