//! The brakes of the host and of each VM: what they go by, their state, and what limits a VM.
//!
//! In, once a second: what the scanner found of a VM's control groups, and what was demoted and came back. Out: pages
//! that may go to each tier, and `limited_by` of the status. The rules are `policy`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::actuate::{Outcome, Skip};
use crate::policy::{
    Governor, Limited, Load, MOST, Pace, Rate, Refaults, Room, StallSource, Stalls, TierLoad, TooMany,
    Waited, fault_wait,
};
use crate::sys::Monotonic;
use crate::tiermap::Place;
use crate::tiers::{NodeTiers, TierId};
use crate::vm::{Binding, GroupMemory, ProcessKey, Usage};

/// Less room than this in a control group is none: it comes and goes.
const ROOM_LEAST_PAGES: u64 = 256;
/// How long a VM rests whose group was refused swap, seconds.
const NO_SWAP_REST_S: u64 = 60;

/// What the scanner's thread has read of one VM.
#[derive(Clone, Debug)]
pub struct Gauge {
    pub key: ProcessKey,
    pub memory: GroupMemory,
    pub ksm_bytes: Option<u64>,
    pub usage: Option<Usage>,
    /// What binds it to memory nodes; none where that cannot be told.
    pub bindings: Option<Vec<Binding>>,
    /// When it was read.
    pub at: Monotonic,
}

/// The brakes of the host.
#[derive(Debug, Default)]
pub(super) struct HostBrakes {
    pub pace: Pace,
    /// CPU time of the agent's last window, percent of one core.
    pub cpu_percent: f64,
    /// CPU time so far, and when it was read.
    pub cpu_read: Option<(f64, Monotonic)>,
    /// Of the first tier, percent; written by the look at memory.
    pub free_percent: Option<f64>,
    /// What the first tier has less free than it should, without copies in the swap cache; what is being freed is taken
    /// off.
    pub short_bytes: u64,
    /// Of the swap tiers.
    pub tier_loads: BTreeMap<TierId, TierLoad>,
}

/// The brakes of one VM.
#[derive(Debug, Default)]
pub(super) struct VmBrakes {
    /// By level.
    governors: Vec<Governor>,
    rates: Vec<Rate>,
    refaults: Refaults,
    /// Pages that came back since the last second, and made the guest wait, by where they were.
    returned: BTreeMap<Place, u64>,
    /// How long it waited for such pages so far.
    waited: Duration,
    pub(super) stalls: Stalls,
    pub(super) gauge: Option<Gauge>,
    /// By the gauge: the groups have no room for pages from swap.
    full: bool,
    /// The group was refused swap; until when that counts.
    refused_swap: Option<Monotonic>,
    limited_by: Option<String>,
    /// What `limited_by` was about when it was last logged.
    logged: Option<String>,
}

impl VmBrakes {
    pub(super) fn take_gauge(&mut self, gauge: Gauge) {
        let room = Room::from_swap(&gauge.memory);
        self.full = room.pages < ROOM_LEAST_PAGES;
        self.gauge = Some(gauge);
    }

    /// The guest had to wait for pages that were there.
    pub(super) fn waited_for(&mut self, place: Place, pages: u64) {
        *self.returned.entry(place).or_default() += pages;
    }

    fn memory(&self) -> Option<&GroupMemory> {
        self.gauge.as_ref().map(|gauge| &gauge.memory)
    }

    pub(super) fn ksm_bytes(&self) -> Option<u64> {
        self.gauge.as_ref()?.ksm_bytes
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.gauge.as_ref()?.usage
    }

    pub(super) fn limited_by(&self) -> Option<String> {
        self.limited_by.clone()
    }

    /// Of the VM's own group: one that holds others too says nothing of the VM.
    pub(super) fn swap_cached_bytes(&self) -> Option<u64> {
        self.memory().filter(|memory| memory.is_vms_own)?.swap_cached_bytes
    }

