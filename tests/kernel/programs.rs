//! Real programs in guests: each answers, does what its client is for, and ends with its data as it should be.

use std::time::{Duration, Instant};
use tiering_testkit::guest::Guest;
use tiering_testkit::program::{Kind, Program};
use tiering_testkit::skip::{need_guests, need_programs, skip_or_fail};

/// An emulated guest that shares two busy processors: PostgreSQL needs most of it.
const BOOT: Duration = Duration::from_secs(240);
const PROGRESS: u64 = 3;

/// Boots an emulated guest, no larger than this program needs, and lets it work for a while.
fn runs(program: Program) {
    let Some(()) = skip_or_fail(need_programs()) else { return };
    let began = Instant::now();
    let mut guest =
        Guest::builder("program-1").memory_mib(program.needs_mib()).program(program).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    let ready = began.elapsed();

    let last = guest.wait_progress(PROGRESS, BOOT).unwrap();
    let result = guest.finish_program().unwrap();
    let name = program.kind.name();
    let per_s = last.operations as f64 * 1e9 / (last.end_ns - last.start_ns) as f64;
    eprintln!("{name}: ready after {:.1} s, {per_s:.1} operations a second; {result:?}", ready.as_secs_f64());

    let told = guest.progress().unwrap();
    for (number, progress) in (1..).zip(&told) {
        assert_eq!((progress.number, progress.name.as_str()), (number, name));
        assert!(progress.operations > 0 && progress.start_ns < progress.end_ns, "{progress:?}");
    }
    let operations: u64 = told.iter().map(|progress| progress.operations).sum();
    assert_eq!(result.operations, operations, "all of it was told");
    assert!(result.data_ok && result.ended_well, "{result:?}\n{}", guest.console().text());
    guest.poweroff().unwrap();
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`, and a minute or two"]
fn postgres_runs_in_a_guest() {
    runs(Program::new(Kind::Postgres));
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn nginx_runs_in_a_guest() {
    runs(Program::new(Kind::Nginx));
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn redis_runs_in_a_guest() {
    runs(Program::new(Kind::Redis));
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn memcached_runs_in_a_guest() {
    runs(Program::new(Kind::Memcached));
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn a_compile_runs_in_a_guest() {
    runs(Program { size_mib: 1, ..Program::new(Kind::Compile) });
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn sqlite_runs_in_a_guest() {
    runs(Program::new(Kind::Sqlite));
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn a_program_keeps_to_its_rate() {
    let Some(()) = skip_or_fail(need_programs()) else { return };
    let program = Program { rate: 50, size_mib: 4, ..Program::new(Kind::Redis) };
    let mut guest = Guest::builder("program-2").program(program).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    let last = guest.wait_progress(4, BOOT).unwrap();
    let first = &guest.progress().unwrap()[0];
    let before_last: u64 = guest.progress().unwrap().iter().take(3).map(|progress| progress.operations).sum();
    let rate = before_last as f64 * 1e9 / (last.start_ns - first.start_ns) as f64;
    assert!(rate < 1.1 * 50.0, "{rate} operations a second");
    assert!(guest.finish_program().unwrap().data_ok);
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn an_idle_guest_boots_and_does_nothing() {
    let Some(()) = skip_or_fail(need_programs()) else { return };
    let began = Instant::now();
    let idle = Program::new(Kind::Idle);
    let mut guest = Guest::builder("program-3").memory_mib(idle.needs_mib()).program(idle).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    eprintln!("idle: ready after {:.1} s", began.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(3));
    let result = guest.finish_program().unwrap();
    assert_eq!((result.rounds, result.data_ok, result.ended_well), (0, true, true));
    assert!(guest.progress().unwrap().is_empty());
    guest.poweroff().unwrap();
}

#[test]
fn a_program_that_cannot_be_is_refused_before_anything_is_booted() {
    let Some(()) = skip_or_fail(need_guests()) else { return };
    let large = Program { size_mib: 200, ..Program::new(Kind::Redis) };
    let error = format!("{:#}", Guest::builder("program-4").program(large).start().unwrap_err());
    assert!(error.contains("program-4: redis needs 346 MiB of RAM, not 256"), "{error}");
}
