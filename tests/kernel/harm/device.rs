//! A swap tier on a block device: what is somebody's is never written to, what is ours is taken over. The device is a
//! loop device over a file; no disk of this host is touched.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::paths;
use tiering_testkit::scratch::Scratch;
use tiering_testkit::skip::{Skip, need_guests, need_root, skip_or_fail};

use crate::host::{assert_memory_right, guest, refusal, vm};

const MIB: u64 = 1 << 20;
/// The priority of the area of a second swap tier.
const LEVEL: i32 = 32_666;

/// A loop device over a file of so many MiB, with a folder for a faster tier beside it.
struct Looped {
    scratch: Scratch,
    device: PathBuf,
}

impl Looped {
    fn new(mib: u64) -> Result<Self, Skip> {
        need_root()?;
        if !Path::new("/dev/loop-control").exists() {
            return Err(Skip("no loop devices: /dev/loop-control is not there".into()));
        }
        let scratch = Scratch::new(1 << 30)?;
        let file = scratch.path().join("disk");
        fs::File::create(&file).unwrap().set_len(mib * MIB).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let made = made.map_err(|error| Skip(format!("losetup: {error}")))?;
        if !made.status.success() {
            return Err(Skip(format!("losetup: {}", String::from_utf8_lossy(&made.stderr))));
        }
        let device = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        Ok(Self { scratch, device })
    }

    fn mount_point(&self) -> PathBuf {
        self.scratch.path().join("mounted")
    }

    fn config(&self, more: &str) -> String {
        let (folder, device) = (self.scratch.path().display(), self.device.display());
        format!(
            r#"
[agent]
state_dir = "{folder}/state"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "nvme"
swap = {{ path = "{folder}/nvme", size = "64MiB" }}
[[tier]]
name = "qlc"
swap = {{ device = "{device}"{more} }}
[policy]
demote_after = "1h"
psi_limit = "100%"
slow_read = "1h"
refault_limit = "100%"
[[vm]]
match = {{ name = "tt-*" }}
[[vm]]
match = {{ name = "*" }}
managed = false
"#
        )
    }

    /// A loop device is no place for swap, unless somebody says so.
    fn allowed(&self) -> String {
        self.config(", allow_unsafe_device = true")
    }

