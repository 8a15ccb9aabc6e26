//! Swap files and swap areas of others are left alone, and our own go where the configuration says.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::scratch::Scratch;
use tiering_testkit::skip::{Skip, need_root, skip_or_fail};
use tiering_user::sys::ZeroPages;

use crate::host::{
    At, Host, area_numbers, assert_memory_right, drain_and_end, guest, pagemap, refusal, runs, vm, wait_for,
};

const MIB: u64 = 1 << 20;
/// The priority of the first file of the fastest swap tier, and of the one below it.
const LEVELS: [i32; 2] = [32_716, 32_666];

/// Folders for two swap tiers, without any machine.
struct Tiers(Scratch);

impl Tiers {
    fn new() -> Result<Self, Skip> {
        need_root()?;
        Ok(Self(Scratch::new(1 << 30)?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, tiers: &[(&str, &Path)]) -> String {
        let mut text = format!(
            "[agent]\nstate_dir = \"{}\"\n[[tier]]\nname = \"dram\"\nnodes = [0]\n",
            self.path("state").display()
        );
        for (name, path) in tiers {
            let path = path.display();
            text +=
                &format!("[[tier]]\nname = \"{name}\"\nswap = {{ path = \"{path}\", size = \"64MiB\" }}\n");
        }
        text + "[[vm]]\nmatch = { name = \"*\" }\nmanaged = false\n"
    }

    /// nvme above qlc, each in the folder of its name.
    fn usual(&self) -> String {
        self.config(&[("nvme", &self.path("nvme")), ("qlc", &self.path("qlc"))])
    }

    /// What is on below the folder: path and priority.
    fn on(&self) -> Vec<(PathBuf, i32)> {
        let swaps = fs::read_to_string("/proc/swaps").unwrap();
        let lines = swaps.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let areas = lines.map(|fields| (PathBuf::from(fields[0]), fields[4].parse().unwrap()));
        areas.filter(|(path, _)| path.starts_with(self.0.path())).collect()
    }
}

/// `mkswap`, as somebody else would.
fn mkswap(path: &Path, mib: u64, args: &[&str]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    run("fallocate", &["-l", &format!("{mib}M"), path.to_str().unwrap()]);
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    run("/usr/sbin/mkswap", &[&["-q"], args, &[path.to_str().unwrap()]].concat());
}

fn swapon(path: &Path, priority: i32) {
    run("/usr/sbin/swapon", &["-p", &priority.to_string(), path.to_str().unwrap()]);
}

fn swapoff(path: &Path) {
    run("/usr/sbin/swapoff", &[path.to_str().unwrap()]);
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes in use of an area that is on.
fn used(path: &Path) -> u64 {
    let swaps = fs::read_to_string("/proc/swaps").unwrap();
    let line = swaps.lines().find(|line| line.split_whitespace().next() == path.to_str());
    line.map_or(0, |line| line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap() << 10)
}

/// Starts the agent and stops it.
fn start_and_stop(config: &str) -> String {
    let ended = Agent::start(config, &[]).unwrap().interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    ended.log
}

/// What a file was, to be compared with what it is.
#[derive(Debug, PartialEq, Eq)]
struct Was(u64, u64, Vec<u8>);

fn look(path: &Path) -> Was {
    let found = fs::metadata(path).unwrap();
    Was(found.ino(), found.len(), fs::read(path).unwrap()[..4096].to_vec())
}

// Files and folders of others.

#[test]
fn a_folder_with_the_hosts_own_swap_file_is_refused_and_the_file_stays_on() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    for (name, args) in [
        ("swapfile", &[][..]),
        ("segment-0.swap", &[]),
        ("segment-0.swap", &["-L", "tiering-nvme", "-U", "b7a8a9f0-8d3c-11ee-b9d1-0242ac120002"]),
        ("other.swap", &["-L", "tiering-nvme"]),
        ("a file.swap", &[]),
    ] {
        let file = host.path("host").join(name);
        mkswap(&file, 8, args);
        swapon(&file, 7);
        let was = look(&file);
        let text = refusal(&host.config(&[("nvme", &host.path("host"))]));
        assert!(text.contains("tier `nvme`") && text.contains(name), "{text}");
        assert!(text.contains("with priority 7") && text.contains("folder of its own"), "{text}");
        assert_eq!(host.on().len(), 1, "{name} is on");
        assert_eq!(look(&file), was);
        swapoff(&file);
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_swap_file_of_somebody_elses_that_is_not_on_is_refused_and_not_removed() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    for name in ["segment-3.swap", "hibernate", "old.swap"] {
        let file = host.path("qlc").join(name);
        mkswap(&file, 4, &["-L", "backup"]);
        let was = look(&file);
        let text = refusal(&host.usual());
        assert!(text.contains("tier `qlc`") && text.contains(name), "{text}");
        assert_eq!(look(&file), was);
        assert!(host.on().is_empty() && !host.path("nvme").exists(), "{:?}", host.on());
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn swap_files_of_others_are_found_behind_links_mounts_and_loop_devices() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let file = host.path("host").join("swapfile");
    mkswap(&file, 8, &[]);
    swapon(&file, 7);
    let link = host.path("link");
    symlink(host.path("host"), &link).unwrap();
    let text = refusal(&host.config(&[("nvme", &link)]));
    assert!(text.contains("swapfile") && text.contains("with priority 7"), "{text}");

    // A link to the file, in a folder of its own.
    fs::create_dir(host.path("nvme")).unwrap();
    symlink(&file, host.path("nvme").join("segment-0.swap")).unwrap();
    let text = refusal(&host.usual());
    assert!(text.contains("segment-0.swap") && text.contains("with priority 7"), "{text}");
    fs::remove_file(host.path("nvme").join("segment-0.swap")).unwrap();

    // The kernel shows the path through which it was switched on.
    let bound = host.path("bound");
    fs::create_dir(&bound).unwrap();
    mount(Some(&host.path("host")), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let text = refusal(&host.config(&[("nvme", &bound)]));
    umount2(&bound, MntFlags::empty()).unwrap();
    assert!(text.contains("swapfile") && text.contains("with priority 7"), "{text}");

    // Another name of the file.
    fs::hard_link(&file, host.path("nvme").join("segment-1.swap")).unwrap();
    let text = refusal(&host.usual());
    assert!(text.contains("segment-1.swap") && text.contains("with priority 7"), "{text}");
    assert_eq!(host.on(), [(file.clone(), 7)]);
    swapoff(&file);
    fs::remove_file(host.path("nvme").join("segment-1.swap")).unwrap();

    let image = host.path("nvme").join("segment-0.swap");
    mkswap(&image, 8, &["-L", "tiering-nvme"]);
    let device = Command::new("/usr/sbin/losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    swapon(Path::new(&device), 7);
    let text = refusal(&host.usual());
    swapoff(Path::new(&device));
    run("/usr/sbin/losetup", &["--detach", &device]);
    assert!(text.contains("segment-0.swap") && text.contains("with priority 7"), "{text}");
    assert!(image.exists());
}

#[test]
fn files_and_folders_that_were_there_before_are_there_afterwards() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let theirs = host.path("nvme").join("segment-0.swap");
    fs::create_dir(host.path("nvme")).unwrap();
    fs::create_dir(host.path("qlc")).unwrap();
    let text = "not a swap file, whatever it is called\n".repeat(1000);
    fs::write(&theirs, &text).unwrap();
    start_and_stop(&host.usual());
    assert_eq!(fs::read_to_string(&theirs).unwrap(), text);
    assert_eq!(fs::read_dir(host.path("nvme")).unwrap().count(), 1);
    assert!(host.path("qlc").exists(), "an empty folder that somebody made");
    assert!(host.on().is_empty());
    // And one that the agent made is gone with it, also if another agent made it.
    fs::remove_dir(host.path("qlc")).unwrap();
    let mut agent = Agent::start(&host.usual(), &[]).unwrap();
    agent.kill9();
    assert!(!host.on().is_empty() && host.path("qlc").exists());
    start_and_stop(&host.usual());
    assert!(host.on().is_empty() && !host.path("qlc").exists());
}

#[test]
fn what_an_agent_left_is_taken_over_or_removed_also_without_its_state() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    // As an earlier version left it: a label and a random UUID.
    let (on, off) = (host.path("nvme").join("segment-0.swap"), host.path("qlc").join("segment-4.swap"));
    mkswap(&on, 64, &["-L", "tiering-nvme"]);
    mkswap(&off, 4, &["-L", "tiering-qlc"]);
    swapon(&on, LEVELS[0]);
    let log = start_and_stop(&host.usual());
    assert!(log.contains("taking over a swap file") && log.contains("removing a swap file"), "{log}");
    assert!(!on.exists() && !off.exists() && host.on().is_empty());

    let mut agent = Agent::start(&host.usual(), &[]).unwrap();
    agent.kill9();
    assert_eq!(host.on(), [(on.clone(), LEVELS[0]), (host.path("qlc").join("segment-0.swap"), LEVELS[1])]);
    fs::remove_dir_all(host.path("state")).unwrap();
    let log = start_and_stop(&host.usual());
    assert!(log.contains("taking over a swap file"), "{log}");
    assert!(!on.exists() && host.on().is_empty());
}

#[test]
fn two_tiers_with_one_folder_are_refused_whatever_the_paths() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let folder = host.path("nvme");
    fs::create_dir(&folder).unwrap();
    let (link, bound) = (host.path("link"), host.path("bound"));
    symlink(&folder, &link).unwrap();
    fs::create_dir(&bound).unwrap();
    mount(Some(&folder), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let up_and_down = folder.join("../nvme");
    let told: Vec<_> = [&link, &bound, &up_and_down]
        .map(|other| refusal(&host.config(&[("nvme", &folder), ("qlc", other)])))
        .into();
    umount2(&bound, MntFlags::empty()).unwrap();
    for text in told {
        assert!(text.contains("tiers `nvme` and `qlc` have one folder"), "{text}");
    }
    assert!(host.on().is_empty() && folder.exists());
}

// Tiers that were exchanged, inserted, removed or made smaller.

/// Memory of this process in the area that the kernel fills first.
fn fill(path: &Path, mib: u64) -> ZeroPages {
    let pages = usize::try_from(mib * 256).unwrap();
    let mut memory = ZeroPages::map(pages).unwrap();
    memory.page_out(0, pages).unwrap();
    assert!(used(path) >= (mib - 3) * MIB, "{} bytes in {}", used(path), path.display());
    memory
}

#[test]
fn tiers_that_were_exchanged_get_the_priorities_of_their_new_places() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let mut agent = Agent::start(&host.usual(), &[]).unwrap();
    agent.kill9();
    let [nvme, qlc] = ["nvme", "qlc"].map(|tier| host.path(tier).join("segment-0.swap"));
    let memory = fill(&nvme, 16);

    let exchanged = host.config(&[("qlc", &host.path("qlc")), ("nvme", &host.path("nvme"))]);
    let agent = Agent::start(&exchanged, &[]).unwrap();
    let log = agent.log().text();
    let told = log.lines().find(|line| line.contains("WARN") && line.contains("MiB of tier `nvme`"));
    assert!(told.is_some_and(|line| line.contains("priority 32716") && line.contains("32617")), "{log}");
    assert_eq!(host.on(), [(qlc, LEVELS[0]), (nvme, LEVELS[1])], "each has a file again, in its place");
    drop(memory);
    assert_eq!(agent.interrupt().unwrap().code, Some(0));
    assert!(host.on().is_empty());
}

#[test]
fn a_tier_that_was_inserted_moves_those_below_it_down() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let nvme = host.path("nvme").join("segment-0.swap");
    mkswap(&nvme, 64, &["-L", "tiering-nvme"]);
    swapon(&nvme, LEVELS[0]);
    let memory = fill(&nvme, 16);
    let tiers = [("optane", host.path("optane")), ("nvme", host.path("nvme"))];
    let tiers = tiers.each_ref().map(|(name, path)| (*name, path.as_path()));
    let agent = Agent::start(&host.config(&tiers), &[]).unwrap();
    assert_eq!(
        host.on(),
        [(host.path("optane").join("segment-0.swap"), LEVELS[0]), (nvme, LEVELS[1])],
        "{}",
        agent.log().text()
    );
    drop(memory);
}

#[test]
fn the_files_of_a_tier_that_is_gone_from_the_configuration_come_up_and_are_told() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let gone = host.path("qlc").join("segment-2.swap");
    mkswap(&gone, 64, &["-L", "tiering-qlc"]);
    swapon(&gone, LEVELS[1]);
    let memory = fill(&gone, 16);
    let agent = Agent::start(&host.config(&[("nvme", &host.path("nvme"))]), &[]).unwrap();
    let log = agent.log().text();
    assert!(log.contains("MiB of a tier `qlc`, which the configuration does not name"), "{log}");
    assert_eq!(host.on(), [(host.path("nvme").join("segment-0.swap"), LEVELS[0])]);
    drop(memory);
}

#[test]
fn a_tier_that_was_made_smaller_says_so_and_keeps_what_it_holds() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let nvme = host.path("nvme").join("segment-0.swap");
    mkswap(&nvme, 128, &["-L", "tiering-nvme"]);
    swapon(&nvme, LEVELS[0]);
    let memory = fill(&nvme, 16);
    let agent = Agent::start(&host.config(&[("nvme", &host.path("nvme"))]), &[]).unwrap();
    let log = agent.log().text();
    assert!(log.contains("take 128 MiB, and its size is 64 MiB now"), "{log}");
    assert_eq!(host.on(), [(nvme, LEVELS[0])]);
    drop(memory);
}

