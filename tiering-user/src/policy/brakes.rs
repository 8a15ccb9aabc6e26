//! How fast pages of one machine may go to one tier.
//!
//! In, once a second: a [`Load`]. Out: a [`Rate`], and what limits it. Fast down, slow up: while something brakes, the rate
//! halves every second; when nothing does, it grows by [`STEP`] every second, so that it is whole again after a minute.
//! Where tasks wait for memory already, where too many pages come back, and where pages would have to come up first and there is
//! no memory for that, nothing goes at all; a slow device leaves a trickle, which shows when it is over.
//!
//! Pure: one call is one second.
//!
//! # Limits
//! The numbers are chosen, not tuned: they were not compared with others under real load.

use std::fmt;
use std::time::Duration;

use super::refaults::TooMany;

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

/// How busy the device of a tier is; none where it cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierLoad {
    /// Mean of the last reads.
    pub read_latency_ns: Option<u64>,
    /// The same, when nothing else was going on.
    pub read_latency_at_rest_ns: Option<u64>,
    pub in_flight: Option<u64>,
}

/// What the brakes go by; none where it cannot be told, which brakes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Percent of the last 10 s in which a task of the host, or of the machine's control group, waited for memory.
    pub host_psi: Option<f64>,
    pub group_psi: Option<f64>,
    /// Above which of that it is too much.
    pub psi_limit: f64,
    /// Percent of the first tier that is free, and the least of it for moves that need memory on the way.
    pub free_percent: Option<f64>,
    pub least_free_percent: f64,
    /// The pages come from another swap tier.
    pub from_swap: bool,
    pub tier: TierLoad,
    /// Below which mean no device is slow: a fast disk that is merely in use is no reason to wait.
    pub slow_read: Duration,
    /// The machine waited for too many of the pages that went down.
    pub refaults: Option<TooMany>,
}

/// What slows demotion down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Brake {
    HostStalls { percent: f64, limit: f64 },
    GroupStalls { percent: f64, limit: f64 },
    LittleMemory { percent: f64, least: f64 },
    SlowDevice { read_latency_ns: u64, at_rest_ns: u64 },
    LongQueue { in_flight: u64 },
    Refaults(TooMany),
}

impl Brake {
    /// The brake that this load calls for, the hardest first.
    fn of(load: &Load) -> Option<Self> {
        let limit = load.psi_limit;
        let least = load.least_free_percent;
        let slow = |ns: &u64| {
            let rest = load.tier.read_latency_at_rest_ns;
            Duration::from_nanos(*ns) > load.slow_read && rest.is_some_and(|rest| *ns > rest * SLOW_FACTOR)
        };
        None.or_else(|| {
            load.host_psi.filter(|p| *p > limit).map(|percent| Self::HostStalls { percent, limit })
        })
        .or_else(|| load.group_psi.filter(|p| *p > limit).map(|percent| Self::GroupStalls { percent, limit }))
        .or_else(|| {
            let short = load.free_percent.filter(|free| load.from_swap && *free < least);
            short.map(|percent| Self::LittleMemory { percent, least })
        })
        .or_else(|| load.refaults.map(Self::Refaults))
        .or_else(|| {
            let read_latency_ns = load.tier.read_latency_ns.filter(slow)?;
            let at_rest_ns = load.tier.read_latency_at_rest_ns?;
            Some(Self::SlowDevice { read_latency_ns, at_rest_ns })
        })
        .or_else(|| {
            let long = load.tier.in_flight.filter(|in_flight| *in_flight > LONG_QUEUE);
            long.map(|in_flight| Self::LongQueue { in_flight })
        })
    }

    fn kind(self) -> &'static str {
        match self {
            Self::HostStalls { .. } => "stalls on the host",
            Self::GroupStalls { .. } => "stalls in the control group",
            Self::LittleMemory { .. } => "little memory",
            Self::SlowDevice { .. } => "slow device",
            Self::LongQueue { .. } => "long queue",
            Self::Refaults(_) => "refaults",
        }
    }

    /// Whether nothing goes while it holds.
    fn stops(self) -> bool {
        !matches!(self, Self::SlowDevice { .. } | Self::LongQueue { .. })
    }
}

impl fmt::Display for Brake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostStalls { percent, limit } => {
                write!(
                    f,
                    "tasks of the host waited for memory for {percent:.2} % of the last 10 s (limit {limit} %)"
                )
            }
            Self::GroupStalls { percent, limit } => {
                write!(
                    f,
                    "its control group waited for memory for {percent:.2} % of the last 10 s (limit {limit} %)"
                )
            }
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
            Self::By(brake) | Self::Until(brake) => Some(brake.kind()),
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
    /// It is over, and the rate is on its way up again.
    Until(Brake),
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("nothing"),
            Self::By(brake) => brake.fmt(f),
            Self::Until(brake) => write!(f, "slowly up again: {brake}"),
        }
    }
}

