//! What a user sees of a host's VMs, on a fake `/proc`.

use super::scan::MOST_STRANGERS;
use super::testing::{FakeHost, Guest, MIB};
use super::*;

fn only(changes: Changes) -> Vm {
    assert!(changes.errors.is_empty(), "{:?}", changes.errors);
    assert_eq!(changes.appeared.len(), 1, "{:?}", changes.appeared);
    changes.appeared.into_iter().next().unwrap()
}

/// The one VM that changes within so many scans.
fn changed(scanner: &mut Scanner, scans: u32) -> Vm {
    let mut changed = (0..scans).flat_map(|_| {
        let changes = scanner.scan().unwrap();
        assert!(changes.errors.is_empty() && changes.gone.is_empty(), "{changes:?}");
        changes.changed
    });
    changed.next().expect("a change")
}

fn sizes_mib(vm: &Vm) -> Vec<u64> {
    vm.ram.iter().map(|region| region.bytes / MIB).collect()
}

/// What a scan says of one guest.
fn seen(guest: &Guest) -> (Option<Refusal>, Vm) {
    let host = FakeHost::new();
    host.start(100, guest);
    let vm = only(host.scanner().scan().unwrap());
    (vm.refusal.clone(), vm)
}

#[test]
fn a_kvm_guest_is_found_with_its_ram_beside_a_bigger_code_buffer() {
    let (refusal, vm) =
        seen(&Guest::kvm("web-1", 512).mapping("7e0000000000", 1024, "rwxp", "", "rd wr ex dc"));
    assert_eq!(refusal, None);
    assert_eq!((vm.name.as_str(), vm.accel, vm.ram_bytes()), ("web-1", Accel::Kvm, 512 * MIB));
    assert_eq!(vm.ram[0].backing, Backing::Anonymous);
    assert_eq!(vm.id(), "web-1@100-5000");
    assert_eq!(vm.cgroup.as_deref(), Some("/machine.slice/vm.scope"));
    assert_eq!(vm.guest_ranges[0].gpa, Some(Gpa(0)));
}

#[test]
fn an_emulated_guest_of_a_replaced_binary_is_found() {
    let guest = Guest::kvm("a", 64).exe("/usr/bin/qemu-system-x86_64 (deleted)").without_kvm();
    assert_eq!(seen(&guest).1.accel, Accel::Tcg);
}

#[test]
fn other_programs_are_no_vms() {
    let host = FakeHost::new();
    host.start(1, &Guest::kvm("a", 64).exe("/usr/bin/qemu-img"));
    host.start(2, &Guest::kvm("b", 64).exe("/usr/bin/redis-server"));
    host.start(3, &Guest::kvm("c", 64).arguments(&["qemu-system-x86_64", "-version"]));
    let changes = host.scanner().scan().unwrap();
    assert!(changes.appeared.is_empty() && changes.errors.is_empty(), "{changes:?}");
}

#[test]
fn what_a_stranger_runs_is_listed_and_not_read() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(
        100,
        &Guest::kvm("web-1", 512).more_arguments(&["-uuid", "11111111-2222-3333-4444-555555555555"]),
    );
    host.owned_by(100, 54_321);
    host.write(100, "smaps", b"what nobody should read");
    let vm = only(scanner.scan().unwrap());
    assert_eq!((vm.name.as_str(), vm.ram_bytes(), vm.images.len()), ("web-1", 0, 0));
    assert_eq!(vm.id(), "web-1@100-5000", "its UUID may be another one's");
    assert_eq!(vm.refusal, Some(Refusal::Untrusted { user: "54321".into() }));
    assert_eq!(vm.refusal.unwrap().scope(), Scope::WatchOnly);
    assert_eq!(scanner.known().count(), 0, "nothing is asked of it every second");
    assert!(scanner.scan().unwrap().appeared.is_empty());
    host.end(100);
    assert_eq!(scanner.scan().unwrap().gone, [vm.key]);
}