    /// Pages that may be planned for this tier now.
    pub(super) fn allowed(&self, to: TierId, node_tiers: NodeTiers) -> u64 {
        let rate = self.rates.get(usize::from(to.0)).map_or(MOST, |rate| rate.pages_per_s);
        // What goes to the first swap tier comes from memory.
        let room = self.room_to_swap().filter(|_| to.0 == node_tiers.0);
        rate.min(room.map_or(u64::MAX, |room| room.pages))
    }

    /// Whether there is room for pages read ahead of need.
    pub(super) fn may_stage(&self) -> bool {
        !self.full
    }

    /// Pages that its control groups let go to swap.
    pub(super) fn pages_to_swap(&self) -> u64 {
        self.room_to_swap().map_or(u64::MAX, |room| room.pages)
    }

    fn room_to_swap(&self) -> Option<Room> {
        let room = Room::to_swap(self.memory()?);
        Some(if room.pages < ROOM_LEAST_PAGES { Room { pages: 0, ..room } } else { room })
    }

    /// A step is done.
    pub(super) fn on_outcome(&mut self, outcome: &Outcome, now: Monotonic) {
        if outcome.skipped.contains_key(&Skip::NoSwap) {
            self.refused_swap = Some(now.after(Duration::from_secs(NO_SWAP_REST_S)));
        }
    }

    /// Until when nothing is planned, because the group was refused swap.
    pub(super) fn rests(&self, now: Monotonic) -> bool {
        self.refused_swap.is_some_and(|until| now < until)
    }

    /// A second has passed, in which the VM had so many pages in memory, of which it may wait for `refault_limit`
    /// percent a minute once they are demoted.
    pub(super) fn count_refaults(
        &mut self,
        in_memory: u64,
        refault_limit: f64,
        host: &HostBrakes,
    ) -> Option<TooMany> {
        let returned = std::mem::take(&mut self.returned);
        let wait = |(place, pages): (&Place, &u64)| match place {
            Place::In(tier) => host.tier_loads.get(tier).map(|load| fault_wait(*pages, load)),
            // Whose device that is cannot be told.
            Place::OtherSwap | Place::Untouched => None,
        };
        self.waited += returned.iter().filter_map(wait).sum::<Duration>();
        self.refaults.second(returned.values().sum(), in_memory, refault_limit);
        // In a full group the kernel would take other pages instead.
        self.refaults.too_many().filter(|_| !self.full)
    }

    /// A second has passed: how long the VM waited, by its own control group, else by its faults.
    pub(super) fn look_at_stalls(&mut self, now: Monotonic) {
        let faults = Waited { source: StallSource::Faults, total: self.waited, at: now };
        let group = |gauge: &Gauge| {
            let pressure = gauge.memory.pressure.as_ref()?;
            Some(Waited { source: StallSource::Group, total: pressure.some, at: gauge.at })
        };
        self.stalls.look(Some(self.gauge.as_ref().and_then(group).unwrap_or(faults)));
    }

    /// A second has passed; `load` says what is the same for all tiers.
    pub(super) fn second(&mut self, load: Load, tiers: usize, node_tiers: NodeTiers, host: &HostBrakes) {
        self.governors.resize(tiers, Governor::default());
        let rates = (0u8..).zip(&mut self.governors).map(|(level, governor)| {
            let to_swap = !node_tiers.contains(TierId(level));
            governor.second(&Load {
                from_swap: level > node_tiers.0,
                tier: host.tier_loads.get(&TierId(level)).copied().unwrap_or_default(),
                refaults: load.refaults.filter(|_| to_swap),
                ..load
            })
        });
        self.rates = rates.collect();
    }

