//! What the options of a QEMU process say about its VM. In: the options (`arguments`). Out: [`CommandLine`], or nothing
//! where they do not start a VM (a version query, libvirt's capability probe).
//!
//! A VM's owner may choose parts of the text: names are cleaned, sizes are only believed where a mapping of that size
//! exists (`ram`).
//!
//! Limits: what monitor commands changed is not seen here. Memory of CXL devices and SGX is not RAM here.

use super::arguments::Arguments;
use super::options::{Given, Options, round_up, size_bytes};
use super::printable;

/// QEMU's own default for x86 machine types (`default_ram_size`, hw/core/machine.c).
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
    /// First the RAM that the VM begins with, in guest-physical order; then what is plugged into slots, in the
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
    /// Virtual processors that it begins with, where the command line says so.
    pub(super) vcpus: Option<u32>,
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
    /// RAM that the VM begins with.
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
                let size = |key: &str, unit| options.get(key).and_then(|size| size_bytes(size, unit));
                // QEMU joins all `-m` into one. A plain number is MiB for the size, and bytes for `maxmem`.
                seen.memory_bytes = size("size", 1 << 20).or(seen.memory_bytes);
                self.board.max_ram_bytes = size("maxmem", 1).or(self.board.max_ram_bytes);
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
            "numa" if options.get("type") == Some("node") && seen.nodes.len() < MAX_OBJECTS => {
                let next = (0..).find(|number| seen.nodes.iter().all(|(node, _)| node != number));
                let node = options.get("nodeid").and_then(|node| node.parse().ok()).or(next);
                seen.nodes.extend(node.map(|node| (node, text("memdev"))));
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
            "smp-opts" => {
                let number = |key: &str| options.get(key).and_then(|number| number.parse::<u32>().ok());
                let parts = ["sockets", "dies", "clusters", "cores", "threads"];
                let product = || parts.into_iter().filter_map(number).reduce(u32::saturating_mul);
                self.vcpus = number("cpus").or_else(product);
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
#[path = "cmdline_tests.rs"]
mod tests;