#[test]
fn a_process_that_changes_its_user_is_looked_at_anew() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &Guest::kvm("a", 64));
    assert_eq!(only(scanner.scan().unwrap()).refusal, None);
    host.owned_by(100, 65_534);
    let changes = scanner.scan().unwrap();
    assert_eq!(changes.gone.len(), 1, "what was learned of it is for its former owner");
    assert!(matches!(only(changes).refusal, Some(Refusal::Untrusted { .. })));
    host.owned_by(100, 107);
    assert_eq!(only(scanner.scan().unwrap()).refusal, None);
}

#[test]
fn of_many_processes_of_strangers_a_few_are_listed_and_none_hides_a_machine() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    let most = i32::try_from(MOST_STRANGERS).unwrap();
    for pid in 100..100 + most + 9 {
        host.start(pid, &Guest::kvm("x", 64));
        host.owned_by(pid, 54_321);
    }
    host.start(900, &Guest::kvm("web-1", 64));
    let changes = scanner.scan().unwrap();
    assert_eq!((changes.appeared.len(), changes.unlisted), (MOST_STRANGERS + 1, 9));
    assert_eq!(scanner.known().map(|key| key.pid).collect::<Vec<_>>(), [900]);
    host.end(100);
    let gone = scanner.scan().unwrap().gone.len();
    let unlisted = scanner.scan().unwrap().unlisted;
    assert!(gone <= 1 && unlisted <= 9, "{gone} {unlisted}");
}

#[test]
fn only_changes_are_told_and_a_reused_pid_is_another_vm() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &Guest::kvm("old", 64));
    let old = only(scanner.scan().unwrap());
    let quiet = scanner.scan().unwrap();
    assert!(quiet.appeared.is_empty() && quiet.gone.is_empty());

    host.end(100);
    host.start(100, &Guest::kvm("new", 64).started(9000));
    let changes = scanner.scan().unwrap();
    assert_eq!(changes.gone, [old.key]);
    assert_eq!(only(changes).name, "new");
    assert_eq!(recheck(host.proc_root(), host.cgroup_root(), &old), Some(Refusal::Gone));

    host.end(100);
    assert_eq!(scanner.scan().unwrap().gone.len(), 1);
}

#[test]
fn a_zombie_is_gone() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &Guest::kvm("a", 64));
    scanner.scan().unwrap();
    host.end(100);
    host.start(100, &Guest::kvm("a", 64).state('Z'));
    assert_eq!(scanner.scan().unwrap().gone.len(), 1);
}

#[test]
fn a_process_that_becomes_qemu_by_exec_is_found() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &Guest::kvm("a", 64).exe("/usr/sbin/libvirtd"));
    assert!(scanner.scan().unwrap().appeared.is_empty());
    host.end(100);
    host.start(100, &Guest::kvm("a", 64));
    assert_eq!(only(scanner.scan().unwrap()).name, "a");
}

#[test]
fn ram_that_is_not_mapped_yet_is_waited_for() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &Guest::kvm("a", 64).without_ram());
    assert!(scanner.scan().unwrap().appeared.is_empty());
    host.end(100);
    host.start(100, &Guest::kvm("a", 64));
    assert_eq!(only(scanner.scan().unwrap()).refusal, None);
}

#[test]
fn ram_of_another_size_than_announced_is_watched_only() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &Guest::kvm("a", 64).without_ram().mapping("7f0000000000", 96, "rw-p", "", "rd wr dc"));
    for _ in 0..scan::SETTLE_SCANS {
        assert!(scanner.scan().unwrap().appeared.is_empty());
    }
    let vm = only(scanner.scan().unwrap());
    assert_eq!(vm.refusal.as_ref().unwrap().scope(), Scope::WatchOnly);
    assert_eq!(vm.ram_bytes(), 96 * MIB);
    assert_eq!(
        vm.refusal.unwrap().to_string(),
        "its memory layout is not understood: 67108864 bytes announced on the command line, 100663296 found"
    );
}

#[test]
fn memfd_ram_is_shared_and_known_by_its_inode() {
    let (refusal, vm) = seen(&Guest::memfd("a", 256));
    assert_eq!(refusal, None);
    let Backing::Shared { inode, device, offset, .. } = &vm.ram[0].backing else { panic!("{vm:?}") };
    assert_eq!((*inode, *device, *offset), (1234, (0, 1), 0));
}

