//! The guests that all other tests rely on do what they say.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tiering_tests::content;
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::pattern::{PAGE_BYTES, Pattern};
use tiering_tests::skip::{need_guests, need_root, skip_or_fail};

const BOOT: Duration = Duration::from_secs(120);

fn small() -> Pattern {
    Pattern { mem_mib: 48, hot_mib: 4, loop_mib: 16, loop_every_ms: 1000, ..Pattern::default() }
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
    // In shared RAM, which is there under its name.
    let shared = Guest::builder("web-1").memory_mib(128).pattern(small()).backend(Backend::Memfd);
    let mut guest = shared.start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    let cold_page = 48 * 256 - 1;

    let maps = std::fs::read_to_string(format!("/proc/{}/maps", guest.pid())).unwrap();
    let ram = maps.lines().find(|line| line.contains("memfd:memory-backend-memfd")).expect(&maps);
    let (start, end) = ram.split_whitespace().next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
    assert_eq!(end - start, 128 << 20);

    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", guest.pid())).unwrap();
    let mut expected: content::Page = [0; content::WORDS];
    content::fill(&mut expected, small().seed, cold_page, 0);
    let expected: Vec<u8> = expected.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut page = vec![0; PAGE_BYTES];
    let address = (start..end).step_by(PAGE_BYTES).find(|address| {
        memory.read_exact_at(&mut page, *address).unwrap();
        page == expected
    });
    memory.write_all_at(&[expected[77] ^ 1], address.unwrap() + 77).unwrap();

    let result = guest.finish().unwrap();
    assert!(!result.checksum_ok);
    let told = guest.console().find(0, |line| line.strip_prefix("tg: bad page ").map(str::to_owned));
    assert_eq!(told, Some(cold_page.to_string()));
}
