//! Has the kernel demote to slower memory nodes (`policy.kernel_demotion`) while no VM is there that is bound to nodes
//! which its pages would leave.
//!
//! In, once a second: the VMs, what binds them. Out: whether the setting may be on, and if not, why.
//!
//! # Limits
//! A VM that starts is known within a second or two; where its process became QEMU more than five seconds after it
//! started, within ten. Other processes that are bound to nodes are not looked at.

use super::Engine;
use super::command::{Command, Demote};
use super::managed::ManagedVm;
use crate::actuate::Skip;
use crate::config::KernelDemotion;
use crate::telemetry::status::KernelDemotionStatus;
use crate::tiers::TierKind;
use crate::vm::Binding;

/// What keeps the kernel from demoting pages of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bound {
    No,
    /// And by what.
    Yes(String),
    NotKnown,
}

/// Whether the pages of a VM would leave nodes that it is bound to, if they went to one of the `lower` ones.
fn bound(by_qemu: bool, bindings: Option<&[Binding]>, lower: &[u32]) -> Bound {
    if by_qemu {
        return Bound::Yes(Skip::Bound.to_string());
    }
    let Some(bindings) = bindings else { return Bound::NotKnown };
    let binds = bindings.iter().find(|binding| !lower.iter().all(|node| binding.allows(*node)));
    binds.map_or(Bound::No, |binding| Bound::Yes(binding.to_string()))
}

/// Why the kernel must not demote, with these VMs.
fn why_not<'a>(vms: impl Iterator<Item = (&'a str, Bound)>) -> Option<String> {
    let mut not_known = None;
    for (name, bound) in vms {
        match bound {
            Bound::Yes(why) => return Some(format!("{name} must stay on its nodes: {why}")),
            Bound::NotKnown => {
                not_known = Some(format!("it is not known yet whether {name} is bound to memory nodes"));
            }
            Bound::No => {}
        }
    }
    not_known
}

impl Engine {
    /// Switches the setting on or off.
    pub(super) fn look_at_demotion(&mut self) {
        let demote = match self.config.policy.kernel_demotion {
            KernelDemotion::Leave => Demote::Leave(None),
            KernelDemotion::On if self.dry_run => Demote::Leave(Some("dry run")),
            KernelDemotion::On if self.ladder.node_tiers().0 <= 1 => {
                Demote::Leave(Some("the ladder has one memory tier"))
            }
            KernelDemotion::On => Demote::Keep(self.why_not_demote()),
        };
        // What is known of the setting is that of a moment ago.
        self.may_demote = self.facts.demotion.is_on || demote == Demote::Keep(None);
        if let Demote::Keep(Some(why)) = &demote {
            self.facts.demotion.of_no_use.get_or_insert_with(|| why.clone());
        }
        self.commands.push(Command::KernelDemotion(demote));
    }

    fn why_not_demote(&self) -> Option<String> {
        if !self.config.discover.qemu {
            return Some("VMs are not looked for (discover.qemu = false)".to_owned());
        }
        let lower = self.lower_nodes();
        let bound = self.vms.values().map(|vm| (vm.info.vm.name.as_str(), vm.bound(&lower)));
        why_not(bound).or_else(|| self.who_is_not_looked_at())
    }

    /// The nodes of the memory tiers below the first one.
    fn lower_nodes(&self) -> Vec<u32> {
        let nodes = self.ladder.tiers().iter().skip(1).filter_map(|tier| match &tier.kind {
            TierKind::Node { nodes } => Some(nodes),
            TierKind::Swap { .. } => None,
        });
        nodes.flatten().copied().collect()
    }

    /// What VM there may be that is not looked at.
    fn who_is_not_looked_at(&self) -> Option<String> {
        if !self.all_scanned {
            return Some("it is not known yet which VMs there are".to_owned());
        }
        let left_out = || self.facts.left_out.as_ref().map(|(name, why)| (name, why.clone()));
        if let Some((name, why)) = self.bystanders.first().or_else(left_out) {
            return Some(format!("it is not known whether {name} is bound to memory nodes: {why}"));
        }
        let why = self.not_looked_at.first()?;
        Some(format!("it is not known whether all VMs may leave their nodes: {why}"))
    }

