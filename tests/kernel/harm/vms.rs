//! Every form of virtual machine is seen and understood, or left alone with a reason.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tiering_testkit::agent::Agent;
use tiering_testkit::paused::Paused;
use tiering_testkit::skip::{Skip, skip_or_fail};

use crate::host::{At, Host, PAGE, drain_and_end, pagemap};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Pages that are filled at each address, from 1 MiB on for the first.
const FILLED: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(60);

/// One form of machine, and what is to be said of it.
struct Form {
    name: &'static str,
    options: Vec<String>,
    ram_mib: u64,
    /// A word of the reason; none where its RAM is managed.
    refused: Option<&'static str>,
    /// Size, and a word of the reason.
    left_alone: Vec<(u64, &'static str)>,
    /// Guest-physical addresses at which pages are filled.
    filled: Vec<u64>,
}

fn form(name: &'static str, options: &str, ram_mib: u64) -> Form {
    let options = options.split_whitespace().map(str::to_owned).collect();
    Form { name, options, ram_mib, refused: None, left_alone: Vec::new(), filled: vec![MIB] }
}

impl Form {
    fn refused(mut self, word: &'static str) -> Form {
        self.refused = Some(word);
        self
    }

    fn left_alone(mut self, mib: u64, word: &'static str) -> Form {
        self.left_alone.push((mib, word));
        self
    }

    fn filled_at(mut self, gpa: u64) -> Form {
        self.filled.push(gpa);
        self
    }