// Areas of others that come later.

fn tier(agent: &Agent, name: &str) -> Value {
    let status = agent.status().unwrap();
    let tiers = status["tiers"].as_array().unwrap();
    tiers.iter().find(|tier| tier["name"] == name).cloned().unwrap()
}

fn wait_for_trouble(agent: &Agent, name: &str, wanted: bool) -> Value {
    let found = wait_for("the tier's trouble", || {
        let trouble = tier(agent, name)["trouble"].clone();
        (trouble.is_string() == wanted).then_some(trouble)
    });
    found.unwrap_or_else(|| panic!("{} {}", tier(agent, name), agent.log().text()))
}

#[test]
fn an_area_that_comes_above_the_tiers_is_told_and_gets_nothing_until_it_is_gone() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    let send = |to: &str| agent.tiering(&["move", "tt-moves", "--to", to, "--json"]).unwrap();
    send("qlc");
    send("dram");

    let zram = host.scratch.path().join("zram");
    mkswap(&zram, 256, &[]);
    swapon(&zram, 32_767);
    for name in ["nvme", "qlc"] {
        let trouble = wait_for_trouble(&agent, name, true).to_string();
        assert!(trouble.contains("zram has priority 32767") && trouble.contains("swapoff"), "{trouble}");
    }
    for name in ["qlc", "nvme"] {
        let outcome = send(name);
        assert!(outcome.contains("zram has priority 32767"), "{outcome}");
    }
    // Whoever reclaims on this host may put a few pages there; a batch or a cover are more.
    let there = used(&zram);
    assert!(there < 256 << 10, "{there} bytes: neither batches nor covers go there");

    swapoff(&zram);
    for name in ["nvme", "qlc"] {
        wait_for_trouble(&agent, name, false);
    }
    let outcome = send("nvme");
    let areas = area_numbers(&host.scratch.path().join("nvme"));
    let (mut all, mut there) = (0, 0);
    for run in runs(&agent, "tt-moves").iter().filter(|run| run["tier"] != "untouched") {
        for at in pagemap(guest.pid(), run["hva"].as_u64().unwrap(), run["pages"].as_u64().unwrap()) {
            all += 1;
            there += u64::from(matches!(at, At::Swap { area, .. } if areas.contains(&area)));
        }
    }
    assert!(all > 0 && there * 100 >= all * 99, "{there} of {all}: {outcome}");
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn an_area_between_two_tiers_hinders_only_the_slower_one() {
    let Some(host) = skip_or_fail(Tiers::new()) else { return };
    let agent = Agent::start(&host.usual(), &[]).unwrap();
    let other = host.path("other");
    mkswap(&other, 8, &[]);
    swapon(&other, LEVELS[1] + 10);
    wait_for_trouble(&agent, "qlc", true);
    assert_eq!(tier(&agent, "nvme")["trouble"], Value::Null);
    swapoff(&other);
    wait_for_trouble(&agent, "qlc", false);
    // One that is filled after the tiers is nobody's business.
    swapon(&other, 100);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(tier(&agent, "qlc")["trouble"], Value::Null);
    assert_eq!(agent.interrupt().unwrap().code, Some(0));
    assert_eq!(host.on(), [(other, 100)]);
}