/// The brakes of one machine towards one tier.
#[derive(Clone, Copy, Debug)]
pub struct Governor {
    pages_per_s: u64,
    last: Option<Brake>,
}

impl Default for Governor {
    fn default() -> Self {
        Self { pages_per_s: MOST, last: None }
    }
}

impl Governor {
    /// A second has passed.
    pub fn second(&mut self, load: &Load) -> Rate {
        if let Some(brake) = Brake::of(load) {
            self.last = Some(brake);
            self.pages_per_s = (self.pages_per_s / 2).max(LEAST);
            let pages_per_s = if brake.stops() { 0 } else { self.pages_per_s };
            return Rate { pages_per_s, limited_by: Limited::By(brake) };
        }
        self.pages_per_s = (self.pages_per_s + STEP).min(MOST);
        if self.pages_per_s == MOST {
            self.last = None;
        }
        let limited_by = self.last.map_or(Limited::No, Limited::Until);
        Rate { pages_per_s: self.pages_per_s, limited_by }
    }
}

/// How sparse the agent's own periodic work is, so that it stays within its CPU budget.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    every_s: u16,
}

/// At the sparsest, a machine's pages are walked once in so many seconds.
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

    /// Whether it is the turn of the machine with this number. Not all have theirs in the same second.
    pub fn is_turn(self, machine: u32, second: u16) -> bool {
        u32::from(second).wrapping_add(machine).is_multiple_of(self.every_s.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALM: Load = Load {
        host_psi: Some(0.0),
        group_psi: None,
        psi_limit: 0.5,
        free_percent: Some(50.0),
        least_free_percent: 5.0,
        from_swap: false,
        tier: TierLoad { read_latency_ns: None, read_latency_at_rest_ns: None, in_flight: None },
        slow_read: Duration::from_millis(1),
        refaults: None,
    };

    const TOO_MANY: TooMany = TooMany { debt_pages: 900.4, pages_a_minute: 600.0 };

    fn load() -> impl Strategy<Value = Load> {
        let percent = || proptest::option::of(0.0..100.0_f64);
        let number = || proptest::option::of(0..1_000_000_u64);
        let tier = (number(), number(), number());
        (percent(), percent(), percent(), any::<bool>(), any::<bool>(), tier).prop_map(
            |(host_psi, group_psi, free_percent, too_many, from_swap, tier)| Load {
                host_psi,
                group_psi,
                psi_limit: 20.0,
                free_percent,
                least_free_percent: 5.0,
                from_swap,
                tier: TierLoad {
                    read_latency_ns: tier.0,
                    read_latency_at_rest_ns: tier.1,
                    in_flight: tier.2,
                },
                slow_read: Duration::from_millis(1),
                refaults: too_many.then_some(TOO_MANY),
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
                match rate.limited_by {
                    Limited::By(_) => prop_assert!(rate.pages_per_s <= (before / 2).max(LEAST)),
                    Limited::Until(_) | Limited::No => prop_assert!(rate.pages_per_s <= before + STEP),
                }
                before = governor.pages_per_s;
            }
            let seconds = (0..).take_while(|_| governor.second(&CALM).limited_by != Limited::No).count() as u64;
            prop_assert!(seconds <= MOST / STEP, "{} s to recover", seconds);
            prop_assert_eq!(governor.second(&CALM).pages_per_s, MOST);
        }

        #[test]
        fn what_cannot_be_told_brakes_nothing(psi_limit in 0.0..100.0_f64, from_swap: bool) {
            let rate = Governor::default().second(&Load { psi_limit, from_swap, ..Load::default() });
            prop_assert_eq!(rate, Rate { pages_per_s: MOST, limited_by: Limited::No });
        }

        #[test]
        fn each_machine_has_its_turn(machine: u32, used in proptest::collection::vec(0.0..20.0_f64, 0..20)) {
            let mut pace = Pace::default();
            for used in used {
                pace.adjust(used, 5.0);
            }
            let turns = (0..16u16 * 15).filter(|second| pace.is_turn(machine % 1_000_000, *second)).count();
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
    fn while_tasks_wait_for_memory_nothing_goes_and_the_reason_is_told() {
        let host = brake(|load| load.host_psi = Some(3.25));
        assert_eq!(host.pages_per_s, 0);
        assert_eq!(
            host.limited_by.to_string(),
            "tasks of the host waited for memory for 3.25 % of the last 10 s (limit 0.5 %)"
        );
        let group = brake(|load| load.group_psi = Some(0.51));
        assert_eq!(group.pages_per_s, 0);
        assert!(group.limited_by.to_string().starts_with("its control group waited"));
        assert_eq!(brake(|load| load.group_psi = Some(0.5)).limited_by, Limited::No, "at the limit");
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
        governor.second(&Load { host_psi: Some(9.0), ..CALM });
        let rate = governor.second(&CALM);
        assert_eq!(rate.pages_per_s, MOST / 2 + STEP);
        assert!(rate.limited_by.to_string().starts_with("slowly up again: tasks of the host"));
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