    fn start(&self) -> Paused {
        let named = self.options.iter().any(|option| option.trim_start_matches('-') == "name");
        let name = if named { vec![] } else { vec!["-name".to_owned(), self.name.to_owned()] };
        let accel = ["-accel", "tcg"].map(str::to_owned).to_vec();
        let mut vm = Paused::start(&[name, accel, self.options.clone()].concat()).unwrap();
        for &gpa in &self.filled {
            vm.fill(gpa, FILLED).unwrap();
        }
        vm
    }
}

/// The machine in `tiering vm list --json`, once `is_right`.
fn listed(agent: &Agent, name: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let list: Value = serde_json::from_str(&agent.tiering(&["vm", "list", "--json"]).unwrap()).unwrap();
        let vm = list.as_array().unwrap().iter().find(|vm| vm["name"] == name).cloned();
        if let Some(vm) = vm.clone().filter(&is_right) {
            return vm;
        }
        let said = agent.log().text();
        assert!(began.elapsed() < PATIENCE, "{name}: {vm:?}\n{said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn reason(vm: &Value) -> &str {
    vm["reason"].as_str().unwrap_or_default()
}

/// Sends all of it down and up again: it left memory meanwhile, and is as it was.
fn assert_moved_and_kept(agent: &Agent, name: &str, vm: &mut Paused, filled: &[u64]) {
    // Where the agent has not swept it yet, it knows of no page.
    let some = |vm: &Value| vm["tier_bytes"]["dram"].as_u64().unwrap_or(0) >= FILLED * PAGE;
    listed(agent, name, some);
    agent.tiering(&["move", name, "--to", "nvme"]).unwrap();
    for &gpa in filled {
        let hva = vm.hva(gpa).unwrap();
        let left = pagemap(vm.pid(), hva, FILLED).iter().filter(|at| matches!(at, At::Memory { .. })).count();
        assert!(left < 64, "{name}: {left} of {FILLED} pages at {gpa:#x} are still in memory");
    }
    agent.tiering(&["move", name, "--to", "dram"]).unwrap();
    for &gpa in filled {
        vm.check(gpa, FILLED).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

/// A file with this text, beside the tiers.
fn file(host: &Host, name: &str, text: &str) -> String {
    let path = host.scratch.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn forms(host: &Host) -> Vec<Form> {
    let image = host.scratch.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(128 * MIB).unwrap();
    let (image, folder) = (image.display(), host.scratch.path().display());
    let incus = file(
        host,
        "qemu.conf",
        "# Machine\n[machine]\ngraphics = \"off\"\ntype = \"q35\"\nusb = \"off\"\n\n[memory]\nsize = \"64M\"\n\n[object \"mem0\"]\n\
         qom-type = \"memory-backend-memfd\"\nsize = \"64M\"\nshare = \"on\"\n\n[numa]\ntype = \"node\"\nnodeid = \"0\"\nmemdev = \"mem0\"\n",
    );
    let half = file(host, "half.conf", "[machine]\ntype = \"q35\"\n[memory]\nsize = \"96\"\n");
    let gone = file(host, "gone.conf", "[machine]\ntype = \"q35\"\n[memory]\nsize = \"64M\"\n");
    let slots = "-machine q35 -m 64M,slots=8,maxmem=8G";
    vec![
        form("tt-plain", "-m 64", 64),
        form("tt-hex", "--m 0x40 --M q35", 64),
        form("tt-size", "-machine q35 -m size=65536k -m slots=2,maxmem=1G", 64),
        form("tt-microvm", "-M microvm -m 64M", 64),
        form("tt-incus", &format!("-readconfig {incus} -no-user-config"), 64),
        form("tt-half", &format!("-readconfig {half} -device pci-bridge,chassis_nr=1"), 96),
        form("tt-gone", &format!("-readconfig {gone}"), 64).refused("gone.conf"),
        form(
            "tt-kata",
            &format!(
                "-machine q35,nvdimm=on -m 64M,slots=10,maxmem=4G -object memory-backend-file,id=mem0,mem-path={image},\
                 size=128M,readonly=on,share=on -device nvdimm,id=nv0,memdev=mem0,unarmed=on \
                 -object memory-backend-file,id=dimm1,size=64M,mem-path=/dev/shm,share=on -numa node,memdev=dimm1"
            ),
            64,
        )
        .left_alone(128, "image"),
        form(
            "tt-nvdimm",
            &format!(
                "-machine q35,nvdimm=on -m 64M,slots=10,maxmem=4G -object memory-backend-file,id=mem0,mem-path={image},\
                 size=128M -device nvdimm,id=nv0,memdev=mem0"
            ),
            64,
        )
        .left_alone(128, "image"),
        form(
            "tt-dimm",
            &format!("{slots} -object memory-backend-ram,id=d,size=64M -device pc-dimm,memdev=d"),
            128,
        )
        .filled_at(4 * GIB),
        form(
            "tt-json",
            r#"-machine pc,memory-backend=pc.ram -m 64 -object {"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}"#,
            64,
        ),
        form(
            "tt-nodes",
            "-machine q35 -m 128 -object memory-backend-ram,id=a,size=64M -object memory-backend-memfd,id=b,size=64M \
             -numa node,memdev=a -numa node,memdev=b",
            128,
        )
        .filled_at(64 * MIB),
        form("tt-mem-path", "-machine q35 -m 64 -mem-path /dev/shm -mem-prealloc", 64),
        form("tt-file", &format!("-machine q35 -m 64 -mem-path {folder}"), 64).refused("storage"),
        form(
            "tt-disk-node",
            &format!(
                "-machine q35 -m 128 -object memory-backend-ram,id=a,size=64M -object memory-backend-file,id=b,size=64M,\
                 mem-path={folder},share=on -numa node,memdev=a -numa node,memdev=b"
            ),
            64,
        )
        .left_alone(64, "storage"),
        form("tt-locked", "-machine q35 -m 64 -overcommit mem-lock=on", 64).refused("lock"),
        form("tt-incoming", "-machine q35 -m 64 -incoming defer", 64).refused("incoming"),
    ]
}

#[test]
fn every_form_of_machine_is_listed_as_it_is_and_its_memory_survives_a_round_through_swap() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let forms = forms(&host);
    let mut vms: Vec<Paused> = forms.iter().map(Form::start).collect();
    std::fs::remove_file(host.scratch.path().join("gone.conf")).unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    for (form, vm) in forms.iter().zip(&mut vms) {
        let Form { name, ram_mib, refused, left_alone, .. } = form;
        let listed = listed(&agent, name, |_| true);
        println!(
            "{name}: {}, {}, left alone: {}",
            listed["ram_bytes"],
            reason(&listed),
            listed["left_alone"]
        );
        assert_eq!(listed["movable"], refused.is_none(), "{name}: {listed}");
        assert!(reason(&listed).contains(refused.unwrap_or_default()), "{name}: {listed}");
        // Where the layout is unknown, so is how much there is.
        assert!(listed["ram_bytes"] == ram_mib * MIB || *name == "tt-gone", "{name}: {listed}");
        let parts = listed["left_alone"].as_array().unwrap();
        assert_eq!(parts.len(), left_alone.len(), "{name}: {listed}");
        for ((mib, word), part) in left_alone.iter().zip(parts) {
            assert_eq!(part["bytes"], mib * MIB, "{name}: {listed}");
            assert!(part["reason"].as_str().unwrap().contains(word), "{name}: {listed}");
        }
        if refused.is_none() {
            assert_moved_and_kept(&agent, name, vm, &form.filled);
        }
    }
    drop(vms);
    drain_and_end(agent, &host);
}

/// Where the agent says that a guest-physical address is in the process.
fn mapped(agent: &Agent, name: &str, gpa: u64) -> Option<u64> {
    let range = format!("{gpa:#x}..{:#x}", gpa + PAGE);
    let map: Value =
        serde_json::from_str(&agent.tiering(&["map", name, "--gpa", &range, "--json"]).ok()?).ok()?;
    map["runs"].as_array()?.first()?["hva"].as_u64()
}

#[test]
fn a_dimm_that_is_plugged_while_the_machine_runs_is_managed_and_one_that_is_unplugged_is_forgotten() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let plugged = form("tt-plug", "-machine q35 -m 64M,slots=4,maxmem=4G", 64);
    let mut vm = plugged.start();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let has = |mib: u64| move |vm: &Value| vm["ram_bytes"] == mib * MIB;
    listed(&agent, "tt-plug", has(64));

    for (id, gpa, mib) in [("d0", 4 * GIB, 128), ("d1", 4 * GIB + 128 * MIB, 256)] {
        let before = listed(&agent, "tt-plug", |_| true)["ram_bytes"].as_u64().unwrap() / MIB;
        let object = json!({"qom-type": "memory-backend-ram", "id": format!("m-{id}"), "size": mib * MIB});
        vm.run("object-add", &object).unwrap();
        let device = json!({"driver": "pc-dimm", "id": id, "memdev": format!("m-{id}")});
        vm.run("device_add", &device).unwrap();
        vm.fill(gpa, FILLED).unwrap();
        let after = listed(&agent, "tt-plug", has(before + mib));
        assert_eq!(after["movable"], true, "{after}");
    }
    let filled = [MIB, 4 * GIB, 4 * GIB + 128 * MIB];
    let all = |vm: &Value| vm["tier_bytes"]["dram"].as_u64().unwrap_or(0) >= 3 * FILLED * PAGE;
    listed(&agent, "tt-plug", all);
    for gpa in filled {
        assert_eq!(mapped(&agent, "tt-plug", gpa), Some(vm.hva(gpa).unwrap()), "{gpa:#x}");
    }
    assert_moved_and_kept(&agent, "tt-plug", &mut vm, &filled);

    // Memory that goes while it is in swap. Without a guest that agrees, no DIMM can be unplugged: QEMU's memory goes
    // the same way.
    let object = json!({"qom-type": "memory-backend-ram", "id": "m", "size": 192 * MIB, "prealloc": true});
    vm.run("object-add", &object).unwrap();
    listed(&agent, "tt-plug", has(64 + 128 + 256 + 192));
    listed(&agent, "tt-plug", |vm| vm["tier_bytes"]["dram"].as_u64().unwrap_or(0) >= 192 * MIB);
    agent.tiering(&["move", "tt-plug", "--to", "nvme"]).unwrap();
    vm.run("object-del", &json!({"id": "m"})).unwrap();
    let after = listed(&agent, "tt-plug", has(64 + 128 + 256));
    assert_eq!(after["movable"], true, "{after}");
    agent.tiering(&["move", "tt-plug", "--to", "dram"]).unwrap();
    for gpa in filled {
        vm.check(gpa, FILLED).unwrap();
    }
    drop(vm);
    drain_and_end(agent, &host);
}

#[test]
fn virtio_mem_is_managed_where_it_was_touched_and_the_rest_is_not_counted() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let backend = |kind: &str| {
        format!(
            "-machine q35 -m 64M,maxmem=4G -object {kind},id=v,size=1G,reserve=off \
             -device virtio-mem-pci,memdev=v,requested-size=0"
        )
    };
    let forms = [
        form("tt-anonymous", &backend("memory-backend-ram"), 64).filled_at(4 * GIB),
        form("tt-memfd", &backend("memory-backend-memfd"), 64).filled_at(4 * GIB),
    ];
    let mut vms: Vec<Paused> = forms.iter().map(Form::start).collect();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let resident = |vm: &Paused| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
        let kib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        kib("RssAnon:") + kib("RssShmem:")
    };
    for (Form { name, filled, .. }, vm) in forms.iter().zip(&mut vms) {
        let (touched, before) = (FILLED * PAGE, resident(vm));
        let listed = listed(&agent, name, |vm| vm["ram_bytes"] == 64 * MIB + touched);
        assert_eq!(listed["movable"], true, "{listed}");
        let parts = listed["left_alone"].as_array().unwrap();
        assert_eq!(parts[0]["bytes"], GIB - touched, "{listed}");
        assert!(parts[0]["reason"].as_str().unwrap().contains("virtio-mem"), "{listed}");
        assert_moved_and_kept(&agent, name, vm, filled);
        let after = resident(vm);
        assert!(after < before + 4096, "{name}: {before} KiB were there before, {after} KiB are now");
    }
    drop(vms);
    drain_and_end(agent, &host);
}

#[test]
fn a_process_that_maps_shared_ram_late_is_found() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let path = Path::new("/dev/shm").join(format!("tt-shared-{}", std::process::id()));
    let object = format!("memory-backend-file,id=r,size=64M,mem-path={},share=on", path.display());
    let shared = form("tt-shared", &format!("-machine q35,memory-backend=r -m 64 -object {object}"), 64);
    let vm = shared.start();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let alone = listed(&agent, "tt-shared", |_| true);
    assert_eq!(alone["movable"], true, "{alone}");