#[test]
fn a_swap_file_of_the_agents_that_somebody_switches_off_is_made_anew() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    swapoff(&host.scratch.path().join("nvme/segment-0.swap"));
    let outcome = agent.tiering(&["move", "tt-moves", "--to", "nvme", "--json"]).unwrap();
    let outcome: Value = serde_json::from_str(&outcome).unwrap();
    let (asked, there) =
        (outcome["asked_pages"].as_u64().unwrap(), outcome["in_tier_pages"].as_u64().unwrap());
    let zero = outcome["skipped"]["all zero: takes no memory now"].as_u64().unwrap_or(0);
    assert!(there > 0 && (there + zero) * 100 >= asked * 99, "{outcome}");
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

// Large files, and many.

#[test]
fn a_faster_tier_grows_before_it_is_full_and_gives_files_up_that_hold_nothing() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let files = || fs::read_dir(host.scratch.path().join("nvme")).map_or(0, Iterator::count);
    assert_eq!(files(), 1);
    // As the kernel's own reclaim would, while nobody asks the agent for anything.
    let memory = fill(&host.scratch.path().join("nvme/segment-0.swap"), 160);
    assert!(wait_for("another file", || (files() == 2).then_some(())).is_some(), "{}", agent.log().text());
    drop(memory);
    // A host that reclaims by itself may have put pages of others there meanwhile: then the files have to stay.
    let held_by_others = || tier(&agent, "nvme")["used_bytes"].as_u64() > Some(0);
    let began = Instant::now();
    let left = wait_for("the files to go", || {
        let stays = began.elapsed() > Duration::from_secs(100) && held_by_others();
        (files() == 1 || stays).then_some(())
    });
    assert!(left.is_some(), "{} files: {}", files(), agent.log().text());
    drain_and_end(agent, &host);
}

#[test]
fn swap_looks_no_fuller_than_it_is_with_a_lower_tier_of_many_gigabytes() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = host.config("1h").replace("1GiB", "40GiB");
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let agent = Agent::start(&config, &[]).unwrap();
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    agent.tiering(&["move", "tt-moves", "--to", "qlc", "--json"]).unwrap();
    let there = vm(&agent, "tt-moves")["tier_bytes"]["qlc"].as_u64().unwrap();
    assert!(there >= 64 * MIB, "{there} bytes in qlc");
    // What was covered to get there is free again.
    let all = || host.scratch.swap_areas().unwrap().iter().map(|area| used(area)).sum::<u64>();
    let free = wait_for("the cover to go", || (all() < there + 64 * MIB).then_some(()));
    assert!(free.is_some(), "{} MiB are in use, {} of them by the guest", all() >> 20, there >> 20);
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drop(guest);
    let began = Instant::now();
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(host.scratch.swap_areas().unwrap().is_empty());
}
