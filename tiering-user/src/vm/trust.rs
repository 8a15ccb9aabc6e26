//! Whose processes are taken for VMs that may be managed.
//!
//! In: the users that the configuration names; the owner of a process and its control group. Out: whether it is
//! trusted, or which user is not. Any user can start a process that looks like QEMU. What is learned of such a process
//! costs memory, and what is moved of it takes room from others, so only the processes of users that run virtual
//! VMs for this host are managed.
//!
//! # Limits
//! A process that changed its user by halves is not trusted: all four of its user ids must be. What runs as root in a
//! container without a user namespace is root. Users are looked up once, when the agent starts.

use std::collections::BTreeSet;

use nix::unistd::{Uid, User};
use procfs::process::{Process, Status};

use super::Refusal;
use super::process::{Proc, VmError};

/// Under which libvirt, Proxmox and the distributions run VMs.
const USUAL_USERS: [&str; 3] = ["libvirt-qemu", "qemu", "kvm"];
const ROOT: u32 = 0;

/// The users whose processes may be managed.
#[derive(Clone, Debug)]
pub struct Trust(BTreeSet<u32>);

impl Trust {
    /// root, the users that usually run VMs, and those that are `named`, by name or number. Returns also
    /// which of these this host does not have.
    #[must_use]
    pub fn new(named: &[String]) -> (Self, Vec<String>) {
        Self::with(named, |name| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()))
    }

    fn with(named: &[String], uid_of: impl Fn(&str) -> Option<u32>) -> (Self, Vec<String>) {
        let mut uids: BTreeSet<u32> = USUAL_USERS.iter().filter_map(|name| uid_of(name)).collect();
        uids.insert(ROOT);
        let mut unknown = Vec::new();
        for name in named {
            match name.parse().ok().or_else(|| uid_of(name)) {
                Some(uid) => drop(uids.insert(uid)),
                None => unknown.push(name.clone()),
            }
        }
        (Self(uids), unknown)
    }

    /// Why a process of this owner, in this control group, is not managed.
    pub(super) fn refusal(&self, owner: Owner, cgroup: Option<&str>) -> Option<Refusal> {
        let stranger = owner.0.into_iter().find(|uid| !self.0.contains(uid))?;
        if cgroup.is_some_and(is_pod) {
            return None;
        }
        let name = User::from_uid(Uid::from_raw(stranger)).ok().flatten().map(|user| user.name);
        Some(Refusal::Untrusted { user: name.unwrap_or_else(|| stranger.to_string()) })
    }

    #[cfg(test)]
    pub(super) fn of(uids: &[u32]) -> Self {
        Self(uids.iter().copied().collect())
    }
}

/// The user ids of a process: real, effective, saved, and for files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner([u32; 4]);

impl Owner {
    pub(super) fn of(process: &Proc) -> Result<Self, VmError> {
        let Status { ruid, euid, suid, fuid, .. } = process.read("status", Process::status)?;
        Ok(Self([ruid, euid, suid, fuid]))
    }
}

/// Whether this is the control group of a pod. A user can make groups of any name below one of his own, so only the
/// first one of the path counts, behind those that lead out of a control-group namespace.
fn is_pod(cgroup: &str) -> bool {
    let first = cgroup.split('/').find(|part| !part.is_empty() && *part != "..");
    first.is_some_and(|part| part.starts_with("kubepods") || matches!(part, "kubelet" | "kubelet.slice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(named: &[&str]) -> (Trust, Vec<String>) {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        Trust::with(&named, |name| match name {
            "libvirt-qemu" => Some(64055),
            "alice" => Some(1000),
            _ => None,
        })
    }

    #[test]
    fn root_the_usual_users_and_those_that_are_named_are_trusted() {
        let (trust, unknown) = trust(&["alice", "1234", "nobody-here"]);
        assert_eq!(unknown, ["nobody-here"]);
        for uid in [0, 64055, 1000, 1234] {
            assert_eq!(trust.refusal(Owner([uid; 4]), None), None, "{uid}");
        }
        let refusal = trust.refusal(Owner([54_321; 4]), Some("/machine.slice/vm.scope")).unwrap();
        assert_eq!(
            refusal.to_string(),
            "it runs as user \"54321\", who is not known to run virtual machines here: it is only listed, and its memory is left alone; to \
             have it managed add \"54321\" to discover.users"
        );
    }

    #[test]
    fn one_user_id_of_a_stranger_is_enough() {
        let (trust, _) = trust(&[]);
        for at in 0..4 {
            let mut owner = [0, 64055, 0, 0];
            owner[at] = 1000;
            assert!(trust.refusal(Owner(owner), None).is_some(), "{owner:?}");
        }
    }

    #[test]
    fn pods_are_trusted_and_what_a_user_calls_one_is_not() {
        let (trust, _) = trust(&[]);
        let managed = |group| trust.refusal(Owner([107; 4]), Some(group)).is_none();
        assert!(managed(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-1.scope"
        ));
        assert!(managed("/kubepods/besteffort/pod1/1"));
        assert!(managed("/../../kubepods-burstable-pod1.slice/cri-1.scope"), "from the agent's own pod");
        assert!(managed("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/1"));
        assert!(!managed("/user.slice/user-1000.slice/user@1000.service/kubepods.slice/pod1"));
        assert!(!managed("/system.slice/kubepods.service"));
        assert!(!managed("/"));
    }
}
