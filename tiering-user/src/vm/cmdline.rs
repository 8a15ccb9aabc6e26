//! What a QEMU command line says about its VM. In: the arguments. Out: [`CommandLine`], or nothing where they do not
//! start a VM (a version query, libvirt's capability probe).
//!
//! Only options read here take the argument behind them as their value, whatever it looks like; every other argument
//! is passed over. A VM's owner may choose parts of the text: names are cleaned, sizes are only believed where a
//! mapping of that size exists (`ram`).
//!
//! Limits: `-readconfig` files and monitor commands are not seen.

use super::options::{Options, round_up, size_bytes};
use super::printable;

/// QEMU's own default for x86 machines (`default_ram_size`, hw/core/machine.c).
const DEFAULT_RAM_BYTES: u64 = 128 << 20;
/// More memory objects, nodes or DIMMs than QEMU allows (128 nodes, 256 slots) are passed over, so that a process that
/// rewrites its command line cannot keep us busy.
const MAX_OBJECTS: usize = 512;

/// The facts of one command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CommandLine {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uuid: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) max_ram_below_4g_bytes: Option<u64>,
    /// In guest-physical order, DIMMs last.
    pub(super) ram_blocks: Vec<RamBlock>,
    /// How many of `ram_blocks` are DIMMs.
    pub(super) dimm_blocks: usize,
    pub(super) mem_lock: bool,
    pub(super) incoming: bool,
    /// SEV, TDX or another kind of guest memory the host must not touch.
    pub(super) confidential: bool,
    /// NVDIMM or `pmem=on`.
    pub(super) persistent: bool,
    pub(super) virtio_mem: bool,
    /// The balloon gives back what the guest has free.
    pub(super) free_page_reporting: bool,
    pub(super) vhost_user: bool,
    /// `policy=bind` on a memory object.
    pub(super) numa_bound: bool,
}

/// One announced block of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RamBlock {
    pub(super) bytes: u64,
    /// Rank in the order in which QEMU creates them: objects as they stand on the line, then the RAM of a plain `-m`.
    pub(super) created: usize,
}

/// What has to be seen as a whole before it can be understood.
#[derive(Default)]
struct Collected {
    starts_vm: bool,
    query_only: bool,
    kubevirt: bool,
    memory_bytes: Option<u64>,
    machine_memory: Option<String>,
    smbios_uuid: Option<String>,
    /// Memory objects: id and size.
    objects: Vec<(String, u64)>,
    /// NUMA nodes: number and memory object.
    nodes: Vec<(u64, String)>,
    /// Memory objects of DIMMs.
    dimms: Vec<String>,
}

impl CommandLine {
    /// Parses the arguments, program name included. `None`: no VM.
    pub(super) fn parse(arguments: &[String]) -> Option<CommandLine> {
        let mut line = CommandLine::default();
        let mut seen = Collected::default();
        let mut arguments = arguments.iter().skip(1);
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                continue;
            };
            match option {
                "version" | "help" | "h" => seen.query_only = true,
                "m" | "name" | "uuid" | "smbios" | "machine" | "M" | "object" | "numa" | "device"
                | "netdev" | "overcommit" | "realtime" | "incoming" => match arguments.next() {
                    Some(value) => line.take(&mut seen, option, value),
                    None => return None,
                },
                _ => {}
            }
        }
        // `-machine none` is how libvirt asks a QEMU binary what it can do.
        if seen.query_only || !seen.starts_vm || line.machine.as_deref() == Some("none") {
            return None;
        }
        line.ram_blocks = seen.blocks();
        let dimms = seen.dimm_blocks();
        line.dimm_blocks = dimms.len();
        line.ram_blocks.extend(dimms);
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

    fn take(&mut self, seen: &mut Collected, option: &str, value: &str) {
        match option {
            "m" => {
                seen.starts_vm = true;
                seen.memory_bytes =
                    Options::parse(value, "size").get("size").and_then(|s| size_bytes(s, 1 << 20));
            }
            "name" => self.name = Options::parse(value, "guest").get("guest").and_then(clean_name),
            "uuid" => self.uuid = clean_uuid(value),
            "smbios" => {
                let smbios = Options::parse(value, "file");
                if smbios.get("type") == Some("1") {
                    seen.kubevirt |= smbios.get("manufacturer") == Some("KubeVirt");
                    seen.smbios_uuid = smbios.get("uuid").and_then(clean_uuid).or(seen.smbios_uuid.take());
                }
            }
            "machine" | "M" => {
                seen.starts_vm = true;
                let machine = Options::parse(value, "type");
                self.machine = machine.get("type").and_then(clean_name).or(self.machine.take());
                seen.query_only |= matches!(machine.get("type"), Some("help" | "?"));
                seen.machine_memory =
                    machine.get("memory-backend").map(str::to_owned).or(seen.machine_memory.take());
                self.max_ram_below_4g_bytes = machine
                    .get("max-ram-below-4g")
                    .and_then(|size| size_bytes(size, 1))
                    .or(self.max_ram_below_4g_bytes);
                self.confidential |= machine.get("confidential-guest-support").is_some()
                    || machine.get("memory-encryption").is_some();
            }
            "object" => self.take_object(seen, &Options::parse(value, "qom-type")),
            "numa" => {
                let numa = Options::parse(value, "type");
                if let (Some("node"), Some(memory)) = (numa.get("type"), numa.get("memdev"))
                    && seen.nodes.len() < MAX_OBJECTS
                {
                    let next = seen.nodes.len() as u64;
                    let node = numa.get("nodeid").and_then(|node| node.parse().ok()).unwrap_or(next);
                    seen.nodes.push((node, memory.to_owned()));
                }
            }
            "device" => {
                let device = Options::parse(value, "driver");
                let driver = device.get("driver").unwrap_or_default();
                self.vhost_user |= driver.starts_with("vhost-user-");
                self.virtio_mem |= driver.starts_with("virtio-mem");
                self.persistent |= driver == "nvdimm" || driver.starts_with("virtio-pmem");
                self.free_page_reporting |=
                    driver.starts_with("virtio-balloon") && device.is_on("free-page-reporting");
                if driver == "pc-dimm" && seen.dimms.len() < MAX_OBJECTS {
                    seen.dimms.extend(device.get("memdev").map(str::to_owned));
                }
            }
            "netdev" => self.vhost_user |= Options::parse(value, "type").get("type") == Some("vhost-user"),
            "overcommit" => {
                self.mem_lock |= matches!(Options::parse(value, "").get("mem-lock"), Some("on" | "on-fault"));
            }
            "realtime" => self.mem_lock |= Options::parse(value, "").is_on("mlock"),
            "incoming" => self.incoming = true,
            _ => {}
        }
    }

    fn take_object(&mut self, seen: &mut Collected, object: &Options) {
        let kind = object.get("qom-type").unwrap_or_default();
        self.confidential |= kind.starts_with("sev-")
            || matches!(kind, "tdx-guest" | "pef-guest" | "s390-pv-guest" | "arm-rme-guest" | "rme-guest");
        if kind.starts_with("memory-backend-") {
            seen.starts_vm = true;
            self.persistent |= object.is_on("pmem");
            self.numa_bound |= object.get("policy") == Some("bind");
            if let (Some(id), Some(size)) =
                (object.get("id"), object.get("size").and_then(|size| size_bytes(size, 1)))
                && seen.objects.len() < MAX_OBJECTS
            {
                seen.objects.push((id.to_owned(), size));
            }
        }
    }
}

