//! What is saved on a host: the sums over its VMs. A VM that is not moved counts neither as known nor as unknown.

use super::savings::{CanFreeStatus, HostSavingsStatus, SavingsSource, SavingsStatus};
use super::status::VmStatus;

impl HostSavingsStatus {
    /// The sums over these VMs.
    #[must_use]
    pub fn of(vms: &[VmStatus]) -> Self {
        let sum = |bytes: fn(&SavingsStatus) -> u64| vms.iter().map(|vm| bytes(&vm.savings)).sum();
        let with_some = vms.iter().map(|vm| &vm.savings).filter(|savings| savings.reusable_bytes > 0);
        let moved = |vm: &&VmStatus| match vm.savings.can_free.source {
            Some(source) => source != SavingsSource::NotMoved,
            None => vm.movable,
        };
        let (known, unknown): (Vec<_>, Vec<_>) =
            vms.iter().filter(moved).partition(|vm| vm.savings.can_free.source.is_some());
        let total = |bytes: fn(&CanFreeStatus) -> Option<u64>| {
            let all = known.iter().map(|vm| bytes(&vm.savings.can_free));
            all.sum::<Option<u64>>().filter(|_| !known.is_empty())
        };
        let mut sources = known.iter().filter_map(|vm| vm.savings.can_free.source);
        let first = sources.next();
        let source =
            if sources.all(|source| Some(source) == first) { first } else { Some(SavingsSource::Several) };
        let example = unknown.iter().find_map(|vm| Some((vm, vm.savings.can_free.detail.as_ref()?)));
        Self {
            reusable_bytes: sum(|savings| savings.reusable_bytes),
            over_s: with_some.map(|savings| savings.over_s).min().unwrap_or(0),
            free_for_1h_bytes: sum(|savings| savings.free_for_1h_bytes),
            opportunistic_bytes: sum(|savings| savings.opportunistic_bytes),
            can_free: CanFreeStatus {
                source,
                expected_bytes: total(|can| can.expected_bytes),
                lower_bytes: total(|can| can.lower_bytes),
                upper_bytes: total(|can| can.upper_bytes),
                detail: example.map(|(vm, why)| format!("of {} it is not known yet: {why}", vm.name)),
            },
            vms_known: known.len() as u64,
            vms_unknown: unknown.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, reusable: u64, can_free: CanFreeStatus) -> VmStatus {
        let savings = SavingsStatus {
            reusable_bytes: reusable,
            over_s: reusable,
            free_for_1h_bytes: 2 * reusable,
            opportunistic_bytes: 1,
            can_free,
            ..SavingsStatus::default()
        };
        VmStatus { name: name.to_owned(), movable: true, savings, ..VmStatus::default() }
    }

    fn known(source: SavingsSource, lower: Option<u64>) -> CanFreeStatus {
        CanFreeStatus {
            source: Some(source),
            expected_bytes: Some(10),
            lower_bytes: lower,
            upper_bytes: Some(20),
            detail: Some("so it is".to_owned()),
        }
    }

    fn unknown() -> CanFreeStatus {
        CanFreeStatus { detail: Some("nothing was tried".to_owned()), ..CanFreeStatus::default() }
    }

    #[test]
    fn a_host_is_the_sum_of_the_vms_of_which_something_is_known() {
        let tried = known(SavingsSource::Tried, Some(5));
        let host = HostSavingsStatus::of(&[
            vm("a", 100, tried.clone()),
            vm("b", 0, tried.clone()),
            vm("c", 60, unknown()),
        ]);
        assert_eq!((host.reusable_bytes, host.over_s, host.free_for_1h_bytes), (160, 60, 320));
        assert_eq!((host.opportunistic_bytes, host.vms_known, host.vms_unknown), (3, 2, 1));
        let can = host.can_free;
        assert_eq!((can.expected_bytes, can.lower_bytes, can.upper_bytes), (Some(20), Some(10), Some(40)));
        assert_eq!(can.source, Some(SavingsSource::Tried));
        assert_eq!(can.detail.as_deref(), Some("of c it is not known yet: nothing was tried"));

        let ages = known(SavingsSource::PageAges, None);
        let both = HostSavingsStatus::of(&[vm("a", 0, tried), vm("b", 0, ages)]).can_free;
        assert_eq!((both.source, both.lower_bytes), (Some(SavingsSource::Several), None), "one has no bound");
        assert_eq!((both.upper_bytes, both.detail), (Some(40), None));
    }

    #[test]
    fn nothing_is_made_up_and_vms_that_are_not_moved_do_not_count() {
        let host = HostSavingsStatus::of(&[vm("a", 0, unknown())]);
        assert_eq!((host.can_free.source, host.can_free.expected_bytes), (None, None));
        assert_eq!((host.vms_known, host.vms_unknown), (0, 1));
        let fixed = CanFreeStatus { expected_bytes: Some(0), ..known(SavingsSource::NotMoved, Some(0)) };
        let stranger = VmStatus { movable: false, ..vm("b", 0, CanFreeStatus::default()) };
        let host = HostSavingsStatus::of(&[vm("a", 0, fixed), stranger]);
        assert_eq!(host, HostSavingsStatus { opportunistic_bytes: 2, ..HostSavingsStatus::default() });
        assert_eq!(HostSavingsStatus::of(&[]), HostSavingsStatus::default());
    }
}
