//! The guests that all other tests rely on do what they say.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use tiering_testkit::guest::{Accel, Backend, Guest, kvm_works};
use tiering_testkit::locate::locate;
use tiering_testkit::pattern::{Access, PAGE_BYTES, Pattern};
use tiering_testkit::skip::{Skip, need_guests, need_root, skip_or_fail};

const BOOT: Duration = Duration::from_secs(120);

fn small() -> Pattern {
    let access = Access::HotAndLoop { hot_mib: 4, loop_mib: 16, loop_every_ms: 1000 };
    Pattern { mem_mib: 48, access, ..Pattern::default() }
}

#[test]
fn a_guest_runs_its_pattern_verifies_its_memory_and_switches_off() {
    let Some(()) = skip_or_fail(need_guests()) else { return };
    let mut guest = Guest::builder("web-1").memory_mib(128).pattern(small()).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    std::thread::sleep(Duration::from_secs(5));

    let result = guest.finish().unwrap();
    assert!(result.checksum_ok, "{}", guest.console().text());
    assert_eq!(result.pages_verified, 48 * 256);
    assert!(result.loops > 0, "{result:?}");
    assert!(result.touches >= result.loops * 16 * 256, "{result:?}");
    assert!(0 < result.touch_ns.p50 && result.touch_ns.p50 <= result.touch_ns.p99, "{result:?}");

    guest.poweroff().unwrap();
}

#[test]
fn clones_of_a_snapshot_go_on_where_it_was_each_with_memory_of_its_own() {
    let Some(()) = skip_or_fail(need_guests()) else { return };
    let pattern = Pattern { rounds_on_command: true, write_one_in: 2, ..small() };
    let mut original =
        Guest::builder("tt-original").memory_mib(128).pattern(pattern).savable().start().unwrap();
    original.wait_ready(BOOT).unwrap();
    let snapshot = original.save().unwrap();

    let mut clones = ["tt-clone-1", "tt-clone-2"].map(|name| snapshot.start(name).unwrap());
    for clone in &mut clones {
        clone.wait_ready(BOOT).unwrap();
        clone.go().unwrap();
        let phase = clone.wait_phase(1, BOOT).unwrap();
        assert_eq!((phase.touches, phase.ok), (16 * 256, true));
        assert!(phase.writes > 0);
    }
    for mut clone in clones {
        let result = clone.finish().unwrap();
        assert!(result.checksum_ok, "{}", clone.console().text());
        assert_eq!(result.pages_verified, 48 * 256);
        clone.poweroff().unwrap();
    }
}

#[test]
fn a_guest_that_is_killed_is_reported_with_its_console() {
    let Some(()) = skip_or_fail(need_guests()) else { return };
    let mut guest = Guest::builder("db-1").memory_mib(128).pattern(small()).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    guest.kill();
    let error = format!("{:#}", guest.finish().unwrap_err());
    assert!(error.contains("db-1"), "{error}");
    let error = format!("{:#}", guest.check_alive().unwrap_err());
    assert!(error.contains("QEMU ended") && error.contains("tg: ready"), "{error}");
}

#[test]
fn a_guest_without_room_for_its_pattern_fails_with_its_reason() {
    let Some(()) = skip_or_fail(need_guests()) else { return };
    let pattern = Pattern { mem_mib: 400, ..small() };
    let mut guest = Guest::builder("full-1").memory_mib(128).pattern(pattern).start().unwrap();
    let error = format!("{:#}", guest.wait_ready(BOOT).unwrap_err());
    assert!(error.contains("full-1") && error.contains("Cannot allocate memory"), "{error}");
}

#[test]
fn one_bit_changed_behind_the_guests_back_is_found() {
    let Some(()) = skip_or_fail(need_root().and_then(|()| need_guests())) else { return };
    let mut guest = Guest::builder("web-1").memory_mib(128).pattern(small()).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    let cold_page = 48 * 256 - 1;
    let address = locate(guest.pid(), guest.ram().unwrap(), &small()).unwrap()[&cold_page];

    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", guest.pid())).unwrap();
    let mut byte = [0];
    memory.read_exact_at(&mut byte, address + 77).unwrap();
    memory.write_all_at(&[byte[0] ^ 1], address + 77).unwrap();

    let result = guest.finish().unwrap();
    assert!(!result.checksum_ok);
    let told = guest.console().find(0, |line| line.strip_prefix("tg: bad page ").map(str::to_owned));
    assert_eq!(told, Some(cold_page.to_string()));
}