#[test]
fn memfd_ram_that_a_vhost_user_daemon_maps_moves_between_nodes_only() {
    let host = FakeHost::new();
    let vhost = ["-device", "vhost-user-fs-pci,chardev=c,tag=t"];
    host.start(100, &Guest::memfd("a", 256).more_arguments(&vhost));
    let mut scanner = host.scanner();
    let alone = only(scanner.scan().unwrap());
    assert_eq!(alone.refusal, None, "the sole mapper may be paged out");

    host.start(200, &Guest::memfd("daemon", 256).exe("/usr/libexec/virtiofsd"));
    let refused = changed(&mut scanner, scan::MAPPERS_SCANS).refusal.unwrap();
    assert_eq!(refused, Refusal::SharedMapper { pid: 200 });
    assert_eq!(refused.scope(), Scope::NodesOnly);

    host.end(200);
    assert_eq!(changed(&mut scanner, scan::MAPPERS_SCANS).refusal, None);
}

#[test]
fn a_daemon_that_maps_ram_of_a_vm_without_vhost_user_devices_is_seen_by_its_pages() {
    let host = FakeHost::new();
    host.start(100, &Guest::memfd("a", 1));
    let mut scanner = host.scanner();
    only(scanner.scan().unwrap());
    host.start(200, &Guest::memfd("daemon", 1).exe("/usr/libexec/virtiofsd"));
    let pages = |entry: u64| {
        // Sparse: the entries of the region alone.
        let pagemap = std::fs::File::create(host.proc_root().join("100/pagemap")).unwrap();
        let first = 0x7f80_0000_0000_u64 / 4096;
        std::os::unix::fs::FileExt::write_all_at(&pagemap, &entry.to_ne_bytes().repeat(256), first * 8)
            .unwrap();
    };
    pages(1 << 63 | 1 << 56 | 7);
    assert!((0..scan::MAPPERS_SCANS).all(|_| scanner.scan().unwrap().changed.is_empty()), "its own alone");
    pages(1 << 63 | 7);
    assert_eq!(changed(&mut scanner, scan::AGAIN_SCANS).refusal, Some(Refusal::SharedMapper { pid: 200 }));
}

#[test]
fn a_tmpfs_file_is_memory_and_a_file_on_disk_is_not() {
    let file = |device: &str, path: &str| {
        let flags = "rd wr sh mr mw me ms dc";
        let guest = Guest::kvm("a", 64).more_arguments(&["-mem-path", "/x"]).without_ram();
        seen(&guest.file_mapping("7f0000000000", 64, device, path, flags))
    };
    assert_eq!(file("00:1b", "/dev/shm/qemu_back_mem.pc.ram.El6EbW (deleted)").0, None);
    let (refusal, _) = file("fe:01", "/var/lib/ram.img");
    assert_eq!(refusal, Some(Refusal::OnStorage { what: "/var/lib/ram.img".to_owned() }));
    let (refusal, vm) = file("fe:01", "/var/tmp/qemu_back_mem.pc.ram.El6EbW (deleted)");
    assert_eq!(refusal.unwrap().scope(), Scope::Never, "page-out would write the file");
    assert_eq!(vm.ram_bytes(), 64 * MIB);
}

#[test]
fn hugetlb_ram_moves_between_nodes_only() {
    let guest = Guest::kvm("a", 64).without_ram().mapping(
        "7f0000000000",
        64,
        "rw-p",
        "/anon_hugepage (deleted)",
        "rd wr dc de ht",
    );
    let (refusal, vm) = seen(&guest);
    assert_eq!((refusal.unwrap().scope(), &vm.ram[0].backing), (Scope::NodesOnly, &Backing::Hugetlb));
}

#[test]
fn locked_ram_is_never_moved_however_it_shows() {
    let flag = Guest::kvm("a", 64).without_ram().mapping("7f0000000000", 64, "rw-p", "", "rd wr lo dc");
    for guest in [
        flag,
        Guest::kvm("a", 64).more_arguments(&["-overcommit", "mem-lock=on"]),
        Guest::kvm("a", 64).locked_kib(64 << 10),
    ] {
        assert_eq!(seen(&guest).0, Some(Refusal::MemoryLocked));
    }
}

