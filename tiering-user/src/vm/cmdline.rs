//! What the options of a QEMU process say about its VM. In: the options (`arguments`). Out: [`CommandLine`], or nothing
//! where they do not start a VM (a version query, libvirt's capability probe).
//!
//! A VM's owner may choose parts of the text: names are cleaned, sizes are only believed where a mapping of that size
//! exists (`ram`).
//!
//! Limits: what monitor commands changed is not seen here. Memory of CXL devices and SGX is not RAM here.

use super::arguments::{Arguments, Given};
use super::options::{Options, round_up, size_bytes};
use super::printable;

/// QEMU's own default for x86 machines (`default_ram_size`, hw/core/machine.c).
const DEFAULT_RAM_BYTES: u64 = 128 << 20;
/// More memory objects, nodes or DIMMs than QEMU allows (128 nodes, 256 slots) are passed over, so that a process that
/// rewrites its command line cannot keep us busy.
const MAX_OBJECTS: usize = 512;

/// The facts of one command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CommandLine {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) board: Board,
    /// First the RAM that the machine begins with, in guest-physical order; then what is plugged into slots, in the
    /// order in which that is done; then memory objects that are no RAM.
    pub(super) blocks: Vec<RamBlock>,
    pub(super) mem_lock: bool,
    pub(super) incoming: bool,
    /// SEV, TDX or another kind of guest memory the host must not touch.
    pub(super) confidential: bool,
    /// The balloon gives back what the guest has free.
    pub(super) free_page_reporting: bool,
    pub(super) vhost_user: bool,
    /// `policy=bind` on a memory object.
    pub(super) numa_bound: bool,
    /// It has video memory of tens of MiB.
    pub(super) large_video: bool,
    /// A `-readconfig` file that could not be read, and why: nothing is known of its RAM.
    pub(super) unread: Option<String>,
}

/// What decides where the guest sees its RAM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Board {
    pub(super) machine: Option<String>,
    pub(super) max_ram_below_4g_bytes: Option<u64>,
    /// `maxmem`: memory can be plugged up to there.
    pub(super) max_ram_bytes: Option<u64>,
    pub(super) slots: u64,
    /// Model of the virtual CPU, and its maker where the command line has one.
    pub(super) cpu: Option<String>,
    pub(super) cpu_vendor: Option<String>,
}

/// What a memory object is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// RAM that the machine begins with.
    Main,
    /// A DIMM in a slot.
    Dimm,
    /// RAM that comes and goes in small blocks (virtio-mem): the object has room for all of it.
    VirtioMem,
    /// What the guest sees as a persistent device: NVDIMM, virtio-pmem.
    Image,
    /// Not RAM: shared memory devices, objects that nothing uses.
    Other,
}

/// What stands behind a memory object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Anonymous,
    /// A file of some kind, with or without a name.
    File,
}

/// One announced block of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RamBlock {
    pub(super) bytes: u64,
    /// Rank in the order in which QEMU creates them: objects as they stand on the line, then the RAM of a plain `-m`.
    pub(super) created: usize,
    pub(super) role: Role,
    pub(super) kind: Kind,
    /// `pmem=on`: the guest counts on its content to last.
    pub(super) persistent: bool,
    /// Where the guest sees it, if the command line says so.
    pub(super) gpa: Option<u64>,
}

/// What has to be seen as a whole before it can be understood.
#[derive(Default)]
struct Collected {
    starts_vm: bool,
    query_only: bool,
    kubevirt: bool,
    memory_bytes: Option<u64>,
    machine_memory: Option<String>,
    mem_path: bool,
    smbios_uuid: Option<String>,
    objects: Vec<Object>,
    /// NUMA nodes: number and memory object, if it has one.
    nodes: Vec<(u64, Option<String>)>,
    /// Devices with memory: object, role and address.
    devices: Vec<(String, Role, Option<u64>)>,
}

struct Object {
    id: String,
    bytes: u64,
    kind: Kind,
    persistent: bool,
}

