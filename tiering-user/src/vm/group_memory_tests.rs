use super::*;

const MIB: u64 = 1 << 20;
const PID: i32 = 7;

/// A hierarchy in which `machine.slice/vm.scope` holds a VM of 100 MiB.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for group in ["machine.slice", "machine.slice/vm.scope"] {
            std::fs::create_dir_all(tree.0.path().join(group)).unwrap();
            tree.set(group, "memory.current", &(100 * MIB).to_string());
            tree.set(group, "memory.swap.current", &(4 * MIB).to_string());
            for file in ["memory.max", "memory.high", "memory.swap.max", "memory.swap.high"] {
                tree.set(group, file, "max");
            }
            tree.set(group, "memory.min", "0");
            tree.set(group, "memory.low", "0");
        }
        tree.set("machine.slice/vm.scope", "cgroup.procs", "7");
        tree
    }

    fn set(&self, group: &str, file: &str, text: &str) {
        std::fs::write(self.0.path().join(group).join(file), format!("{text}\n")).unwrap();
    }

    /// So much is mapped, a part of it in the swap cache too, and so much are copies.
    fn set_anonymous(&self, group: &str, mapped: u64, both: u64, copies: u64) {
        let (listed, cached) = (mapped + copies, both + copies);
        let text = format!(
            "anon {mapped}\nfile 77\nswapcached {cached}\nshmem 0\ninactive_anon {listed}\nactive_anon 0"
        );
        self.set(group, "memory.stat", &text);
    }

    fn read(&self) -> GroupMemory {
        let key = ProcessKey { pid: PID, start_time_ticks: 0 };
        let memory = GroupMemory::read(self.0.path(), "/machine.slice/vm.scope");
        memory.with_owner(&self.0.path().join("proc"), self.0.path(), key)
    }
}

fn left(headroom: &Headroom) -> (u64, &str) {
    let Headroom::Left { left_bytes, group, .. } = headroom else { panic!("{headroom:?}") };
    (*left_bytes / MIB, group)
}

#[test]
fn without_limits_there_is_room_for_all() {
    let memory = Tree::new().read();
    assert_eq!(memory.group.as_deref(), Some("/machine.slice/vm.scope"));
    let unlimited = (&Headroom::Unlimited, &Headroom::Unlimited, &Headroom::Unlimited);
    assert_eq!((&memory.swap, &memory.charge, &memory.unprotected), unlimited);
}

#[test]
fn the_tightest_limit_on_the_way_up_counts() {
    let tree = Tree::new();
    tree.set("machine.slice/vm.scope", "memory.swap.max", &(64 * MIB).to_string());
    assert_eq!(left(&tree.read().swap), (60, "/machine.slice/vm.scope"));
    tree.set("machine.slice", "memory.swap.high", &(16 * MIB).to_string());
    assert_eq!(left(&tree.read().swap), (12, "/machine.slice"));
    tree.set("machine.slice", "memory.max", &(128 * MIB).to_string());
    tree.set("machine.slice/vm.scope", "memory.high", &(104 * MIB).to_string());
    assert_eq!(left(&tree.read().charge), (4, "/machine.slice/vm.scope"));
    tree.set_anonymous("machine.slice/vm.scope", 20 * MIB, 10 * MIB, 50 * MIB);
    assert_eq!(left(&tree.read().charge), (28, "/machine.slice"), "copies give way");
}