#[test]
fn devices_with_access_to_ram_are_seen_by_their_files() {
    for file in ["/dev/vfio/42", "/dev/iommu", "/dev/vhost-vdpa-0", "/dev/infiniband/uverbs0"] {
        let (refusal, _) = seen(&Guest::kvm("a", 64).file(file));
        assert_eq!(refusal, Some(Refusal::DeviceAssigned { what: file.to_owned() }));
    }
    assert_eq!(seen(&Guest::kvm("a", 64).file("/dev/sev")).0, Some(Refusal::Confidential));
    assert_eq!(seen(&Guest::kvm("a", 64).file("/dev/vhost-net")).0, None);
}

#[test]
fn what_begins_while_a_vm_runs_is_seen_by_the_recheck() {
    let host = FakeHost::new();
    host.start(100, &Guest::kvm("a", 64));
    let vm = only(host.scanner().scan().unwrap());
    let becomes = |guest: Guest| {
        host.end(100);
        host.start(100, &guest);
        recheck(host.proc_root(), host.cgroup_root(), &vm)
    };
    assert_eq!(becomes(Guest::kvm("a", 64)), None);
    let vfio = becomes(Guest::kvm("a", 64).file("/dev/vfio/7"));
    assert_eq!(vfio, Some(Refusal::DeviceAssigned { what: "/dev/vfio/7".to_owned() }));
    for name in ["mig/src/main", "live_migration"] {
        let migrating = becomes(Guest::kvm("a", 64).thread(name, 0, 10));
        assert_eq!(migrating, Some(Refusal::Migrating { thread: name.to_owned() }));
    }
    assert_eq!(becomes(Guest::kvm("a", 64).file("anon_inode:[userfaultfd]")), Some(Refusal::Userfaultfd));
    assert_eq!(becomes(Guest::kvm("a", 64).thread("CPU 0/KVM", 1, 10)), Some(Refusal::Realtime));
    host.forbid_swap("machine.slice");
    let forbidden = becomes(Guest::kvm("a", 64)).unwrap();
    assert_eq!(forbidden.to_string(), "its control group /machine.slice forbids swap");
    assert_eq!(forbidden.scope(), Scope::NodesOnly);
}

#[test]
fn the_limits_of_a_vm_are_those_of_its_own_groups_and_end_with_it() {
    let host = FakeHost::new();
    host.start(100, &Guest::kvm("a", 64));
    let vm = only(host.scanner().scan().unwrap());
    let swap = || GroupMemory::of(host.proc_root(), host.cgroup_root(), vm.key).swap;
    host.forbid_swap("system.slice");
    assert_eq!(swap(), Headroom::Unlimited);
    host.forbid_swap("machine.slice");
    let current = host.cgroup_root().join("machine.slice/memory.swap.current");
    assert_eq!(swap(), Headroom::Unreadable { file: current.clone() }, "a limit of what?");
    std::fs::write(current, "0\n").unwrap();
    let none = Headroom::Left { left_bytes: 0, limit_bytes: 0, group: "/machine.slice".to_owned() };
    assert_eq!(swap(), none);

    host.end(100);
    host.start(100, &Guest::kvm("a", 64).started(9000));
    assert_eq!(swap(), Headroom::Unlimited, "another process by now");
}

#[test]
fn userfaultfd_handled_elsewhere_shows_in_the_mapping() {
    let guest = Guest::kvm("a", 64).without_ram().mapping("7f0000000000", 64, "rw-p", "", "rd wr dc um");
    assert_eq!(seen(&guest).0, Some(Refusal::Userfaultfd));
}

#[test]
fn an_incoming_vm_is_left_alone_until_its_cpu_ran() {
    let incoming = || Guest::kvm("a", 64).more_arguments(&["-incoming", "defer"]);
    assert_eq!(seen(&incoming().thread("CPU 0/KVM", 0, 3)).0, Some(Refusal::Incoming));
    assert_eq!(seen(&incoming().thread("CPU 0/KVM", 0, 600)).0, None);
}

