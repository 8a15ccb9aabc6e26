//! What is read from command lines as they are in use.

use super::*;
use proptest::prelude::*;

fn parse(line: &str) -> Option<CommandLine> {
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    CommandLine::parse(&arguments, &mut no_file)
}

fn no_file(_: &str) -> Result<String, String> {
    Err("No such file".to_owned())
}

/// Of RAM.
fn sizes(vm: &CommandLine) -> Vec<u64> {
    let ram = vm.blocks.iter().filter(|block| matches!(block.role, Role::Main | Role::Dimm));
    ram.map(|block| block.bytes).collect()
}

fn roles(vm: &CommandLine) -> Vec<Role> {
    vm.blocks.iter().map(|block| block.role).collect()
}

const GIB: u64 = 1 << 30;

#[test]
fn libvirt_line() {
    let vm = parse(
        r#"/usr/bin/qemu-system-x86_64 -name guest=web-1,debug-threads=on -S
        -object {"qom-type":"secret","id":"masterKey0","format":"raw","file":"/x"}
        -machine pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram -accel kvm -m 2048
        -object {"qom-type":"memory-backend-ram","id":"pc.ram","size":2147483648}
        -overcommit mem-lock=off -uuid 9B5E2C6A-0f5d-4b39-9d0a-111111111111 -no-user-config -nodefaults"#,
    )
    .unwrap();
    assert_eq!(vm.name.as_deref(), Some("web-1"));
    assert_eq!(vm.uuid.as_deref(), Some("9b5e2c6a-0f5d-4b39-9d0a-111111111111"));
    assert_eq!(vm.board.machine.as_deref(), Some("pc-q35-7.2"));
    assert_eq!(sizes(&vm), [2 * GIB]);
    assert!(!vm.mem_lock && !vm.incoming && !vm.confidential && !vm.numa_bound);
}

#[test]
fn kubevirt_line_splits_namespace_and_name_at_the_first_underscore() {
    let line =
        "/usr/libexec/qemu-kvm -name guest=team-a_db_main,debug-threads=on -m size=1048576k -machine q35
        -smbios type=1,manufacturer=KubeVirt,product=None,uuid=5d307ca9-b3ef-428c-8861-06e72d69f223";
    let vm = parse(line).unwrap();
    assert_eq!((vm.namespace.as_deref(), vm.name.as_deref()), (Some("team-a"), Some("db_main")));
    assert_eq!(vm.uuid.as_deref(), Some("5d307ca9-b3ef-428c-8861-06e72d69f223"));
    assert_eq!(sizes(&vm), [GIB]);

    let elsewhere = parse(&line.replace("KubeVirt", "QEMU")).unwrap();
    assert_eq!((elsewhere.namespace, elsewhere.name.as_deref()), (None, Some("team-a_db_main")));
}

#[test]
fn proxmox_line_has_its_uuid_in_smbios_and_a_plain_name() {
    let vm = parse(
        "/usr/bin/kvm -id 100 -name mail,debug-threads=on -no-shutdown -daemonize
        -smbios type=1,uuid=0a1b2c3d-0000-4000-8000-0123456789ab -m 4096
        -object memory-backend-ram,id=ram-node0,size=2048M -object memory-backend-ram,id=ram-node1,size=2048M,policy=bind
        -numa node,nodeid=1,cpus=1,memdev=ram-node1 -numa node,nodeid=0,cpus=0,memdev=ram-node0
        -machine type=pc-i440fx-9.0+pve0",
    )
    .unwrap();
    assert_eq!(vm.name.as_deref(), Some("mail"));
    assert_eq!(vm.uuid.as_deref(), Some("0a1b2c3d-0000-4000-8000-0123456789ab"));
    assert_eq!(sizes(&vm), [2 * GIB, 2 * GIB]);
    assert!(vm.numa_bound);
}

#[test]
fn plain_line_with_memory_slots_and_a_dimm() {
    let vm = parse(
        "qemu-system-x86_64 -m 1G,slots=4,maxmem=8G -object memory-backend-ram,id=d0,size=512M
        -device pc-dimm,memdev=d0 -object memory-backend-file,id=shm,size=64M,mem-path=/dev/shm/x,share=on
        -device ivshmem-plain,memdev=shm",
    )
    .unwrap();
    assert_eq!(vm.name, None);
    assert_eq!(sizes(&vm), [GIB, GIB / 2], "shared memory devices are not RAM");
    assert_eq!(roles(&vm), [Role::Main, Role::Dimm, Role::Other]);
    assert_eq!((vm.board.max_ram_bytes, vm.board.slots), (Some(8 * GIB), 4));
}

