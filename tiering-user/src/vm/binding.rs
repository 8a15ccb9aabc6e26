//! Which memory nodes a process is bound to from outside or by itself: by its cpuset, or by a memory policy (numactl,
//! libvirt's `numatune`).
//!
//! In: `/proc/PID/status` and the first line of `/proc/PID/numa_maps`. Out: a [`Binding`] for each that there is. What
//! QEMU binds itself (`policy=bind`) stands on its command line ([`super::Vm::numa_bound`]).
//!
//! # Limits
//! The whole of `numa_maps` walks the page tables of the process, and is not read. Its first line shows the policy of
//! the process, which holds for all memory without one of its own. A policy that a process gives a part of its memory
//! (mbind) shows only where QEMU's command line says so.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use super::ProcessKey;
use super::process::Proc;

/// Less than a line: the kernel then looks at the first mapping, which is the program's, and no other.
const LINE_BYTES: usize = 64;

/// The nodes that something lets a process use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    by: &'static str,
    /// As the kernel writes it: `0-1,4`.
    nodes: String,
}

impl Binding {
    pub fn allows(&self, node: u32) -> bool {
        self.nodes.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let within = |(first, last): (u32, u32)| (first..=last).contains(&node);
            first.parse().ok().zip(last.parse().ok()).is_some_and(within)
        })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} binds it to memory nodes {}", self.by, self.nodes)
    }
}

/// What binds a process; none where that cannot be told. A kernel without NUMA tells of nothing, and binds nothing.
pub fn bindings(proc_root: &Path, key: ProcessKey) -> Option<Vec<Binding>> {
    let process = Proc::open_key(proc_root, key).ok()?;
    let status = process.text("status").ok()?;
    let mut line = [0; LINE_BYTES];
    let first = match File::open(process.file("numa_maps")).and_then(|mut maps| maps.read(&mut line)) {
        Ok(bytes) => String::from_utf8_lossy(&line[..bytes]).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(_) => return None,
    };
    let cpuset = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"));
    let cpuset = cpuset.map(|nodes| Binding { by: "its cpuset", nodes: nodes.trim().to_owned() });
    Some(cpuset.into_iter().chain(policy(&first)).collect())
}

/// The policy in a line such as `55d0c8a00000 bind=static:0-1 file=...`.
fn policy(line: &str) -> Option<Binding> {
    let (policy, nodes) = line.split_whitespace().nth(1)?.split_once(':')?;
    let mode = policy.split('=').next()?;
    (mode == "bind").then(|| Binding { by: "its memory policy", nodes: nodes.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_a_binding_are_those_of_the_kernels_list() {
        let told = |line: &str| policy(line).map(|binding| binding.to_string());
        let line = "55d0c8a00000 bind:0,2-3 file=/usr/bin/qemu mapped=4 N0=4 kernelpagesize_kB=4";
        assert_eq!(told(line).as_deref(), Some("its memory policy binds it to memory nodes 0,2-3"));
        assert_eq!(
            [0, 1, 2, 3, 4].map(|node| policy(line).unwrap().allows(node)),
            [true, false, true, true, false]
        );
        assert!(told("55d0c8a00000 bind=static:1 anon=1").is_some());
        for free in
            ["", "55d0c8a00000 default file=/a:b", "55d0c8a00000 prefer:0 anon=1", "55d0 interleave:0-1"]
        {
            assert_eq!(told(free), None, "{free}");
        }
    }

    #[test]
    fn what_this_process_may_use_is_told() {
        let stat = procfs::process::Process::myself().unwrap().stat().unwrap();
        let own =
            bindings(Path::new("/proc"), ProcessKey { pid: stat.pid, start_time_ticks: stat.starttime });
        assert!(own.unwrap().iter().any(|binding| binding.allows(0)), "the cpuset of a process with memory");
        assert_eq!(bindings(Path::new("/proc"), ProcessKey { pid: stat.pid, start_time_ticks: 1 }), None);
    }
}