#[test]
fn what_is_not_understood_of_a_file_is_an_error_that_names_it_once() {
    let host = FakeHost::new();
    host.start(100, &Guest::kvm("broken", 64));
    host.start(101, &Guest::kvm("fine", 64));
    host.write(100, "maps", b"nonsense\n");
    let mut scanner = host.scanner();
    let changes = scanner.scan().unwrap();
    assert_eq!(changes.appeared.len(), 1, "the other VM is found");
    let message = changes.errors[0].to_string();
    assert!(message.starts_with("cannot read maps of process 100"), "{message}");
    assert!(scanner.scan().unwrap().errors.is_empty());
}

#[test]
fn hostile_bytes_in_names_and_paths_hide_nothing() {
    let host = FakeHost::new();
    host.start(100, &Guest::kvm("a", 64));
    host.write(
        100,
        "cmdline",
        b"kvm\0-name\0\xff\xfe\x1b[31m\0-m\0".iter().chain(b"64\0").copied().collect::<Vec<_>>().as_slice(),
    );
    host.append(100, "maps", b"7d0000000000-7d0000001000 r--s 00000000 00:01 7    /SYSV\xff\n");
    let vm = only(host.scanner().scan().unwrap());
    assert_eq!(vm.name, "\u{fffd}\u{fffd}[31m");
    assert_eq!(vm.refusal, None);
}

#[test]
fn blocks_of_two_nodes_come_in_guest_order_also_when_merged() {
    let nodes = [
        "qemu-system-x86_64",
        "-m",
        "192",
        "-object",
        "memory-backend-ram,id=a,size=128M",
        "-object",
        "memory-backend-ram,id=b,size=64M",
        "-numa",
        "node,memdev=a",
        "-numa",
        "node,memdev=b",
    ];
    let two = Guest::kvm("a", 64).arguments(&nodes).without_ram();
    let apart = two.clone().mapping("7e0000000000", 64, "rw-p", "", "rd wr dc");
    let (_, vm) = seen(&apart.mapping("7f0000000000", 128, "rw-p", "", "rd wr dc"));
    assert_eq!(
        vm.ram.iter().map(|r| r.start).collect::<Vec<_>>(),
        [Hva(0x7f00_0000_0000), Hva(0x7e00_0000_0000)]
    );

    let (refusal, merged) = seen(&two.mapping("7e0000000000", 192, "rw-p", "", "rd wr dc"));
    assert_eq!(refusal, None);
    let blocks: Vec<_> = merged.ram.iter().map(|r| (r.start.0, r.bytes)).collect();
    assert_eq!(blocks, [(0x7e00_0000_0000 + 64 * MIB, 128 * MIB), (0x7e00_0000_0000, 64 * MIB)]);
}

#[test]
fn equal_blocks_are_told_apart_by_the_order_of_their_creation() {
    // The object exists before the RAM of -m does, so it lies higher; in the guest it follows.
    let dimm = ["-object", "memory-backend-ram,id=d,size=64M", "-device", "pc-dimm,memdev=d"];
    let guest = Guest::kvm("a", 64).more_arguments(&dimm);
    let (_, vm) = seen(&guest.mapping("7f9000000000", 64, "rw-p", "", "rd wr dc"));
    let starts: Vec<u64> = vm.ram.iter().map(|region| region.start.0).collect();
    assert_eq!(starts, [0x7f80_0000_0000, 0x7f90_0000_0000]);
}

#[test]
fn a_block_that_the_kernel_has_split_is_one_region() {
    let guest = Guest::kvm("a", 96).without_ram();
    let guest = guest.mapping("7f0000000000", 32, "rw-p", "", "rd wr");
    let (refusal, vm) = seen(&guest.mapping("7f0002000000", 64, "rw-p", "", "rd wr dc hg"));
    assert_eq!(refusal, None);
    assert_eq!((vm.ram.len(), vm.ram[0].start, vm.ram_bytes()), (1, Hva(0x7f00_0000_0000), 96 * MIB));
}

#[test]
fn what_lies_right_below_ram_is_not_taken_for_a_part_of_it() {
    let guest = Guest::kvm("a", 64).without_ram().mapping("7efffff00000", 1, "rw-p", "", "rd wr");
    let (refusal, vm) = seen(&guest.mapping("7f0000000000", 64, "rw-p", "", "rd wr dc"));
    assert_eq!((refusal, vm.ram[0].start, vm.ram_bytes()), (None, Hva(0x7f00_0000_0000), 64 * MIB));
}