#[test]
fn each_limit_on_the_way_up_is_told_without_what_gives_way() {
    let tree = Tree::new();
    tree.set("machine.slice", "memory.max", &(200 * MIB).to_string());
    tree.set("machine.slice/vm.scope", "memory.high", &(80 * MIB).to_string());
    for group in ["machine.slice", "machine.slice/vm.scope"] {
        let lines = [
            ("anon", 50),
            ("shmem", 5),
            ("swapcached", 10),
            ("inactive_anon", 65),
            ("active_anon", 0),
            ("inactive_file", 25),
            ("active_file", 10),
            ("file_mapped", 3),
            ("file_dirty", 1),
            ("file_writeback", 1),
        ];
        let text: String = lines.iter().map(|(name, mib)| format!("{name} {}\n", mib * MIB)).collect();
        tree.set(group, "memory.stat", &text);
    }
    let limits = tree.read().charge_limits;
    let told = limits.iter().map(|limit| (&*limit.group, limit.limit_bytes / MIB, limit.held_bytes / MIB));
    // 100 MiB are charged, 10 of them copies, 30 page cache that is neither mapped nor dirty.
    let expected = [("/machine.slice", 200, 60), ("/machine.slice/vm.scope", 80, 60)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn a_promise_counts_as_far_as_those_above_it_do() {
    let tree = Tree::new();
    tree.set("machine.slice/vm.scope", "memory.min", &(80 * MIB).to_string());
    assert_eq!(tree.read().unprotected, Headroom::Unlimited, "the slice was promised nothing");
    tree.set("machine.slice", "memory.min", "max");
    assert_eq!(left(&tree.read().unprotected), (0, "/machine.slice"));
    tree.set("machine.slice", "memory.min", &(90 * MIB).to_string());
    assert_eq!(left(&tree.read().unprotected), (10, "/machine.slice"));
    tree.set("machine.slice", "memory.current", &(500 * MIB).to_string());
    assert_eq!(left(&tree.read().unprotected), (20, "/machine.slice/vm.scope"));
    tree.set_anonymous("machine.slice/vm.scope", 80 * MIB, 40 * MIB, 15 * MIB);
    assert_eq!(left(&tree.read().unprotected), (5, "/machine.slice/vm.scope"));
    tree.set("machine.slice", "memory.low", "max");
    tree.set("machine.slice/vm.scope", "memory.low", "max");
    assert_eq!(left(&tree.read().unprotected).0, 0);
}

#[test]
fn what_cannot_be_read_may_leave_nothing() {
    let tree = Tree::new();
    tree.set("machine.slice", "memory.swap.max", "many");
    let file = tree.0.path().join("machine.slice/memory.swap.max");
    assert_eq!(tree.read().swap, Headroom::Unreadable { file });
}

#[test]
fn a_threaded_group_without_memory_files_is_passed_over() {
    let tree = Tree::new();
    std::fs::create_dir(tree.0.path().join("machine.slice/vm.scope/emulator")).unwrap();
    tree.set("machine.slice/vm.scope", "memory.swap.max", &(8 * MIB).to_string());
    tree.set("machine.slice/vm.scope", "memory.swap.events", "high 0\nmax 3\nfail 5");
    tree.set_anonymous("machine.slice/vm.scope", 8192, 8192, 4096);
    let memory = GroupMemory::read(tree.0.path(), "/machine.slice/vm.scope/emulator");
    assert_eq!(memory.group.as_deref(), Some("/machine.slice/vm.scope"));
    assert_eq!(left(&memory.swap), (4, "/machine.slice/vm.scope"));
    assert_eq!((memory.swap_fails, memory.swap_cached_bytes), (Some(5), Some(4096)));
}

#[test]
fn a_group_with_another_vm_or_much_else_anywhere_below_is_not_the_vms_own() {
    let tree = Tree::new();
    assert!(tree.read().is_vms_own);
    std::fs::create_dir(tree.0.path().join("machine.slice/vm.scope/helper")).unwrap();
    tree.set("machine.slice/vm.scope/helper", "cgroup.procs", "8");
    let helper = |comm: &str, rss_mib: u64| {
        std::fs::create_dir_all(tree.0.path().join("proc/8")).unwrap();
        tree.set("proc/8", "comm", comm);
        let status = format!("Name:\t{comm}\nVmRSS:\t  {} kB\nVmSwap:\t  1024 kB", rss_mib * 1024);
        tree.set("proc/8", "status", &status);
        tree.read().is_vms_own
    };
    assert!(helper("swtpm", 255), "256 MiB with what is in swap");
    assert!(!helper("swtpm", 256));
    assert!(!helper("qemu-system-x86", 10));
}

const PRESSURE: &str =
    "some avg10=1.25 avg60=0.10 avg300=0.00 total=123\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=4";

fn pressure(group: &str) -> Option<Pressure> {
    Some(Pressure { group: group.to_owned(), some: Duration::from_micros(123) })
}

#[test]
fn pressure_is_the_groups_own() {
    let tree = Tree::new();
    tree.set("machine.slice", "memory.pressure", PRESSURE);
    assert_eq!(tree.read().pressure, None);
    tree.set("machine.slice/vm.scope", "memory.pressure", PRESSURE);
    assert_eq!(tree.read().pressure, pressure("/machine.slice/vm.scope"));
    tree.set("machine.slice/vm.scope", "memory.pressure", "");
    assert_eq!(tree.read().pressure, None, "switched off");
}

#[test]
fn a_group_of_threads_is_passed_over_also_where_no_group_counts_memory() {
    let tree = Tree::new();
    let emulator = "other.slice/vm.scope/libvirt/emulator";
    std::fs::create_dir_all(tree.0.path().join(emulator)).unwrap();
    for (group, kind) in [
        (emulator, "threaded"),
        ("other.slice/vm.scope/libvirt", "threaded"),
        ("other.slice/vm.scope", "domain threaded"),
    ] {
        tree.set(group, "cgroup.type", kind);
        tree.set(group, "memory.pressure", PRESSURE);
    }
    let memory = GroupMemory::read(tree.0.path(), &format!("/{emulator}"));
    assert_eq!((memory.group, memory.pressure), (None, pressure("/other.slice/vm.scope")));
}

#[test]
fn a_group_that_holds_two_vms_says_of_neither_how_long_it_waits() {
    let vm = |path: &str, group: &str| GroupMemory {
        path: Some(path.to_owned()),
        pressure: pressure(group),
        ..GroupMemory::default()
    };
    let mut memories = [
        vm("/machine.slice/a.scope/libvirt/emulator", "/machine.slice/a.scope"),
        // The name of one begins with that of another.
        vm("/machine.slice/a.scope2", "/machine.slice/a.scope2"),
        // All VMs of an Incus host are in one group.
        vm("/incus.service", "/incus.service"),
        vm("/incus.service", "/incus.service"),
        // One is below the other.
        vm("/user.slice", "/user.slice"),
        vm("/user.slice/b.scope", "/user.slice/b.scope"),
        GroupMemory::default(),
    ];
    keep_own_pressure(&mut memories);
    let told: Vec<bool> = memories.iter().map(|memory| memory.pressure.is_some()).collect();
    assert_eq!(told, [true, true, false, false, false, true, false]);
}

#[test]
fn huge_pages_of_a_group_are_those_that_are_mapped_as_such() {
    let tree = Tree::new();
    tree.set("machine.slice/vm.scope", "memory.stat", "anon 9\nanon_thp 4194304\nfile_thp 7\nshmem_thp 7");
    assert_eq!(tree.read().huge_bytes, Some(4 << 20));
    tree.set("machine.slice/vm.scope", "memory.stat", "anon 9");
    assert_eq!(tree.read().huge_bytes, None, "the kernel does not tell");
}

#[test]
fn nothing_is_concluded_from_a_path_that_leads_out_of_the_mount() {
    let tree = Tree::new();
    tree.set("machine.slice", "memory.swap.max", "0");
    let path = "/../machine.slice/vm.scope";
    assert_eq!(GroupMemory::read(tree.0.path(), path), GroupMemory::default());
}