    /// Why the kernel is not asked for pages of this VM, where there are several memory tiers.
    pub(super) fn why_not_to_lower_memory(&self, vm: &ManagedVm) -> Option<String> {
        const PASS: &str = "there are several memory tiers, and the kernel would pass over the lower ones";
        if self.ladder.swap_tiers().next().is_none() {
            return Some("there are several memory tiers and no swap tier".to_owned());
        }
        if let Some(why) = &self.facts.demotion.of_no_use {
            return Some(format!("{PASS}: {why}"));
        }
        match vm.bound(&self.lower_nodes()) {
            Bound::No => None,
            Bound::Yes(why) => Some(format!("the kernel would demote its pages, and must not: {why}")),
            Bound::NotKnown => Some("it is not known yet whether it is bound to memory nodes".to_owned()),
        }
    }

    pub(super) fn demotion_warnings(&self) -> Vec<String> {
        let told =
            |why| format!("policy.kernel_demotion is on, and the kernel's demotion is not used: {why}");
        self.facts.demotion.refused.as_deref().map(told).into_iter().collect()
    }

    pub(super) fn demotion_status(&self) -> KernelDemotionStatus {
        KernelDemotionStatus {
            enabled: self.facts.demotion.is_on,
            refused: self.facts.demotion.refused.clone(),
        }
    }
}

impl ManagedVm {
    fn bound(&self, lower: &[u32]) -> Bound {
        let bindings = self.braking.gauge.as_ref().and_then(|gauge| gauge.bindings.as_deref());
        bound(self.info.vm.numa_bound, bindings, lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{ProcessKey, bindings};

    /// What binds a process whose cpuset and policy are these.
    fn binding(cpuset: &str, policy: &str) -> Vec<Binding> {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("7");
        std::fs::create_dir(&folder).unwrap();
        let stat = format!("7 (qemu) S {}", "1 ".repeat(49));
        std::fs::write(folder.join("stat"), stat).unwrap();
        std::fs::write(folder.join("status"), format!("Name:\tqemu\nMems_allowed_list:\t{cpuset}\n"))
            .unwrap();
        std::fs::write(folder.join("numa_maps"), format!("55d0c8a00000 {policy} file=/qemu\n")).unwrap();
        let key = ProcessKey { pid: 7, start_time_ticks: 1 };
        bindings(root.path(), key).unwrap()
    }

    #[test]
    fn a_vm_is_bound_where_it_may_not_use_one_of_the_lower_nodes() {
        let of =
            |cpuset: &str, policy: &str, lower: &[u32]| bound(false, Some(&binding(cpuset, policy)), lower);
        assert_eq!(of("0-1", "default", &[1]), Bound::No);
        assert_eq!(of("0-1", "prefer:0", &[1]), Bound::No);
        assert_eq!(of("0", "default", &[1]), Bound::Yes("its cpuset binds it to memory nodes 0".to_owned()));
        assert!(matches!(of("0-2", "bind:0-1", &[1, 2]), Bound::Yes(why) if why.contains("policy")));
        assert_eq!(of("0-1", "bind:0-1", &[1]), Bound::No, "no node would be left");
        assert_eq!(bound(false, None, &[1]), Bound::NotKnown);
        assert!(matches!(bound(true, Some(&[]), &[1]), Bound::Yes(_)));
    }

    #[test]
    fn one_bound_vm_is_told_before_one_of_which_nothing_is_known() {
        let vms = [("a", Bound::No), ("b", Bound::NotKnown), ("c", Bound::Yes("its cpuset".to_owned()))];
        let why = |vms: &[(&'static str, Bound)]| why_not(vms.iter().cloned());
        assert_eq!(why(&vms).as_deref(), Some("c must stay on its nodes: its cpuset"));
        assert!(why(&vms[..2]).unwrap().contains("whether b is bound"));
        assert_eq!(why(&vms[..1]), None);
    }
}