#[test]
fn a_pattern_that_cannot_be_is_refused_before_anything_is_booted() {
    let Some(()) = skip_or_fail(need_guests()) else { return };
    let pattern = Pattern { mem_mib: 8, access: Access::Uniform { set_mib: 9 }, ..Pattern::default() };
    let error = format!("{:#}", Guest::builder("odd-1").pattern(pattern).start().unwrap_err());
    assert!(error.contains("odd-1") && error.contains("1 to 8 MiB, not 9"), "{error}");
}

#[test]
fn leader_and_follower_walk_on_command_and_hold_equal_pages_in_the_set() {
    let Some(()) = skip_or_fail(need_root().and_then(|()| need_guests())) else { return };
    let follow = |seed, overlap_percent| Pattern {
        seed,
        mem_mib: 12,
        write_one_in: 0,
        rounds_on_command: true,
        access: Access::Follow { set_mib: 8, order_seed: 5, overlap_percent },
        ..Pattern::default()
    };
    let (led, followed) = (follow(1, 100), follow(2, 70));
    let builder = |name, pattern: &Pattern| Guest::builder(name).memory_mib(128).pattern(pattern.clone());
    let mut leader = builder("leader-1", &led).start().unwrap();
    let mut follower = builder("follower-1", &followed).backend(Backend::Memfd).start().unwrap();
    for guest in [&mut leader, &mut follower] {
        guest.wait_ready(BOOT).unwrap();
    }

    // The leader twice, the follower once.
    for number in [1, 2] {
        leader.go().unwrap();
        let phase = leader.wait_phase(number, BOOT).unwrap();
        assert_eq!((phase.name.as_str(), phase.touches, phase.writes, phase.ok), ("follow", 2048, 0, true));
        assert_eq!(phase.first, (number - 1) * 2048);
        assert!(phase.start_ns < phase.end_ns && phase.p50 <= phase.p99, "{phase:?}");
    }
    follower.go().unwrap();
    let phase = follower.wait_phase(1, BOOT).unwrap();
    let same = phase.truth(&followed).zip(led.touches()).filter(|(own, leaders)| own == leaders).count();
    assert_eq!(same, 1434, "70 % of 2048 places");
    assert_eq!(leader.phases().unwrap().len(), 2, "it waits for its go");

    let mut places = Vec::new();
    for (guest, pattern) in [(&leader, &led), (&follower, &followed)] {
        let found = locate(guest.pid(), guest.ram().unwrap(), pattern).unwrap();
        assert_eq!(found.len(), 12 * 256);
        places.push(found);
    }
    let page = |guest: &Guest, address| {
        let mut page = vec![0; PAGE_BYTES];
        let memory = File::open(format!("/proc/{}/mem", guest.pid())).unwrap();
        memory.read_exact_at(&mut page, address).unwrap();
        page
    };
    let equal = |number| page(&leader, places[0][&number]) == page(&follower, places[1][&number]);
    assert!((0..2048).all(equal), "the set");
    assert!(!(2048..3072).any(equal), "pages of their own");

    for (guest, touches) in [(&mut leader, 4096), (&mut follower, 2048)] {
        let result = guest.finish().unwrap();
        assert_eq!((result.checksum_ok, result.touches, result.round_touches), (true, touches, touches));
    }
}

