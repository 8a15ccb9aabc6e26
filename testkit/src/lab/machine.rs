//! The QEMU command line of the lab.
//!
//! In: nodes, disks, kernel and where the files are. Out: a command; it starts nothing itself.
//!
//! Latency and bandwidth of a node are told to the kernel by an HMAT, from which it makes its memory tiers: seen on
//! 6.12, `memory_tier4` and `memory_tier562` for these values. QEMU does not emulate them: all nodes are equally fast.

use super::spec::{Disk, NodeKind, Nodes};
use crate::qemu::QEMU;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernel gets to see of a kind of memory.
struct Memory {
    latency_ns: u32,
    bandwidth: &'static str,
    /// As seen from the processors' node, itself 10.
    distance: u32,
}

/// Who executes the lab's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// QEMU, by emulation.
    Tcg,
    /// The processor; with all it can do, so that the lab has a /dev/kvm of its own.
    Kvm,
}

/// Where the console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// Into a file.
    File(PathBuf),
    /// To QEMU's own terminal, with a copy in a file.
    Terminal(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Machine<'a> {
    pub accel: Accel,
    pub cpus: u32,
    pub nodes: &'a Nodes,
    /// Serial number, file and limits of each disk.
    pub disks: Vec<(&'static str, PathBuf, Disk)>,
    /// Tag and socket of each virtiofs share.
    pub shares: Vec<(&'static str, PathBuf)>,
    pub kernel: &'a Path,
    pub initramfs: PathBuf,
    pub console: Console,
    /// More words for the kernel.
    pub append: &'static str,
}

fn memory(kind: NodeKind) -> Memory {
    match kind {
        NodeKind::Dram => Memory { latency_ns: 10, bandwidth: "100G", distance: 20 },
        NodeKind::Cxl => Memory { latency_ns: 250, bandwidth: "20G", distance: 30 },
    }
}

impl Machine<'_> {
    /// The command. Like the guests', it dies with the thread that starts it. With its console in a file it has a
    /// process group of its own, so that a Ctrl-C is its owner's to handle; at a terminal the keys go to the lab.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU, "-name", "guest=tiering-lab"]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35,hmat=on"]);
        // With less than `max` QEMU 7.2 emulates cmpxchg16b in a way that once crashed this kernel. One thread for all
        // processors, because with one each QEMU 7.2 can miss that the kernel has just patched its own code: 2 of 12
        // boots of 6.12 died with `Oops: int3`, 0 of 32 so, which took 5.0 s on average instead of 4.5. With one thread
        // and two processors KVM guests in the lab hang in their boot (6 of 7), with one processor they do not (0 of
        // 3).
        let (accel, cpu) = match self.accel {
            Accel::Tcg => ("tcg,thread=single", "max"),
            Accel::Kvm => ("kvm", "host"),
        };
        command.args(["-accel", accel, "-cpu", cpu, "-smp", &self.cpus.to_string()]);
        self.add_memory(&mut command);
        self.add_disks(&mut command);
        for (tag, socket) in &self.shares {
            command.arg("-chardev").arg(with_path(&format!("socket,id=share-{tag},path="), socket));
            command.args(["-device", &format!("vhost-user-fs-pci,tag={tag},chardev=share-{tag}")]);
        }
        let console = match &self.console {
            Console::File(file) => {
                command.process_group(0);
                with_path("file,id=console,path=", file)
            }
            // Ctrl-C is a key like others.
            Console::Terminal(log) => with_path("stdio,id=console,signal=off,logfile=", log),
        };
        command.arg("-chardev").arg(console).args(["-serial", "chardev:console"]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(&self.initramfs);
        // Whatever goes wrong in the kernel is a panic, and a panic with -no-reboot ends QEMU.
        let kernel = "console=ttyS0 quiet psi=1 panic=-1 oops=panic softlockup_panic=1";
        command.args(["-append", &format!("{kernel} {}", self.append)]);
        command
    }

    fn add_memory(&self, command: &mut Command) {
        let Nodes(nodes) = self.nodes;
        let total: u64 = nodes.iter().map(|node| node.bytes).sum();
        command.args(["-m", &format!("{}M", total >> 20)]);
        for (id, node) in nodes.iter().enumerate() {
            let Memory { latency_ns, bandwidth, distance } = memory(node.kind);
            // Shared, because virtiofsd reads and writes it.
            let object = format!("memory-backend-memfd,id=ram{id},size={}M,share=on", node.bytes >> 20);
            let cpus = if id == 0 { format!(",cpus=0-{}", self.cpus - 1) } else { String::new() };
            command.args(["-object", &object]);
            command.args(["-numa", &format!("node,nodeid={id},memdev=ram{id},initiator=0{cpus}")]);
            for (data, value) in [
                ("latency", format!("latency={latency_ns}")),
                ("bandwidth", format!("bandwidth={bandwidth}")),
            ] {
                let lb = format!(
                    "hmat-lb,initiator=0,target={id},hierarchy=memory,data-type=access-{data},{value}"
                );
                command.args(["-numa", &lb]);
            }
            if id > 0 {
                command.args(["-numa", &format!("dist,src=0,dst={id},val={distance}")]);
            }
            for between in 1..id {
                command.args(["-numa", &format!("dist,src={between},dst={id},val={}", distance + 10)]);
            }
        }
    }

    fn add_disks(&self, command: &mut Command) {
        for (serial, file, disk) in &self.disks {
            // Thrown away with the lab, so nothing has to reach the host's disk.
            let mut drive = format!("if=none,id={serial},format=raw,cache=unsafe,discard=unmap");
            if let Some(iops) = disk.iops {
                drive += &format!(",throttling.iops-total={iops}");
            }
            if let Some(bps) = disk.bps {
                drive += &format!(",throttling.bps-total={bps}");
            }
            command.arg("-drive").arg(with_path(&format!("{drive},file="), file));
            command.args(["-device", &format!("nvme,serial={serial},drive={serial}")]);
        }
    }
}

/// In QEMU's options a comma in a value is written twice.
fn with_path(option: &str, path: &Path) -> String {
    format!("{option}{}", path.to_string_lossy().replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(accel: Accel, nodes: &str, console: Console) -> Vec<String> {
        let machine = Machine {
            accel,
            cpus: 2,
            nodes: &nodes.parse().unwrap(),
            disks: vec![("tiering-qlc", "/d/a,b".into(), "4G@iops=2000,bps=1M".parse().unwrap())],
            shares: vec![("out", "/s/out".into())],
            kernel: Path::new("/k"),
            initramfs: "/i".into(),
            console,
            append: "",
        };
        machine.command().get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    fn values<'a>(words: &'a [String], option: &str) -> Vec<&'a str> {
        words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn every_node_is_shared_and_tells_how_far_it_is() {
        let words = words(Accel::Tcg, "dram:1G,cxl:2G,cxl:256M", Console::File("/c".into()));
        assert_eq!(values(&words, "-m"), ["3328M"]);
        let objects = values(&words, "-object");
        assert_eq!(objects[1], "memory-backend-memfd,id=ram1,size=2048M,share=on");
        let numa = values(&words, "-numa");
        for expected in [
            "node,nodeid=0,memdev=ram0,initiator=0,cpus=0-1",
            "node,nodeid=2,memdev=ram2,initiator=0",
            "hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=250",
            "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=100G",
            "dist,src=0,dst=1,val=30",
            "dist,src=1,dst=2,val=40",
        ] {
            assert!(numa.contains(&expected), "{expected} is not in {numa:?}");
        }
        assert_eq!(values(&words, "-cpu"), ["max"]);
        assert_eq!(values(&words, "-accel"), ["tcg,thread=single"]);
    }

    #[test]
    fn disks_carry_their_serial_and_limits_and_shares_their_tag() {
        let words = words(Accel::Kvm, "dram:1G", Console::Terminal("/c".into()));
        let drive = "if=none,id=tiering-qlc,format=raw,cache=unsafe,discard=unmap,\
            throttling.iops-total=2000,throttling.bps-total=1048576,file=/d/a,,b";
        assert_eq!(values(&words, "-drive"), [drive]);
        let devices =
            ["nvme,serial=tiering-qlc,drive=tiering-qlc", "vhost-user-fs-pci,tag=out,chardev=share-out"];
        assert_eq!(values(&words, "-device"), devices);
        let chardevs = ["socket,id=share-out,path=/s/out", "stdio,id=console,signal=off,logfile=/c"];
        assert_eq!(values(&words, "-chardev"), chardevs);
        assert_eq!(values(&words, "-cpu"), ["host"]);
    }
}
