//! Real programs as a guest's load, by name. The one place where they are described, shared by the guest that runs them
//! and the host that asks for them.
//!
//! The host writes a [`Program`] on the guest's kernel command line, and gives the guest a disk with all programs on it
//! ([`image`]). The guest's init
//! 1. makes the disk its root, which it can write to; what is written is gone with the guest;
//! 2. starts the program, if it is a server, makes its data, and prints `tg: ready`;
//! 3. does one round of its client after another, and at a round's end prints `tg: progress ` and a [`Progress`], at
//!    most one a second: rounds that end sooner are told by the next line; with [`Program::rounds_on_command`] one at
//!    each line `go`, which is told at once;
//! 4. on the line `finish` checks all data, ends the server, and prints `tg: result ` and a [`ProgramResult`]; on
//!    `poweroff` switches off.
//!
//! Whatever a program does wrong ends the guest, with what it said.
//!
//! In: a program. Out: its words for the command line, and the shell lines that run it ([`Recipe`]).
//!
//! # Limits
//! The seed decides the data; which of it is asked for, and when, is known of no program. redis-benchmark and memaslap
//! cannot be told a seed at all.

pub mod image;
mod recipe;
mod report;
mod sources;

pub use recipe::Recipe;
pub use report::{PROGRESS, ProgramResult, Progress};

use crate::words::Words;
use anyhow::{Context, Result, ensure};

/// What a guest's system, init and a small server take beside the data.
const SYSTEM_MIB: usize = 96;
/// The fastest that nginx's client can be held to.
const MOST_REQUESTS_PER_S: u64 = 4000;

/// A program and how it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub kind: Kind,
    /// Of the data: database, files, values, sources.
    pub size_mib: usize,
    /// What the data follows from.
    pub seed: u64,
    /// At most this many operations a second, in rounds of two seconds; 0 is as fast as possible.
    pub rate: u64,
    /// Of the data the clients use one part in so many. Redis alone knows more than 1.
    pub used_one_in: usize,
    /// A round at each command, instead of one after another.
    pub rounds_on_command: bool,
}

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL with pgbench; an operation is a transaction.
    Postgres,
    /// nginx with wrk; an operation is a request for a file of 64 KiB.
    Nginx,
    /// Redis with redis-benchmark; an operation is a request for a value of a KiB, or for a change of one.
    Redis,
    /// memcached with memaslap; an operation is a request for a value of a KiB, or a new one.
    Memcached,
    /// gcc; an operation is a C source compiled.
    Compile,
    /// SQLite; an operation is an aggregation over a whole table.
    Sqlite,
    /// Files are read: 3,000 of the disk that all guests begin with, an archive of some of them, and files of its own.
    /// An operation is all of them.
    Files,
    /// Nothing.
    Idle,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Postgres,
        Self::Nginx,
        Self::Redis,
        Self::Memcached,
        Self::Compile,
        Self::Sqlite,
        Self::Files,
        Self::Idle,
    ];

    /// As it is called on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Memcached => "memcached",
            Self::Compile => "compile",
            Self::Sqlite => "sqlite",
            Self::Files => "files",
            Self::Idle => "idle",
        }
    }

    /// The program of this name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn named(name: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name).join(", ");
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.with_context(|| format!("no program is called {name}: there are {names}"))
    }
}