#[test]
fn of_two_mappings_of_one_size_the_one_before_a_guard_page_is_ram() {
    let guest = Guest::kvm("a", 64).without_ram().mapping("7f0000000000", 64, "rw-p", "", "rd wr dc");
    let (_, vm) = seen(&guest.mapping("7f9000000000", 64, "rw-p", "", "rd wr"));
    assert_eq!(vm.ram[0].start, Hva(0x7f00_0000_0000));
}

const IN_A_FILE: &str = "[machine]\n  type = \"q35\"\n[memory]\n  size = \"64M\"\n";

#[test]
fn a_vm_whose_memory_is_in_a_configuration_file_is_found_and_one_without_the_file_is_watched() {
    let host = FakeHost::new();
    let guest = Guest::kvm("a", 64).arguments(&[
        "qemu-system-x86_64",
        "-name",
        "v1",
        "-readconfig",
        "/run/qemu.conf",
    ]);
    host.start(100, &guest);
    host.put_file(100, "/run/qemu.conf", IN_A_FILE);
    let mut scanner = host.scanner();
    let vm = only(scanner.scan().unwrap());
    assert_eq!((vm.name.as_str(), vm.ram_bytes(), vm.refusal), ("v1", 64 * MIB, None));
    host.becomes(100, &guest);
    assert!((0..120).all(|_| scanner.scan().unwrap().changed.is_empty()), "removed after it was read");

    let unread = only(host.scanner().scan().unwrap());
    let refusal = unread.refusal.unwrap();
    assert_eq!(refusal.scope(), Scope::WatchOnly);
    assert!(refusal.to_string().contains("/run/qemu.conf: No such file"), "{refusal}");
}

/// A VM with memory slots.
fn pluggable() -> Guest {
    Guest::kvm("a", 64).more_arguments(&["-m", "slots=4,maxmem=8G"])
}

#[test]
fn a_dimm_is_seen_when_it_is_plugged_and_when_it_is_unplugged() {
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &pluggable());
    only(scanner.scan().unwrap());
    let one = pluggable().mapping("7f2000000000", 256, "rw-p", "", "rd wr dc");
    host.becomes(100, &one);
    let vm = changed(&mut scanner, 1);
    assert_eq!((sizes_mib(&vm), &vm.refusal), (vec![64, 256], &None));
    let gpas =
        |vm: &Vm| vm.guest_ranges.iter().map(|range| range.gpa.map(|gpa| gpa.0 / MIB)).collect::<Vec<_>>();
    assert_eq!(gpas(&vm), [Some(0), Some(4096)]);

    let two = one.mapping("7f3000000000", 128, "rw-p", "", "rd wr dc");
    host.becomes(100, &two);
    let vm = changed(&mut scanner, 1);
    assert_eq!((sizes_mib(&vm), gpas(&vm)), (vec![64, 128, 256], vec![Some(0), Some(4352), Some(4096)]));

    host.becomes(100, &pluggable().mapping("7f3000000000", 128, "rw-p", "", "rd wr dc"));
    let vm = changed(&mut scanner, 1);
    assert_eq!(
        (sizes_mib(&vm), gpas(&vm)),
        (vec![64, 128], vec![Some(0), Some(4352)]),
        "it stays where it is"
    );
    assert!(scanner.scan().unwrap().changed.is_empty());

    let late = only(host.scanner().scan().unwrap());
    assert_eq!(gpas(&late), [Some(0), None], "nothing says in which order they were plugged");
}

#[test]
fn only_what_looks_like_a_dimm_is_taken_for_one() {
    let sizes = |guest: &Guest| sizes_mib(&seen(guest).1);
    let dimm = |guest: Guest| guest.mapping("7f2000000000", 256, "rw-p", "", "rd wr dc");
    assert_eq!(sizes(&dimm(pluggable())), [64, 256]);
    assert_eq!(sizes(&dimm(Guest::kvm("a", 64))), [64], "a machine without slots");
    assert_eq!(sizes(&pluggable().mapping("7f2000000000", 256, "rw-p", "", "rd wr")), [64], "no guard page");
    assert_eq!(sizes(&pluggable().mapping("7f2000001000", 256, "rw-p", "", "rd wr dc")), [64], "not aligned");
    assert_eq!(
        sizes(&pluggable().mapping("7f2000000000", 255, "rw-p", "", "rd wr dc")),
        [64],
        "no whole huge pages"
    );
    let video = ["-device", "qxl-vga"];
    let with_video = pluggable().more_arguments(&video).mapping("7f2000000000", 64, "rw-p", "", "rd wr dc");
    assert_eq!(sizes(&with_video), [64]);
}