    /// Priority and use in bytes of the device, if it is on.
    fn on(&self) -> Option<(i32, u64)> {
        let swaps = fs::read_to_string("/proc/swaps").unwrap();
        let mut lines = swaps.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|fields| Some(fields[0]) == self.device.to_str())?;
        Some((line[4].parse().unwrap(), line[3].parse::<u64>().unwrap() << 10))
    }

    /// Of every byte.
    fn hash(&self) -> u64 {
        run("blockdev", &["--flushbufs", self.device.to_str().unwrap()]);
        let (mut file, mut hasher) = (fs::File::open(&self.device).unwrap(), DefaultHasher::new());
        let mut piece = vec![0; 1 << 20];
        loop {
            let bytes = file.read(&mut piece).unwrap();
            if bytes == 0 {
                return hasher.finish();
            }
            piece[..bytes].hash(&mut hasher);
        }
    }

    fn zero(&self) {
        let file = self.scratch.path().join("disk");
        let bytes = fs::metadata(&file).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(0).unwrap();
        file.set_len(bytes).unwrap();
        run("blockdev", &["--flushbufs", self.device.to_str().unwrap()]);
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        if self.on().is_some() {
            let _ = Command::new("swapoff").arg(&self.device).status();
        }
        let _ = umount(&self.mount_point());
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn qlc(agent: &Agent) -> Value {
    let status = agent.status().unwrap();
    status["tiers"].as_array().unwrap().iter().find(|tier| tier["name"] == "qlc").cloned().unwrap()
}

fn ended(agent: Agent) -> String {
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    ended.log
}

#[test]
fn a_device_that_is_somebodys_is_refused_by_name_and_not_written_to() {
    let Some(host) = skip_or_fail(Looped::new(64)) else { return };
    let device = host.device.to_str().unwrap();
    let refused = |expected: &str| {
        let before = host.hash();
        let text = refusal(&host.allowed());
        assert!(text.contains("tier `qlc`") && text.contains(device), "{text}");
        assert!(text.contains(expected) && text.contains("nothing on it is changed"), "{text}");
        assert_eq!(host.hash(), before, "{text}");
        assert!(!host.scratch.path().join("nvme").exists(), "the other tier's folder stays");
    };
    // A loop device, where nobody allowed one.
    let text = refusal(&host.config(""));
    assert!(text.contains("is on a loop device") && text.contains("allow_unsafe_device = true"), "{text}");

    run("mkfs.ext4", &["-q", "-F", device]);
    refused("an ext2, ext3 or ext4 file system");
    let at = host.mount_point();
    fs::create_dir(&at).unwrap();
    // To be read only: else the file system itself writes, in its own time.
    mount(Some(&host.device), &at, Some("ext4"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
    refused(&format!("mounted on {}", at.display()));
    umount(&at).unwrap();

    host.zero();
    run("mkswap", &["-q", "-L", "tiering-qlc", device]);
    refused("a swap area (`tiering-qlc`)");
    run("swapon", &["-p", "7", device]);
    let text = refusal(&host.allowed());
    assert!(text.contains("a swap area of somebody else's, on with priority 7"), "{text}");
    assert_eq!(host.on().map(|(priority, _)| priority), Some(7));
    run("swapoff", &[device]);

    // A partition table, and nothing else.
    host.zero();
    let mut table = [0; 512];
    table[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&host.device, table).unwrap();
    refused("a partition table (MBR)");

    // An empty disk of a VM that runs.
    host.zero();
    let vm = fs::OpenOptions::new().write(true).open(&host.device).unwrap();
    let mut other = Command::new("sleep").arg("60").stdout(vm).spawn().unwrap();
    refused(&format!("open for writing by sleep, process {}", other.id()));
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(host.on(), None);
}

#[test]
fn memory_is_no_tier_below_memory_whatever_is_allowed() {
    let Some(host) = skip_or_fail(Looped::new(64)) else { return };
    if !Path::new("/dev/zram0").exists() {
        return;
    }
    let text = refusal(&host.allowed().replace(host.device.to_str().unwrap(), "/dev/zram0"));
    assert!(text.contains("memory (zram0)") && text.contains("name a disk"), "{text}");
}

#[test]
fn pages_go_to_a_device_come_back_and_survive_an_agent_that_is_killed() {
    let Some(host) = skip_or_fail(need_guests().and_then(|()| Looped::new(512))) else { return };
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let mut agent = Agent::start(&host.allowed(), &[]).unwrap();
    assert_eq!(host.on().map(|(priority, _)| priority), Some(LEVEL), "{}", agent.log().text());
    assert_eq!(qlc(&agent)["capacity_bytes"], 502 * MIB + 4096);
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    let outcome = agent.tiering(&["move", "tt-moves", "--to", "qlc", "--json"]).unwrap();
    let there = vm(&agent, "tt-moves")["tier_bytes"]["qlc"].as_u64().unwrap_or(0);
    assert!(there >= 64 * MIB, "{there} bytes in qlc: {outcome}\n{}", agent.log().text());
    assert!(host.on().is_some_and(|(_, used)| used >= 64 * MIB), "{:?}", host.on());

    // The pages to be read are read, by the running agent and by doctor.
    let began = Instant::now();
    while qlc(&agent)["read_latency_ns"].is_null() {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", qlc(&agent));
        std::thread::sleep(Duration::from_millis(200));
    }
    let config = host.scratch.path().join("tiering.toml");
    fs::write(&config, host.allowed()).unwrap();
    let doctor =
        Command::new(paths::tiering_bin().unwrap()).arg("--config").arg(&config).arg("doctor").output();
    let doctor = String::from_utf8(doctor.unwrap().stdout).unwrap();
    let row = |name: &str| doctor.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(row("tier qlc").contains(&format!("ok        {}", host.device.display())), "{doctor}");
    assert!(row("speed of qlc").contains("p50"), "{doctor}");

    agent.kill9();
    assert!(host.on().is_some_and(|(_, used)| used >= 64 * MIB));
    let agent = Agent::start(&host.allowed(), &[]).unwrap();
    assert!(agent.log().text().contains("taking over a swap"), "{}", agent.log().text());
    vm(&agent, "tt-moves");
    let there = vm(&agent, "tt-moves")["tier_bytes"]["qlc"].as_u64().unwrap_or(0);
    assert!(there >= 64 * MIB, "{there} bytes in qlc, as pagemap shows to the next agent");
    agent.tiering(&["drain", "qlc"]).unwrap();
    assert_eq!(host.on(), None, "{}", agent.log().text());
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drop(guest);
    ended(agent);
    assert_eq!(host.on(), None);
    assert_eq!(host.scratch.swap_areas().unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_device_that_is_ours_is_used_again_as_it_is_and_no_longer_when_somebody_took_it() {
    let Some(host) = skip_or_fail(Looped::new(64)) else { return };
    ended(Agent::start(&host.allowed(), &[]).unwrap());
    assert_eq!(host.on(), None, "the end switches it off");
    let made = host.hash();
    let agent = Agent::start(&host.allowed(), &[]).unwrap();
    assert!(!qlc(&agent)["read_latency_ns"].is_null(), "measured before anything is sent there");
    ended(agent);
    assert_eq!((host.on(), host.hash()), (None, made), "nothing is written to a device that is ready");

    // Without the tier a device of ours that is on comes up.
    let mut agent = Agent::start(&host.allowed(), &[]).unwrap();
    agent.kill9();
    assert!(host.on().is_some());
    let text = host.allowed();
    let (above, below) = (text.find("[[tier]]\nname = \"qlc\"").unwrap(), text.find("[policy]").unwrap());
    let without = format!("{}{}", &text[..above], &text[below..]);
    let log = ended(Agent::start(&without, &[]).unwrap());
    assert!(log.contains("of a tier `qlc`, which the configuration does not name"), "{log}");
    assert_eq!(host.on(), None);

    // XFS begins with its superblock and leaves the rest of the page.
    let mut start = vec![0; 4096];
    fs::File::open(&host.device).unwrap().read_exact(&mut start).unwrap();
    start[..4].copy_from_slice(b"XFSB");
    fs::write(&host.device, &start).unwrap();
    let before = host.hash();
    let text = refusal(&host.allowed());
    assert!(text.contains("is not empty") && text.contains("--zeroout"), "{text}");
    assert_eq!((host.on(), host.hash()), (None, before));
}