impl Program {
    /// A program with 16 MiB of data, as fast as it can.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, size_mib: 16, seed: 7, rate: 0, used_one_in: 1, rounds_on_command: false }
    }

    /// The RAM that a guest needs for it.
    #[must_use]
    pub fn needs_mib(&self) -> u32 {
        let program = match self.kind {
            // The database in the page cache, and a part of it in the server's own.
            Kind::Postgres => 64 + self.size_mib + self.size_mib / 4,
            // The compiler itself.
            Kind::Compile => 64 + self.size_mib,
            Kind::Memcached => 32 + self.size_mib,
            Kind::Redis => self.size_mib + self.size_mib / 4,
            // wrk reserves 80 MB for what it counts, and is refused it where there is not as much RAM.
            Kind::Nginx => 64 + self.size_mib,
            Kind::Sqlite => self.size_mib,
            // What the guests have in common.
            Kind::Files => 192 + self.size_mib,
            Kind::Idle => 0,
        };
        u32::try_from(SYSTEM_MIB + program).unwrap_or(u32::MAX)
    }

    /// The words for the kernel command line.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        let Self { kind, size_mib, seed, rate, used_one_in, rounds_on_command } = self;
        let used = if *used_one_in == 1 { String::new() } else { format!(" tg.used_one_in={used_one_in}") };
        let on_command = if *rounds_on_command { " tg.rounds_on_command=1" } else { "" };
        let kind = kind.name();
        format!("tg.program={kind} tg.size_mib={size_mib} tg.seed={seed} tg.rate={rate}{used}{on_command}")
    }

    /// Reads the `tg.` words of a kernel command line; none where it names no program.
    ///
    /// # Errors
    /// A `tg.` word that is unknown, a value that is no number, or what [`Program::check`] finds.
    pub fn from_cmdline(cmdline: &str) -> Result<Option<Self>> {
        let mut words = Words::read(cmdline)?;
        let Some(name) = words.take("program") else { return Ok(None) };
        let default = Self::new(Kind::named(name)?);
        let program = Self {
            kind: default.kind,
            size_mib: words.number("size_mib", default.size_mib)?,
            seed: words.number("seed", default.seed)?,
            rate: words.number("rate", default.rate)?,
            used_one_in: words.number("used_one_in", default.used_one_in)?,
            rounds_on_command: words.flag("rounds_on_command")?,
        };
        words.end(&format!("tg.program={name}"))?;
        program.check()?;
        Ok(Some(program))
    }

    /// Whether it can be done.
    ///
    /// # Errors
    /// The first field that contradicts another.
    pub fn check(&self) -> Result<()> {
        let name = self.kind.name();
        ensure!(self.size_mib > 0, "tg.size_mib is 0: a program needs data");
        ensure!(self.size_mib <= 1 << 11, "tg.size_mib is more than 2048, and the guest's disk has not more");
        // It is a number in programs that know 32 bits with a sign.
        ensure!(self.seed < 1 << 31, "tg.seed has to be below 2^31");
        let unpaced = matches!(self.kind, Kind::Compile | Kind::Files | Kind::Idle);
        ensure!(self.rate == 0 || !unpaced, "tg.rate: {name} has no rate");
        ensure!(self.used_one_in > 0, "tg.used_one_in is 0");
        ensure!(
            self.used_one_in == 1 || self.kind == Kind::Redis,
            "tg.used_one_in: {name} uses all of its data"
        );
        ensure!(
            self.kind != Kind::Nginx || self.rate <= MOST_REQUESTS_PER_S,
            "tg.rate is more than the {MOST_REQUESTS_PER_S} that {name}'s client can be held to"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_survives_the_command_line() {
        for kind in Kind::ALL {
            let plain = Program::new(kind);
            let rate = if matches!(kind, Kind::Compile | Kind::Files | Kind::Idle) { 0 } else { 50 };
            let used_one_in = if kind == Kind::Redis { 10 } else { 1 };
            for program in [
                plain,
                Program { used_one_in, ..plain },
                Program { size_mib: 3, seed: 99, rate, ..plain },
                Program { rounds_on_command: true, ..plain },
            ] {
                let cmdline = format!("quiet console=ttyS0 {} panic=-1", program.to_cmdline());
                assert_eq!(Program::from_cmdline(&cmdline).unwrap(), Some(program));
            }
        }
    }

    #[test]
    fn a_pattern_is_no_program() {
        assert_eq!(Program::from_cmdline("quiet tg.access=idle tg.seed=1").unwrap(), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (cmdline, named) in [
            ("tg.program=mysql", "no program is called mysql: there are postgres, nginx,"),
            ("tg.program=redis tg.mem_mib=1", "tg.mem_mib is unknown with tg.program=redis"),
            ("tg.program=redis tg.size_mib=1G", "tg.size_mib=1G: not a number"),
            ("tg.program=redis tg.size_mib=0", "tg.size_mib is 0"),
            ("tg.program=redis tg.size_mib=2049", "more than 2048"),
            ("tg.program=redis tg.seed=2147483648", "below 2^31"),
            ("tg.program=idle tg.rate=1", "idle has no rate"),
            ("tg.program=nginx tg.used_one_in=2", "nginx uses all of its data"),
            ("tg.program=redis tg.used_one_in=0", "tg.used_one_in is 0"),
            ("tg.program=nginx tg.rate=4001", "more than the 4000"),
        ] {
            let error = format!("{:#}", Program::from_cmdline(cmdline).unwrap_err());
            assert!(error.contains(named), "{cmdline}: {error}");
        }
    }
}