#[test]
fn nodes_decide_the_order_of_blocks() {
    let vm = parse(
        "qemu-system-x86_64 -m 3G -object memory-backend-ram,id=a,size=2G -object memory-backend-ram,id=b,size=1G
        -numa node,nodeid=1,memdev=a -numa node,nodeid=0,memdev=b",
    );
    assert_eq!(sizes(&vm.unwrap()), [GIB, 2 * GIB]);
}

#[test]
fn memory_in_slots_follows_in_the_order_of_its_devices() {
    let vm = parse(
        r#"kvm -m 1G,slots=4,maxmem=8G -object memory-backend-ram,id=d0,size=512M -object memory-backend-ram,id=v,size=2G
        -object memory-backend-file,id=n,size=128M,mem-path=/n.img,readonly=on -device nvdimm,memdev=n,unarmed=on
        -device {"driver":"virtio-mem-pci","memdev":"v","addr":"0x5"} -device pc-dimm,memdev=d0,addr=0x140000000"#,
    )
    .unwrap();
    assert_eq!(roles(&vm), [Role::Main, Role::Image, Role::VirtioMem, Role::Dimm]);
    let places: Vec<_> = vm.blocks.iter().map(|block| block.gpa).collect();
    assert_eq!(places, [None, None, None, Some(0x1_4000_0000)], "addr of a PCI device is its slot");
}

#[test]
fn options_are_read_as_qemu_reads_them() {
    let vm = |rest: &str| parse(&format!("kvm {rest}")).unwrap();
    assert_eq!(sizes(&vm("-m size=1G,slots=2,maxmem=4G")), [GIB]);
    assert_eq!(sizes(&vm("-m 1G -m slots=2,maxmem=4G")), [GIB]);
    assert_eq!(sizes(&vm("--m 0x400 --M microvm")), [GIB]);
    let plain = vm("-m 1024,slots=2,maxmem=4294967296");
    assert_eq!((sizes(&plain), plain.board.max_ram_bytes), (vec![GIB], Some(4 * GIB)), "maxmem counts bytes");
    assert_eq!(sizes(&vm("-machine q35,memory.size=1G")), [GIB]);
    let two = "-object memory-backend-ram,id=a,size=1G -object memory-backend-ram,id=b,size=2G";
    let nodes = format!("{two} -numa node,cpus=0 -numa node,memdev=a -numa node,memdev=b");
    assert_eq!(sizes(&vm(&nodes)), [GIB, 2 * GIB], "the first node has processors only");
    assert_eq!(sizes(&vm(&format!("{two} -numa node,memdev=a -set object.a.size=3G"))), [3 * GIB]);
    assert_eq!(vm("-m 64 -mem-path /dev/shm -mem-prealloc -S").blocks[0].kind, Kind::File);
    assert_eq!(vm("-m 64 -smp 4,sockets=2,maxcpus=8").vcpus, Some(4));
    assert_eq!(vm("-m 64 -smp sockets=2,cores=3,threads=2").vcpus, Some(12));
    assert_eq!((vm("-m 64").vcpus, vm("-m 64 -smp many").vcpus), (None, None));
    assert_eq!(vm("-m 64 -cpu EPYC,vendor=GenuineIntel").board.cpu_vendor.as_deref(), Some("GenuineIntel"));
}

#[test]
fn what_a_configuration_file_says_counts_as_if_it_were_on_the_line() {
    let file = "[machine]\n type = \"q35\"\n accel = \"kvm\"\n[memory]\n size = \"1024\"\n[object \"mem0\"]\n \
                qom-type = \"memory-backend-memfd\"\n size = \"1024M\"\n share = \"on\"\n[numa]\n type = \"node\"\n \
                nodeid = \"0\"\n memdev = \"mem0\"\n[device \"qemu_fs\"]\n driver = \"vhost-user-fs-pci\"\n";
    let arguments = ["qemu-system-x86_64", "-S", "-name", "v1", "-readconfig", "/run/qemu.conf"];
    let arguments = arguments.map(str::to_owned);
    let read = |text: Result<String, String>| {
        CommandLine::parse(&arguments, &mut |path| {
            assert_eq!(path, "/run/qemu.conf");
            text.clone()
        })
    };
    let vm = read(Ok(file.to_owned())).unwrap();
    assert_eq!((vm.name.as_deref(), vm.board.machine.as_deref()), (Some("v1"), Some("q35")));
    assert_eq!((sizes(&vm), vm.blocks[0].kind, vm.vhost_user), (vec![GIB], Kind::File, true));
    assert_eq!(vm.unread, None);

    let unread = read(Err("Permission denied".to_owned())).unwrap();
    assert_eq!(unread.unread.as_deref(), Some("/run/qemu.conf: Permission denied"));
    let broken = read(Ok("[memory]\nnonsense\n".to_owned())).unwrap();
    assert_eq!(broken.unread.as_deref(), Some("/run/qemu.conf: line 2 is not understood"));
}

