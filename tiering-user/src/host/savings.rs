//! How much memory of this host's VMs can be freed.
//!
//! In: the status of an agent, if one answers; else the kernel's page ages of VMs that have a control group of their
//! own. Out: one [`Check`]. Nothing is paged out to find out.

use std::path::Path;

use super::Check;
use crate::config::Config;
use crate::reclaim::savings::STALE;
use crate::sys::PAGE_BYTES;
use crate::telemetry::savings::HostSavingsStatus;
use crate::vm::{Accel, GroupMemory, Idle, NoAges, PageAges, Scanner, Trust, Vm};

const NAME: &str = "savings";
const LOST: &str = "nobody knows yet how much memory can be freed";

/// What the agent says, in a line made by `words`; without an agent, what the kernel says.
pub fn savings(
    config: &Config,
    agent: Option<&HostSavingsStatus>,
    words: impl Fn(&HostSavingsStatus) -> String,
) -> Check {
    match agent {
        Some(savings) if savings.vms_known > 0 => Check::ok(NAME, words(savings)),
        Some(savings) if savings.vms_unknown > 0 => Check::degraded(NAME, words(savings), LOST),
        Some(_) => Check::ok(NAME, "no VM is seen that could be moved"),
        None => without_agent(config),
    }
}

fn without_agent(config: &Config) -> Check {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let groups = if unified.exists() { unified } else { Path::new("/sys/fs/cgroup") };
    let proc = Path::new("/proc");
    let vms = match Scanner::new(proc, groups, Trust::new(&config.discover.users).0).scan() {
        Ok(changes) => changes.appeared,
        Err(error) => return Check::degraded(NAME, error.to_string(), LOST),
    };
    if vms.is_empty() {
        return Check::ok(NAME, "no agent answers, and no VM is seen");
    }
    let own = |vm: &Vm| {
        let memory = GroupMemory::of(proc, groups, vm.key).with_owner(proc, groups, vm.key);
        memory.group.filter(|_| memory.is_vms_own)
    };
    let vms: Vec<_> = vms.into_iter().map(|vm| (own(&vm), vm)).collect();
    let wanted = |path: &str| vms.iter().any(|(group, _)| group.as_deref() == Some(path));
    let ages = PageAges::read(Path::new("/sys"), proc, wanted);
    let idle: Vec<_> =
        vms.iter().map(|(group, vm)| idle(config, ages.as_ref(), group.as_deref(), vm)).collect();
    summary(&idle)
}

/// What the kernel says of one VM, or why it says nothing.
fn idle(
    config: &Config,
    ages: Result<&PageAges, &NoAges>,
    group: Option<&str>,
    vm: &Vm,
) -> Result<Idle, String> {
    let group = group.ok_or("a VM has no control group (v2) of its own")?;
    let ages = ages.map_err(ToString::to_string)?;
    if vm.accel == Accel::Kvm && !ages.sees_kvm {
        return Err("page ages leave out what KVM guests access before Linux 6.12".to_owned());
    }
    let idle = ages.of(group).map(|ages| ages.idle(config.policy.demote_after.0, STALE));
    let looked = |idle: &Idle| idle.is_known;
    idle.filter(looked).ok_or_else(|| "the kernel has not looked at page ages lately".to_owned())
}

fn summary(vms: &[Result<Idle, String>]) -> Check {
    let known: Vec<&Idle> = vms.iter().flatten().collect();
    let bytes = |pages: fn(&Idle) -> u64| known.iter().map(|idle| pages(idle)).sum::<u64>() * PAGE_BYTES;
    let mib = |bytes: u64| bytes >> 20;
    match (known.len(), vms.iter().find_map(|vm| vm.as_ref().err())) {
        (0, why) => Check::degraded(
            NAME,
            format!("no agent answers; {}", why.map_or("no VM is seen", String::as_str)),
            format!(
                "{LOST}: `tiering run --dry-run` touches nothing and tells what the kernel knows, `tiering run` \
                 finds out"
            ),
        ),
        (count, _) => Check::ok(
            NAME,
            format!(
                "no agent answers; by page ages {} MiB can be freed, at most {} MiB, copies in the swap cache \
                 included ({count} VMs of {})",
                mib(bytes(|idle| idle.pages)),
                mib(bytes(|idle| idle.most_pages)),
                vms.len()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::State;

    #[test]
    fn an_agent_that_answers_has_the_word() {
        let config = Config::default();
        let check = |known, unknown| {
            let status =
                HostSavingsStatus { vms_known: known, vms_unknown: unknown, ..HostSavingsStatus::default() };
            savings(&config, Some(&status), |_| "1 GiB more".to_owned())
        };
        assert_eq!((check(1, 1).state, check(1, 1).detail.as_str()), (State::Ok, "1 GiB more"));
        assert_eq!(check(0, 2).state, State::Degraded);
        assert!(check(0, 2).consequence.unwrap().starts_with("nobody knows yet"));
        assert_eq!(check(0, 0).state, State::Ok);
    }

    #[test]
    fn without_an_agent_page_ages_are_told_or_how_to_find_out() {
        let idle = Idle { pages: 512, most_pages: 1024, is_known: true, ..Idle::default() };
        let found = summary(&[Ok(idle), Ok(idle), Err("why".to_owned())]);
        assert_eq!(found.state, State::Ok);
        assert!(found.detail.contains("4 MiB can be freed, at most 8 MiB"), "{}", found.detail);
        assert!(found.detail.ends_with("(2 VMs of 3)"), "{}", found.detail);
        let none = summary(&[Err("this kernel has no MGLRU".to_owned())]);
        assert!(none.detail.ends_with("this kernel has no MGLRU"), "{}", none.detail);
        assert!(none.consequence.unwrap().contains("tiering run --dry-run"));
    }
}
