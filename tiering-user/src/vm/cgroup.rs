//! What a VM's cgroup says: its path, the Kubernetes class in it, and whether swap is forbidden. In: `/proc/PID/cgroup`
//! and the mount point of the v2 hierarchy. Out: plain values.
//!
//! Limits: swap limits of cgroup v1 are not read. In a cgroup namespace of its own the agent sees relative paths
//! (`/../..`), of which nothing is concluded.

use std::path::Path;

use procfs::ProcessCGroups;

/// The v2 path, or where that is the root (hybrid hosts) the path in the v1 memory controller; without either, none.
pub(super) fn path(cgroups: &ProcessCGroups) -> Option<String> {
    let of = |wanted: &dyn Fn(&procfs::ProcessCGroup) -> bool| {
        cgroups.into_iter().find(|group| wanted(group)).map(|group| group.pathname.clone())
    };
    let v2 = of(&|group| group.hierarchy == 0).filter(|path| path != "/");
    v2.or_else(|| {
        of(&|group| group.controllers.iter().any(|name| name == "memory")).filter(|path| path != "/")
    })
}

/// A pod whose requests equal its limits was sold its memory: Kubernetes gives such pods a path without a class.
pub(super) fn is_guaranteed_pod(path: &str) -> bool {
    path.contains("kubepods") && !path.contains("burstable") && !path.contains("besteffort")
}

/// The nearest group on the way up that forbids swap (`memory.swap.max` is 0).
pub(super) fn forbids_swap(cgroup_root: &Path, path: &str) -> Option<String> {
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    // A threaded group (libvirt's emulator) has no memory files; its parents have.
    Path::new(path.trim_start_matches('/')).ancestors().find_map(|group| {
        let limit = std::fs::read_to_string(cgroup_root.join(group).join("memory.swap.max")).ok()?;
        (limit.trim() == "0").then(|| format!("/{}", group.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromRead;

    fn path_of(text: &str) -> Option<String> {
        path(&ProcessCGroups::from_read(text.as_bytes()).unwrap())
    }

    #[test]
    fn the_unified_path_counts_and_on_hybrid_hosts_the_memory_controller() {
        assert_eq!(path_of("0::/machine.slice/a.scope\n").as_deref(), Some("/machine.slice/a.scope"));
        assert_eq!(path_of("4:memory:/qemu/a\n1:cpu:/\n0::/\n").as_deref(), Some("/qemu/a"));
        assert_eq!(path_of("0::/\n"), None);
    }

    #[test]
    fn only_pods_without_a_class_are_guaranteed() {
        let pod = "pod4a6f.slice/cri-containerd-1.scope";
        assert!(is_guaranteed_pod(&format!("/kubepods.slice/kubepods-{pod}")));
        assert!(is_guaranteed_pod("/kubepods/pod4a6f/1"));
        assert!(!is_guaranteed_pod(&format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{pod}"
        )));
        assert!(!is_guaranteed_pod("/kubepods/besteffort/pod4a6f/1"));
        assert!(!is_guaranteed_pod("/machine.slice/machine-qemu.scope"));
    }

    #[test]
    fn a_swap_limit_of_zero_is_found_on_the_way_up() {
        let root = tempfile::tempdir().unwrap();
        let scope = root.path().join("machine.slice/vm.scope");
        std::fs::create_dir_all(scope.join("libvirt/emulator")).unwrap();
        std::fs::write(scope.join("memory.swap.max"), "max\n").unwrap();
        let path = "/machine.slice/vm.scope/libvirt/emulator";
        assert_eq!(forbids_swap(root.path(), path), None);
        std::fs::write(root.path().join("machine.slice/memory.swap.max"), "0\n").unwrap();
        assert_eq!(forbids_swap(root.path(), path).as_deref(), Some("/machine.slice"));
        assert_eq!(forbids_swap(root.path(), "/../machine.slice/vm.scope"), None);
    }
}