#[test]
fn what_forbids_moves_is_seen() {
    let line = |rest: &str| parse(&format!("qemu-system-x86_64 -m 512 {rest}")).unwrap();
    assert!(line("-overcommit mem-lock=on").mem_lock);
    assert!(line("-overcommit cpu-pm=on,mem-lock=on-fault").mem_lock);
    assert!(line("-realtime mlock=on").mem_lock);
    assert!(line("-incoming defer").incoming);
    assert!(line("-object sev-guest,id=s,cbitpos=47 -machine confidential-guest-support=s").confidential);
    assert!(line("-object {\"qom-type\":\"tdx-guest\",\"id\":\"t\"}").confidential);
    assert!(line("-object memory-backend-file,id=n,size=1G,mem-path=/n,pmem=on").blocks[1].persistent);
    assert!(line("-device vhost-user-fs-pci,chardev=c,tag=t").vhost_user);
    assert!(line("-netdev vhost-user,id=n,chardev=c").vhost_user);
}

#[test]
fn queries_and_probes_are_no_vms() {
    for line in [
        "qemu-system-x86_64 -version",
        "qemu-system-x86_64 --help",
        "qemu-system-x86_64 -machine help",
        "qemu-system-x86_64 -S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg -daemonize",
        "qemu-system-x86_64 -device help",
        "qemu-system-x86_64 @options.txt",
        "qemu-system-x86_64 -m",
        "",
    ] {
        assert_eq!(parse(line), None, "{line}");
    }
}

#[test]
fn an_option_in_a_value_is_not_an_option() {
    let vm = parse("kvm -name -overcommit -m 64 -append -object").unwrap();
    assert_eq!(vm.name.as_deref(), Some("-overcommit"));
    assert!(!vm.mem_lock);
}

#[test]
fn hostile_names_are_cleaned() {
    let long = format!("a\u{1b}[2J\n{}", "x".repeat(500));
    let arguments = ["kvm", "-m", "64", "-name", &long, "-uuid", "../../etc/passwd"].map(str::to_owned);
    let vm = CommandLine::parse(&arguments, &mut no_file).unwrap();
    let name = vm.name.unwrap();
    assert!(name.starts_with("a[2Jxxx"), "{name}");
    assert_eq!(name.chars().count(), 128);
    assert_eq!(vm.uuid, None);
}

#[test]
fn a_flood_of_objects_is_cut() {
    let flood = "-numa node,memdev=a -device pc-dimm,memdev=a ".repeat(5000);
    let vm = parse(&format!("kvm -m 1 -object memory-backend-ram,id=a,size=1M {flood}")).unwrap();
    assert_eq!(vm.blocks.len(), 1, "an object is used once, or not believed");
}

proptest! {
    /// Whatever a VM's owner manages to put on the line: an answer, and a printable name.
    #[test]
    fn any_bytes_are_survived(
        options in prop::collection::vec(
            (prop::sample::select(vec!["-m", "-name", "-machine", "-object", "-numa", "-device", "-smbios"]),
             prop::collection::vec(any::<u8>(), 0..80)), 0..12)
    ) {
        let mut arguments = vec!["kvm".to_owned(), "-m".to_owned(), "64".to_owned()];
        for (option, value) in options {
            arguments.push(option.to_owned());
            arguments.push(String::from_utf8_lossy(&value).into_owned());
        }
        if let Some(vm) = CommandLine::parse(&arguments, &mut no_file) {
            prop_assert!(!vm.blocks.is_empty());
            let name = vm.name.unwrap_or_default();
            prop_assert!(name.chars().count() <= 128 && !name.chars().any(char::is_control));
        }
    }

    #[test]
    fn any_option_text_is_survived(text in "[-a-z{}\":,=0-9.\\PC]{0,60}") {
        let options = Options::parse(&text, "size");
        let _ = options.get("size").and_then(|size| size_bytes(size, 1 << 20));
    }
}