    // Any process does; this one is no virtual machine.
    let daemon = Paused::start(&["-machine", "none", "-object", &format!("{object},prealloc=on")]).unwrap();
    let refused = listed(&agent, "tt-shared", |vm| vm["movable"] == false);
    assert!(reason(&refused).contains(&daemon.pid().to_string()), "{refused}");
    drop(daemon);
    listed(&agent, "tt-shared", |vm| vm["movable"] == true);
    std::fs::remove_file(path).unwrap();
    drop(vm);
    drain_and_end(agent, &host);
}

/// Pages of the hugetlb pool, set aside for a test.
struct Pool(String);

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl Pool {
    fn of(pages: u64) -> Result<Pool, Skip> {
        let pool = Pool(std::fs::read_to_string(POOL).unwrap());
        std::fs::write(POOL, pages.to_string()).unwrap();
        let there: u64 = std::fs::read_to_string(POOL).unwrap().trim().parse().unwrap();
        if there < pages { Err(Skip(format!("{pages} huge pages: {there} are free"))) } else { Ok(pool) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        std::fs::write(POOL, &self.0).ok();
    }
}

#[test]
fn huge_pages_beside_small_ones_stay_and_the_small_ones_are_managed() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let Some(_pool) = skip_or_fail(Pool::of(96)) else { return };
    let huge = "memory-backend-memfd,id=b,size=64M,hugetlb=on";
    let forms = [
        form(
            "tt-mixed",
            &format!(
                "-machine q35 -m 128 -object memory-backend-ram,id=a,size=64M -object {huge} -numa node,memdev=a -numa node,memdev=b"
            ),
            128,
        ),
        form("tt-huge", &format!("-machine q35,memory-backend=b -m 64 -object {huge}"), 64),
    ];
    let mut vms: Vec<Paused> = forms.iter().map(Form::start).collect();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let mixed = listed(&agent, "tt-mixed", |_| true);
    assert_eq!((&mixed["movable"], &mixed["ram_bytes"]), (&json!(true), &json!(128 * MIB)), "{mixed}");
    assert_eq!(mixed["left_alone"][0]["bytes"], 64 * MIB, "{mixed}");
    assert!(mixed["left_alone"][0]["reason"].as_str().unwrap().contains("hugetlb"), "{mixed}");
    assert_moved_and_kept(&agent, "tt-mixed", &mut vms[0], &[MIB]);
    let all = listed(&agent, "tt-huge", |_| true);
    assert!(all["movable"] == false && reason(&all).contains("hugetlb"), "{all}");
    drop(vms);
    drain_and_end(agent, &host);
}