    /// What limits the VM most, and a word for it that stays while only numbers change.
    pub(super) fn strongest(
        &self,
        host: &HostBrakes,
        cpu_limit: f64,
        now: Monotonic,
    ) -> Option<(String, String)> {
        let lower = || self.rates.iter().skip(1).map(|rate| rate.limited_by);
        let rate = |limited: Limited| Some((limited.to_string(), limited.kind()?.to_owned()));
        let room =
            |room: Room, least| room.limit.filter(|_| room.pages < least).map(|limit| limit.to_string());
        let same = |text: String| (text.clone(), text);
        let now_braking =
            lower().find(|limited| matches!(limited, Limited::By(_) | Limited::ButForRelief(_)));
        None.or_else(|| rate(now_braking?))
            .or_else(|| self.rests(now).then(|| same(Skip::NoSwap.to_string())))
            .or_else(|| room(self.room_to_swap()?, 1).map(same))
            .or_else(|| room(Room::from_swap(self.memory()?), ROOM_LEAST_PAGES).map(same))
            .or_else(|| rate(lower().find(|limited| *limited != Limited::No)?))
            .or_else(|| {
                let used = host.cpu_percent;
                let text = format!(
                    "the agent used {used:.1} % of a core (limit {cpu_limit} %): it plans every {} s",
                    host.pace.every_s()
                );
                (host.pace.every_s() > 1).then(|| (text, "the agent's CPU time".to_owned()))
            })
    }