#[test]
fn guests_that_run_freely_do_what_their_pattern_says() {
    let Some(()) = skip_or_fail(need_root().and_then(|()| need_guests())) else { return };
    let pattern = |write_one_in, access| Pattern { mem_mib: 16, write_one_in, access, ..Pattern::default() };
    let zipf = pattern(1, Access::Zipf { set_mib: 8, skew_percent: 99 });
    let patterns = [
        ("zipf-1", Pattern { touches_per_s: 1000, round_touches: 2000, ..zipf }),
        ("phases-1", pattern(4, Access::PhaseChange { part_mib: 4, every_touches: 500 })),
    ];
    // Both at once: mostly they wait.
    let start = |(name, pattern): &(&str, Pattern)| {
        let builder = Guest::builder(name).memory_mib(128).pattern(pattern.clone());
        builder.backend(Backend::AnonymousSmall).start().unwrap()
    };
    let guests: Vec<_> = patterns.iter().map(start).collect();
    for (mut guest, (name, pattern)) in guests.into_iter().zip(&patterns) {
        guest.wait_ready(BOOT).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid())).unwrap();
        assert!(status.contains("THP_enabled:\t0"), "{status}");
        guest.wait_phase(3, BOOT).unwrap();
        let result = guest.finish().unwrap();
        assert!(result.checksum_ok, "{}", guest.console().text());

        let phases = guest.phases().unwrap();
        let mut next = 0;
        for (number, phase) in (1..).zip(&phases) {
            assert_eq!((phase.number, phase.first, phase.ok), (number, next, true));
            assert_eq!(phase.touches, phase.rounds * pattern.round_len());
            assert_eq!(phase.writes, phase.truth(pattern).filter(|touch| touch.write).count() as u64);
            assert_eq!(phase.latency.iter().map(|(_, touches)| touches).sum::<u64>(), phase.touches);
            next += phase.touches;
        }
        assert!(result.round_touches >= next, "{name}: {result:?}");
        let truth = pattern.touches().take(usize::try_from(result.round_touches).unwrap());
        assert_eq!(result.writes, truth.filter(|touch| touch.write).count() as u64, "{name}");
        if pattern.touches_per_s > 0 {
            let rate = phases[1].touches as f64 * 1e9 / (phases[1].end_ns - phases[1].start_ns) as f64;
            assert!(rate < 1.1 * pattern.touches_per_s as f64, "{rate} touches a second");
        }
    }
}

#[test]
fn guests_of_one_image_hold_equal_pages() {
    let Some(()) = skip_or_fail(need_root().and_then(|()| need_guests())) else { return };
    let walk = Pattern { rounds_on_command: true, ..Pattern::default() };
    let of_image = |seed, access| Pattern { seed, access, ..walk.clone() }.on_image(16, 77);
    let patterns = [
        ("boot-1", of_image(1, Access::Sequential { set_mib: 16 })),
        ("boot-2", of_image(2, Access::Stride { set_mib: 16, stride_pages: 64 })),
    ];
    for (name, pattern) in patterns {
        let mut guest = Guest::builder(name).memory_mib(160).pattern(pattern.clone()).start().unwrap();
        guest.wait_ready(BOOT).unwrap();
        let own = guest.ram().unwrap();
        let found = locate(guest.pid(), own, &Pattern { seed: 9, ..pattern.clone() }).unwrap();
        assert_eq!(found.len(), 16 * 256, "by the image's seed alone");
        guest.go().unwrap();
        assert!(guest.wait_phase(1, BOOT).unwrap().ok, "{}", guest.console().text());
        let result = guest.finish().unwrap();
        assert_eq!((result.checksum_ok, result.pages_verified, result.writes), (true, 16 * 256, 0));
    }
}

#[test]
#[ignore = "boots five guests under KVM and needs 64 free huge pages: in the lab with --cpus 1, after `echo 80 >/proc/sys/vm/nr_hugepages`"]
fn a_kvm_guest_boots_with_each_kind_of_ram() {
    let Some(()) = skip_or_fail(need_root().and_then(|()| need_guests())) else { return };
    let works = kvm_works().map_err(|error| Skip(format!("{error:#}")));
    let Some(()) = skip_or_fail(works) else { return };
    let access = Access::Sequential { set_mib: 24 };
    let pattern = Pattern { mem_mib: 32, access, rounds_on_command: true, ..Pattern::default() };
    let kinds =
        [Backend::Anonymous, Backend::AnonymousSmall, Backend::Memfd, Backend::Hugetlb, Backend::Locked];
    for backend in kinds {
        let began = Instant::now();
        let builder = Guest::builder("ram-1").memory_mib(128).pattern(pattern.clone()).accel(Accel::Kvm);
        let mut guest = builder.backend(backend).start().unwrap();
        guest.wait_ready(BOOT).unwrap();
        eprintln!("{backend:?}: ready after {:.1} s", began.elapsed().as_secs_f64());
        guest.go().unwrap();
        assert!(guest.wait_phase(1, BOOT).unwrap().ok, "{}", guest.console().text());
        let began = Instant::now();
        let found = locate(guest.pid(), guest.ram().unwrap(), &pattern).unwrap();
        eprintln!("{backend:?}: located in {:.1} s", began.elapsed().as_secs_f64());
        assert_eq!(found.len(), pattern.pages());
        assert!(guest.finish().unwrap().checksum_ok, "{}", guest.console().text());
    }
}