#[test]
fn a_dimm_of_the_command_line_that_is_unplugged_is_not_missed() {
    let dimm = ["-object", "memory-backend-ram,id=d,size=128M", "-device", "pc-dimm,memdev=d"];
    let guest = pluggable().more_arguments(&dimm);
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &guest.clone().mapping("7f9000000000", 128, "rw-p", "", "rd wr dc"));
    assert_eq!(sizes_mib(&only(scanner.scan().unwrap())), [64, 128]);
    host.becomes(100, &guest);
    let vm = changed(&mut scanner, 1);
    assert_eq!((sizes_mib(&vm), vm.refusal), (vec![64], None));
}

#[test]
fn an_image_is_left_alone_and_the_ram_beside_it_is_managed() {
    let kata = [
        "qemu-system-x86_64",
        "-name",
        "sandbox-1",
        "-machine",
        "q35,nvdimm=on",
        "-m",
        "64M,slots=10,maxmem=8G",
        "-object",
        "memory-backend-file,id=mem0,mem-path=/usr/share/kata/kata.img,size=128M,readonly=on",
        "-device",
        "nvdimm,id=nv0,memdev=mem0,unarmed=on",
        "-object",
        "memory-backend-file,id=dimm1,size=64M,mem-path=/dev/shm,share=on",
        "-numa",
        "node,memdev=dimm1",
    ];
    let guest = Guest::kvm("a", 64).arguments(&kata).without_ram();
    let ram = "/dev/shm/qemu_back_mem.dimm1.x (deleted)";
    let (refusal, vm) = seen(&guest.file_mapping("7f0000000000", 64, "00:1b", ram, "rd wr sh dc"));
    assert_eq!((refusal, sizes_mib(&vm)), (None, vec![64]));
    let image = Apart::Image { what: "read-only".to_owned() };
    assert_eq!(vm.left_alone, [LeftAlone { bytes: 128 * MIB, why: image }]);
}

/// A guest with a node of 64 MiB of anonymous memory, and one in a file.
fn two_kinds(device: &str, path: &str) -> Guest {
    let nodes = [
        "-object",
        "memory-backend-ram,id=a,size=64M",
        "-object",
        "memory-backend-file,id=b,size=32M,mem-path=/x",
        "-numa",
        "node,memdev=a",
        "-numa",
        "node,memdev=b",
    ];
    Guest::kvm("a", 64).more_arguments(&nodes).file_mapping("7f0000000000", 32, device, path, "rd wr sh dc")
}

#[test]
fn a_reason_that_is_about_one_part_leaves_that_part_alone() {
    let (refusal, vm) = seen(&two_kinds("fe:01", "/srv/ram.img"));
    assert_eq!((refusal, sizes_mib(&vm)), (None, vec![64]));
    let on_disk = Apart::OnStorage { what: "/srv/ram.img".to_owned() };
    assert_eq!(vm.left_alone, [LeftAlone { bytes: 32 * MIB, why: on_disk }]);
    assert_eq!(vm.guest_ranges.len(), 1);

    let (refusal, vm) = seen(&two_kinds("00:06", "/dev/dax0.0"));
    assert_eq!((refusal, sizes_mib(&vm)), (None, vec![64]), "a DAX device");

    let (refusal, vm) = seen(&two_kinds("00:11", "/anon_hugepage (deleted)"));
    assert_eq!((refusal, sizes_mib(&vm)), (None, vec![64, 32]));
    assert_eq!(vm.left_alone, [LeftAlone { bytes: 32 * MIB, why: Apart::Hugetlb }]);
}