    pub(super) fn say(&mut self, vm: &str, strongest: Option<(String, String)>) {
        let (text, kind) = strongest.unzip();
        if kind != self.logged {
            match &text {
                Some(reason) => tracing::info!(vm, reason, "held back"),
                None => tracing::info!(vm, "not held back any more"),
            }
            self.logged = kind;
        }
        self.limited_by = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Stall;
    use crate::vm::{Headroom, Pressure};

    const NODES: NodeTiers = NodeTiers(1);
    const NVME: TierId = TierId(1);
    const QLC: TierId = TierId(2);

    /// A VM whose groups leave so much; `Headroom::Unlimited` where None.
    fn braking(swap_left_mib: Option<u64>, charge_left_mib: Option<u64>) -> VmBrakes {
        let headroom = |left: Option<u64>| match left {
            Some(mib) => {
                Headroom::Left { left_bytes: mib << 20, limit_bytes: 64 << 20, group: "/vm".to_owned() }
            }
            None => Headroom::Unlimited,
        };
        let memory = GroupMemory {
            swap: headroom(swap_left_mib),
            charge: headroom(charge_left_mib),
            ..GroupMemory::default()
        };
        let mut braking = VmBrakes::default();
        braking.take_gauge(Gauge {
            key: ProcessKey { pid: 7, start_time_ticks: 1 },
            memory,
            ksm_bytes: None,
            usage: None,
            bindings: None,
            at: Monotonic(0),
        });
        braking
    }

    fn why(braking: &VmBrakes) -> Option<String> {
        braking.strongest(&HostBrakes::default(), 5.0, Monotonic(0)).map(|(text, _)| text)
    }

    #[test]
    fn a_group_without_swap_stops_what_comes_from_memory_and_not_what_is_in_swap_already() {
        let mut braking = braking(Some(2), None);
        braking.second(Load::default(), 3, NODES, &HostBrakes::default());
        assert_eq!((braking.allowed(NVME, NODES), braking.allowed(QLC, NODES)), (0, MOST));
        assert!(why(&braking).unwrap().contains("memory.swap.max"));
        assert!(braking.may_stage());
    }

    #[test]
    fn a_full_group_has_nothing_staged() {
        let braking = braking(None, Some(2));
        assert!(!braking.may_stage());
        assert!(why(&braking).unwrap().contains("memory.max"));
        assert_eq!(braking.allowed(NVME, NODES), MOST, "page-out makes room");
    }

    const STALL: Stall =
        Stall { source: StallSource::Group, percent: 50.0, own_percent: 0.0, limit_percent: 1.0 };

    #[test]
    fn stalls_come_before_all_else_and_stop_all_tiers() {
        let mut braking = braking(Some(2), None);
        let load = Load { stall: Some(STALL), ..Load::default() };
        braking.second(load, 3, NODES, &HostBrakes::default());
        assert_eq!((braking.allowed(NVME, NODES), braking.allowed(QLC, NODES)), (0, 0));
        assert!(why(&braking).unwrap().starts_with("its control group waited"));
    }

    #[test]
    fn too_many_pages_that_come_back_stop_the_swap_tiers_but_for_what_makes_room() {
        let mut braking = VmBrakes::default();
        braking.waited_for(Place::In(NVME), 1600);
        let refaults = braking.count_refaults(10_000, 1.0, &HostBrakes::default());
        let load = Load { refaults, ..Load::default() };
        braking.second(load, 3, NODES, &HostBrakes::default());
        assert_eq!(braking.allowed(NVME, NODES), 0);
        assert!(why(&braking).unwrap().starts_with("it waited for 1598 demoted pages"));
        braking.second(load, 3, NodeTiers(2), &HostBrakes::default());
        assert!(braking.allowed(NVME, NodeTiers(2)) > 0, "a memory tier");
        let load = Load { relief_pages: 700, ..load };
        braking.second(load, 3, NODES, &HostBrakes::default());
        assert_eq!(braking.allowed(NVME, NODES), 700, "what it has beyond its share");
        assert!(why(&braking).unwrap().starts_with("it waited for 1598 demoted pages"));
    }

    /// Twenty seconds, in each of which it waits for so many pages that take 1 ms each.
    fn wait(braking: &mut VmBrakes, from_s: u64, pages: u64) -> Option<Stall> {
        let load = TierLoad { reads: 1000, read_latency_ns: Some(1_000_000), ..TierLoad::default() };
        let host = HostBrakes { tier_loads: BTreeMap::from([(NVME, load)]), ..HostBrakes::default() };
        for second in from_s..from_s + 20 {
            braking.waited_for(Place::In(NVME), pages);
            braking.waited_for(Place::OtherSwap, 5);
            braking.count_refaults(10_000, 100.0, &host);
            braking.look_at_stalls(Monotonic(second * 1_000_000_000));
        }
        braking.stalls.above(0.5)
    }

    #[test]
    fn without_a_group_of_its_own_a_vm_is_judged_by_the_pages_it_waits_for() {
        let mut braking = braking(None, None);
        assert_eq!(wait(&mut braking, 0, 0), None);
        let stall = wait(&mut braking, 20, 30).unwrap();
        assert_eq!((stall.source, stall.percent.round()), (StallSource::Faults, 3.0));
        assert!(stall.to_string().starts_with("it waited for pages from swap for 3.00 % of"));
        // The scanner tells of a group that holds this VM alone.
        let gauge = braking.gauge.as_mut().unwrap();
        gauge.memory.pressure = Some(Pressure { group: "/vm".to_owned(), some: Duration::from_secs(9) });
        braking.look_at_stalls(Monotonic(50_000_000_000));
        assert_eq!(braking.stalls.above(0.5), None, "which is not compared with the former");
    }

    #[test]
    fn a_vm_that_nothing_is_known_of_is_not_held_back() {
        let braking = VmBrakes::default();
        assert_eq!((braking.allowed(NVME, NODES), braking.may_stage()), (MOST, true));
        assert_eq!((why(&braking), braking.swap_cached_bytes()), (None, None));
    }

    #[test]
    fn a_group_that_holds_others_says_nothing_of_the_vm() {
        let mut braking = braking(None, None);
        let gauge = braking.gauge.as_mut().unwrap();
        gauge.memory.swap_cached_bytes = Some(4096);
        assert_eq!(braking.swap_cached_bytes(), None);
        braking.gauge.as_mut().unwrap().memory.is_vms_own = true;
        assert_eq!(braking.swap_cached_bytes(), Some(4096));
    }
}