fn need_kvm() -> Result<(), Skip> {
    let found = Path::new("/dev/kvm").exists();
    found.then_some(()).ok_or_else(|| Skip("/dev/kvm: emulated processors reach 1 TiB only".to_owned()))
}

#[test]
fn ram_of_a_guest_with_amd_processors_lies_above_the_hole_below_one_tib() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let Some(()) = skip_or_fail(need_kvm()) else { return };
    let options = "-accel kvm -cpu qemu64,vendor=AuthenticAMD,phys-bits=46 -machine pc-q35-7.2 -m 64M,slots=2,maxmem=1100G \
                   -name tt-amd -object memory-backend-ram,id=d,size=128M -device pc-dimm,memdev=d";
    let options: Vec<&str> = options.split_whitespace().collect();
    let Some(mut vm) = skip_or_fail(Paused::start(&options).map_err(|error| Skip(format!("{error:#}"))))
    else {
        return;
    };
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    listed(&agent, "tt-amd", |_| true);
    let gpa = 1024 * GIB;
    vm.fill(gpa, FILLED).unwrap();
    listed(&agent, "tt-amd", |vm| vm["tier_bytes"]["dram"].as_u64().unwrap_or(0) >= FILLED * PAGE);
    assert_eq!(mapped(&agent, "tt-amd", gpa), Some(vm.hva(gpa).unwrap()));
    drop(vm);
    drain_and_end(agent, &host);
}