impl CommandLine {
    /// What the arguments, program name included, start. `None`: no VM.
    pub(super) fn parse(
        arguments: &[String],
        read: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Option<CommandLine> {
        let Arguments { given, query_only, unread } = Arguments::read(arguments, read)?;
        let mut line = CommandLine { unread, ..CommandLine::default() };
        let mut seen = Collected { query_only, starts_vm: line.unread.is_some(), ..Collected::default() };
        for Given { group, options } in &given {
            line.take(&mut seen, group, options);
        }
        // `-machine none` is how libvirt asks a QEMU binary what it can do.
        if seen.query_only || !seen.starts_vm || line.board.machine.as_deref() == Some("none") {
            return None;
        }
        line.blocks = seen.blocks();
        line.uuid = line.uuid.or(seen.smbios_uuid);
        // Only KubeVirt joins namespace and name; elsewhere `_` is an ordinary letter of a name.
        if seen.kubevirt
            && let Some((namespace, name)) = line.name.as_deref().and_then(|name| name.split_once('_'))
            && !(namespace.is_empty() || name.is_empty())
        {
            (line.namespace, line.name) = (Some(namespace.to_owned()), Some(name.to_owned()));
        }
        Some(line)
    }

    fn take(&mut self, seen: &mut Collected, group: &str, options: &Options) {
        let text = |key: &str| options.get(key).map(str::to_owned);
        match group {
            "memory" => {
                seen.starts_vm = true;
                let size = |key: &str| options.get(key).and_then(|size| size_bytes(size, 1 << 20));
                // QEMU joins all `-m` into one.
                seen.memory_bytes = size("size").or(seen.memory_bytes);
                self.board.max_ram_bytes = size("maxmem").or(self.board.max_ram_bytes);
                self.board.take_slots(options.get("slots"));
            }
            "name" => self.name = options.get("guest").and_then(clean_name).or(self.name.take()),
            "uuid" => self.uuid = options.get("value").and_then(clean_uuid),
            "smbios" if options.get("type") == Some("1") => {
                seen.kubevirt |= options.get("manufacturer") == Some("KubeVirt");
                seen.smbios_uuid = options.get("uuid").and_then(clean_uuid).or(seen.smbios_uuid.take());
            }
            "machine" => self.take_machine(seen, options),
            "object" => self.take_object(seen, options),
            "numa" => {
                if options.get("type") == Some("node") && seen.nodes.len() < MAX_OBJECTS {
                    let next = (0..).find(|number| seen.nodes.iter().all(|(node, _)| node != number));
                    let node = options.get("nodeid").and_then(|node| node.parse().ok()).or(next);
                    seen.nodes.extend(node.map(|node| (node, text("memdev"))));
                }
            }
            "device" => self.take_device(seen, options),
            "netdev" => self.vhost_user |= options.get("type") == Some("vhost-user"),
            "overcommit" => {
                self.mem_lock |=
                    matches!(options.get("mem-lock"), Some("on" | "on-fault" | "yes" | "true" | "y"));
            }
            "realtime" => self.mem_lock |= options.is_on("mlock"),
            "incoming" => self.incoming = true,
            "mem-path" => seen.mem_path = true,
            "cpu" => {
                self.board.cpu = options.get("model").map(printable);
                self.board.cpu_vendor = options.get("vendor").map(printable);
            }
            _ => {}
        }
    }

    fn take_machine(&mut self, seen: &mut Collected, machine: &Options) {
        seen.starts_vm = true;
        let size = |key: &str| machine.get(key).and_then(|size| size_bytes(size, 1));
        self.board.machine = machine.get("type").and_then(clean_name).or(self.board.machine.take());
        seen.query_only |= matches!(machine.get("type"), Some("help" | "?"));
        seen.machine_memory = machine.get("memory-backend").map(str::to_owned).or(seen.machine_memory.take());
        self.board.max_ram_below_4g_bytes = size("max-ram-below-4g").or(self.board.max_ram_below_4g_bytes);
        // What `-m` is short for from QEMU 7.1 on.
        seen.memory_bytes = size("memory.size").or(seen.memory_bytes);
        self.board.max_ram_bytes = size("memory.max-size").or(self.board.max_ram_bytes);
        self.board.take_slots(machine.get("memory.slots"));
        self.confidential |=
            machine.get("confidential-guest-support").is_some() || machine.get("memory-encryption").is_some();
    }

    fn take_object(&mut self, seen: &mut Collected, object: &Options) {
        let kind = object.get("qom-type").unwrap_or_default();
        self.confidential |= kind.starts_with("sev-")
            || matches!(kind, "tdx-guest" | "pef-guest" | "s390-pv-guest" | "arm-rme-guest" | "rme-guest");
        if kind.starts_with("memory-backend-") {
            seen.starts_vm = true;
            self.numa_bound |= object.get("policy") == Some("bind");
            if let (Some(id), Some(bytes)) =
                (object.get("id"), object.get("size").and_then(|size| size_bytes(size, 1)))
                && seen.objects.len() < MAX_OBJECTS
            {
                let kind = if kind == "memory-backend-ram" { Kind::Anonymous } else { Kind::File };
                let persistent = object.is_on("pmem");
                seen.objects.push(Object { id: id.to_owned(), bytes, kind, persistent });
            }
        }
    }

    fn take_device(&mut self, seen: &mut Collected, device: &Options) {
        let driver = device.get("driver").unwrap_or_default();
        self.vhost_user |= driver.starts_with("vhost-user-");
        self.large_video |= driver.starts_with("qxl");
        self.free_page_reporting |=
            driver.starts_with("virtio-balloon") && device.is_on("free-page-reporting");
        let role = match driver {
            "pc-dimm" => Role::Dimm,
            "nvdimm" => Role::Image,
            _ if driver.starts_with("virtio-pmem") => Role::Image,
            _ if driver.starts_with("virtio-mem") => Role::VirtioMem,
            _ => return,
        };
        if let Some(memory) = device.get("memdev").filter(|_| seen.devices.len() < MAX_OBJECTS) {
            // `addr` of a PCI device is its slot.
            let key = if driver.starts_with("virtio-") { "memaddr" } else { "addr" };
            let address = device.get(key).and_then(|address| size_bytes(address, 1)).filter(|at| *at > 0);
            seen.devices.push((memory.to_owned(), role, address));
        }
    }
}

impl Board {
    fn take_slots(&mut self, slots: Option<&str>) {
        self.slots = slots.and_then(|slots| slots.parse().ok()).unwrap_or(self.slots);
    }
}

impl Collected {
    fn blocks(&mut self) -> Vec<RamBlock> {
        let mut left: Vec<Option<RamBlock>> =
            (0..).zip(&self.objects).map(|(created, object)| Some(object.block(created))).collect();
        let objects = &self.objects;
        let mut take = |id: &str, role, gpa| {
            let block = objects.iter().position(|object| object.id == id).and_then(|at| left[at].take());
            block.map(|block| RamBlock { role, gpa, ..block })
        };
        self.nodes.sort_by_key(|(node, _)| *node);
        let used: Vec<&String> = match &self.machine_memory {
            Some(id) => vec![id],
            None => self.nodes.iter().filter_map(|(_, memory)| memory.as_ref()).collect(),
        };
        let mut blocks: Vec<RamBlock> = used.iter().filter_map(|id| take(id, Role::Main, None)).collect();
        if blocks.is_empty() || blocks.len() < used.len() {
            let kind = if self.mem_path { Kind::File } else { Kind::Anonymous };
            // QEMU aligns -m to 8 KiB.
            let bytes = round_up(self.memory_bytes.unwrap_or(DEFAULT_RAM_BYTES), 8192);
            let created = objects.len();
            blocks = vec![RamBlock { bytes, created, role: Role::Main, kind, persistent: false, gpa: None }];
        }
        blocks.extend(self.devices.iter().filter_map(|(id, role, gpa)| take(id, *role, *gpa)));
        blocks.extend(left.into_iter().flatten());
        blocks
    }
}

impl Object {
    fn block(&self, created: usize) -> RamBlock {
        let Object { bytes, kind, persistent, .. } = *self;
        RamBlock { bytes, created, role: Role::Other, kind, persistent, gpa: None }
    }
}

fn clean_name(name: &str) -> Option<String> {
    let clean = printable(name);
    (!clean.trim().is_empty()).then_some(clean)
}

/// Lower case, or nothing if it has not the form of a UUID.
fn clean_uuid(text: &str) -> Option<String> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let well_formed = groups == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit());
    well_formed.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
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
        assert_eq!(sizes(&vm("-machine q35,memory.size=1G")), [GIB]);
        let two = "-object memory-backend-ram,id=a,size=1G -object memory-backend-ram,id=b,size=2G";
        let nodes = format!("{two} -numa node,cpus=0 -numa node,memdev=a -numa node,memdev=b");
        assert_eq!(sizes(&vm(&nodes)), [GIB, 2 * GIB], "the first node has processors only");
        assert_eq!(sizes(&vm(&format!("{two} -numa node,memdev=a -set object.a.size=3G"))), [3 * GIB]);
        assert_eq!(vm("-m 64 -mem-path /dev/shm -mem-prealloc -S").blocks[0].kind, Kind::File);
        assert_eq!(
            vm("-m 64 -cpu EPYC,vendor=GenuineIntel").board.cpu_vendor.as_deref(),
            Some("GenuineIntel")
        );
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
}