impl Collected {
    /// The RAM blocks but for DIMMs. Objects that nothing uses as RAM (shared memory devices) are left out.
    fn blocks(&mut self) -> Vec<RamBlock> {
        // QEMU aligns -m to 8 KiB.
        let plain_bytes = round_up(self.memory_bytes.unwrap_or(DEFAULT_RAM_BYTES), 8192);
        let plain = RamBlock { bytes: plain_bytes, created: self.objects.len() };
        self.nodes.sort_by_key(|&(node, _)| node);
        let used: Vec<&String> = match &self.machine_memory {
            Some(id) => vec![id],
            None => self.nodes.iter().map(|(_, id)| id).collect(),
        };
        let objects: Option<Vec<RamBlock>> = used.iter().map(|id| self.object_block(id)).collect();
        objects.filter(|blocks| !blocks.is_empty()).unwrap_or_else(|| vec![plain])
    }

    fn dimm_blocks(&self) -> Vec<RamBlock> {
        self.dimms.iter().filter_map(|id| self.object_block(id)).collect()
    }

    fn object_block(&self, id: &str) -> Option<RamBlock> {
        let created = self.objects.iter().position(|(name, _)| name == id)?;
        Some(RamBlock { bytes: self.objects[created].1, created })
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
        CommandLine::parse(&arguments)
    }

    fn sizes(vm: &CommandLine) -> Vec<u64> {
        vm.ram_blocks.iter().map(|block| block.bytes).collect()
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
        assert_eq!(vm.machine.as_deref(), Some("pc-q35-7.2"));
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
        assert_eq!(vm.dimm_blocks, 1);
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
    fn what_forbids_moves_is_seen() {
        let line = |rest: &str| parse(&format!("qemu-system-x86_64 -m 512 {rest}")).unwrap();
        assert!(line("-overcommit mem-lock=on").mem_lock);
        assert!(line("-overcommit cpu-pm=on,mem-lock=on-fault").mem_lock);
        assert!(line("-realtime mlock=on").mem_lock);
        assert!(line("-incoming defer").incoming);
        assert!(line("-object sev-guest,id=s,cbitpos=47 -machine confidential-guest-support=s").confidential);
        assert!(line("-object {\"qom-type\":\"tdx-guest\",\"id\":\"t\"}").confidential);
        assert!(line("-object memory-backend-file,id=n,size=1G,mem-path=/n,pmem=on").persistent);
        assert!(line("-device {\"driver\":\"virtio-mem-pci\",\"memdev\":\"v\"}").virtio_mem);
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
        let vm = CommandLine::parse(&["kvm", "-name", "-overcommit", "-m", "64"].map(str::to_owned)).unwrap();
        assert_eq!(vm.name.as_deref(), Some("-overcommit"));
        assert!(!vm.mem_lock);
    }

    #[test]
    fn hostile_names_are_cleaned() {
        let long = format!("a\u{1b}[2J\n{}", "x".repeat(500));
        let arguments = ["kvm", "-m", "64", "-name", &long, "-uuid", "../../etc/passwd"].map(str::to_owned);
        let vm = CommandLine::parse(&arguments).unwrap();
        let name = vm.name.unwrap();
        assert!(name.starts_with("a[2Jxxx"), "{name}");
        assert_eq!(name.chars().count(), 128);
        assert_eq!(vm.uuid, None);
    }

    #[test]
    fn a_flood_of_objects_is_cut() {
        let flood = "-numa node,memdev=a -device pc-dimm,memdev=a ".repeat(5000);
        let vm = parse(&format!("kvm -m 1 -object memory-backend-ram,id=a,size=1M {flood}")).unwrap();
        assert_eq!(vm.ram_blocks.len(), 2 * MAX_OBJECTS);
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
            if let Some(vm) = CommandLine::parse(&arguments) {
                prop_assert!(!vm.ram_blocks.is_empty());
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