#[test]
fn virtio_mem_is_managed_and_known_to_have_room_for_more() {
    let device = [
        "-object",
        "memory-backend-ram,id=v,size=256M",
        "-device",
        "virtio-mem-pci,memdev=v,requested-size=64M",
    ];
    let guest = pluggable().more_arguments(&device).mapping("7f9000000000", 256, "rw-p", "", "rd wr dc");
    let (refusal, vm) = seen(&guest);
    assert_eq!((refusal, sizes_mib(&vm)), (None, vec![64, 256]));
    assert_eq!(vm.on_demand, [vm.ram[1].clone()]);
    assert_eq!(
        seen(&guest.locked_kib(64 << 10)).0,
        Some(Refusal::MemoryLocked),
        "all that is there is locked"
    );
}

#[test]
fn dimms_beyond_what_can_be_watched_are_left_alone() {
    let guest = (0..20).fold(pluggable(), |guest, number| {
        let object = format!("memory-backend-ram,id=d{number},size=128M");
        let device = format!("pc-dimm,memdev=d{number}");
        let guest = guest.more_arguments(&["-object", &object, "-device", &device]);
        guest.mapping(&format!("7f{:02x}00000000", 0x10 + number), 128, "rw-p", "", "rd wr dc")
    });
    let (refusal, vm) = seen(&guest);
    assert_eq!((refusal, vm.ram.len()), (None, tiering_common::MAX_RANGES));
    let left = 21 - tiering_common::MAX_RANGES as u64;
    assert_eq!(vm.left_alone, [LeftAlone { bytes: left * 128 * MIB, why: Apart::TooManyParts }]);
}

#[test]
fn memory_that_the_kernel_keeps_to_itself_is_never_moved() {
    for file in ["anon_inode:[kvm-gmem]", "anon_inode:[guest_memfd]", "anon_inode:guest_memfd"] {
        assert_eq!(seen(&Guest::kvm("a", 64).file(file)).0, Some(Refusal::GuestMemfd), "{file}");
    }
}

#[test]
fn page_tables_are_walked_only_of_a_process_with_next_to_no_pages() {
    let watched = |flag: &str| {
        Guest::kvm("a", 64).without_ram().mapping("7f0000000000", 64, "rw-p", "", &format!("rd wr dc {flag}"))
    };
    for flag in ["um", "uw", "ui", "ur"] {
        assert_eq!(seen(&watched(flag)).0, Some(Refusal::Userfaultfd), "{flag}");
    }
    let host = FakeHost::new();
    let mut scanner = host.scanner();
    host.start(100, &watched("ur"));
    assert_eq!(only(scanner.scan().unwrap()).refusal, Some(Refusal::Userfaultfd));
    host.becomes(100, &watched("ur").resident_kib(1 << 20));
    std::fs::remove_file(host.proc_root().join("100/smaps")).unwrap();
    for _ in 0..120 {
        let changes = scanner.scan().unwrap();
        assert!(
            changes.changed.is_empty() && changes.errors.is_empty() && changes.gone.is_empty(),
            "{changes:?}"
        );
    }
}

#[test]
fn a_proc_that_is_not_there_is_an_error_that_says_so() {
    let error = Scanner::new("/nowhere", "/nowhere", Trust::of(&[0])).scan().unwrap_err();
    assert!(error.to_string().starts_with("cannot list the processes in /nowhere"), "{error}");
}

#[test]
fn addresses_round_down_to_pages_and_do_not_wrap() {
    assert_eq!(Hva(0x7f00_0000_1fff).page_start(4096), Hva(0x7f00_0000_1000));
    assert_eq!(Hva(0x7f00_0030_1000).page_start(2 << 20), Hva(0x7f00_0020_0000));
    assert_eq!(Hva(u64::MAX).checked_add(1), None);
    assert_eq!(Hva(0x1000).to_string(), "0x1000");
}

#[test]
fn a_region_holds_its_first_byte_and_not_the_one_behind_it() {
    let region = RamRegion { start: Hva(0x1000), bytes: 0x2000, backing: Backing::Anonymous };
    assert!(region.contains(Hva(0x1000)));
    assert!(region.contains(Hva(0x2fff)));
    assert!(!region.contains(Hva(0x3000)));
}
