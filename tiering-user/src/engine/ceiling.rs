//! A limit on the agent's own memory, above which it forgets.
//!
//! In, once a second: how much memory the agent takes; what it remembers, how long ago each part of it was of use and
//! how much memory it takes. Out: what is forgotten now, least missed first; how far the mapping tables may grow in the
//! next second. Deciding is pure ([`Ceiling::look`], [`choose`]).
//!
//! | forgotten | in the order of |
//! |---|---|
//! | tapes on record, most of them of VMs that are gone | when they were written |
//! | orders of images on record | when they were written |
//! | orders of images that are open | when a VM read them last |
//! | all that is known of VMs that are gone | when they were seen last |
//! | tags of a tenant | how much memory they take, most first |
//! | tapes of VMs that are there | when they were recorded last |
//!
//! What is forgotten is removed from disk as well, else the next agent would begin with too much.
//!
//! # Limits
//! Mapping tables are not forgotten: they say where pages are. They do not grow beyond the limit: pages that come in
//! then are not taken in, count as untouched, and are not moved.

use std::fmt;
use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::remembered::{RANKS, Remembered, What};
use crate::config::Size;
use crate::predict::{Ahead, Marks, Tags, Tape};
use crate::sys::Monotonic;
use crate::telemetry::status::AgentStatus;

/// The default: so many bytes, and one in so many of the host's RAM.
const BASE_BYTES: u64 = 64 << 20;
const RAM_SHARE: u64 = 100;
/// Of the limit: from so much on the agent forgets, until it is down to so much. The rest is for what it learns within
/// a second.
const FORGET_FROM_EIGHTHS: u64 = 7;
const FORGET_TO_EIGHTHS: u64 = 6;
/// It is told at most so often.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// What to forget so that so many bytes become free, or all there is.
fn choose(mut remembered: Vec<Remembered>, bytes: u64) -> Vec<Remembered> {
    remembered.sort_by_key(|it| (it.what.rank(), it.used));
    let mut freed = 0;
    remembered.retain(|it| {
        let goes = freed < bytes && it.bytes > 0;
        freed += if goes { it.bytes } else { 0 };
        goes
    });
    remembered
}

/// How many of each rank, and how much memory.
struct Forgotten<'a>(&'a [Remembered]);

impl fmt::Display for Forgotten<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (rank, name) in RANKS.iter().enumerate() {
            let of_rank = || self.0.iter().filter(|it| it.what.rank() == rank);
            if of_rank().next().is_some() {
                let kib = of_rank().map(|it| it.bytes).sum::<u64>() >> 10;
                write!(f, "{separator}{} {name} ({kib} KiB)", of_rank().count())?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// The limit, and what came of it.
#[derive(Debug)]
pub(super) struct Ceiling {
    limit_bytes: u64,
    memory_bytes: u64,
    /// The kernel was given back what is free, since memory was last below the limit.
    has_given_back: bool,
    forgotten: u64,
    left_out_pages: u64,
    told_forgotten: Option<Monotonic>,
    told_left_out: Option<Monotonic>,
}

impl Ceiling {
    /// As configured, else by the RAM of the host.
    pub(super) fn new(configured: Option<Size>, ram_bytes: u64) -> Self {
        Self {
            limit_bytes: configured.map_or(BASE_BYTES + ram_bytes / RAM_SHARE, |size| size.0),
            memory_bytes: 0,
            has_given_back: false,
            forgotten: 0,
            left_out_pages: 0,
            told_forgotten: None,
            told_left_out: None,
        }
    }

    /// The agent takes so much now. Returns how many bytes are to be forgotten.
    fn look(&mut self, memory_bytes: u64) -> u64 {
        self.memory_bytes = memory_bytes;
        let eighths = |eighths: u64| self.limit_bytes / 8 * eighths;
        if memory_bytes > eighths(FORGET_FROM_EIGHTHS) {
            memory_bytes - eighths(FORGET_TO_EIGHTHS)
        } else {
            0
        }
    }

    /// By how many bytes the table of each of so many VMs may grow until the next look.
    pub(super) fn room(&self, vms: usize) -> u64 {
        self.limit_bytes.saturating_sub(self.memory_bytes) / 2 / vms.max(1) as u64
    }

    pub(super) fn status(&self) -> AgentStatus {
        AgentStatus {
            memory_bytes: self.memory_bytes,
            memory_limit_bytes: self.limit_bytes,
            forgotten_total: self.forgotten,
            left_out_pages_total: self.left_out_pages,
        }
    }

    fn note_forgotten(&mut self, forgotten: &[Remembered], now: Monotonic) {
        self.forgotten += forgotten.len() as u64;
        if !is_time(&mut self.told_forgotten, now) {
            return;
        }
        let (memory_mib, limit_mib) = (self.memory_bytes >> 20, self.limit_bytes >> 20);
        if forgotten.is_empty() {
            tracing::warn!(
                memory_mib,
                limit_mib,
                "the agent's memory is near agent.memory_limit, and there is nothing left to forget: raise the limit"
            );
        } else {
            let forgotten = Forgotten(forgotten);
            tracing::warn!(
                memory_mib, limit_mib, %forgotten,
                "the agent's memory is near agent.memory_limit: it forgot what was of use longest ago; raise the limit to have it remember more"
            );
        }
    }

    fn note_left_out(&mut self, pages: u64, now: Monotonic) {
        self.left_out_pages += pages;
        if pages > 0 && is_time(&mut self.told_left_out, now) {
            let limit_mib = self.limit_bytes >> 20;
            tracing::warn!(
                pages,
                limit_mib,
                "the mapping tables have no room left in agent.memory_limit: these pages are not watched and not moved; raise the limit"
            );
        }
    }
}

/// Whether it was not told lately.
fn is_time(told: &mut Option<Monotonic>, now: Monotonic) -> bool {
    let due = told.is_none_or(|at| now.since(at) >= TELL_EVERY);
    if due {
        *told = Some(now);
    }
    due
}

impl Engine {
    /// Forgets what is too much, and says how far the tables may grow.
    pub(super) fn keep_within_memory(&mut self) {
        let now = self.clock.now;
        // It can be read as long as /proc is there.
        let excess_bytes = self.facts.own_memory_bytes.map_or(0, |bytes| self.ceiling.look(bytes));
        if excess_bytes > 0 {
            // What was freed before comes first.
            if std::mem::replace(&mut self.ceiling.has_given_back, true) {
                self.forget_oldest(excess_bytes, now);
            }
            self.commands.push(Command::GiveBackFreed);
        } else {
            self.ceiling.has_given_back = false;
        }
        let room = self.ceiling.room(self.vms.len());
        let left_out = self.vms.values_mut().map(|vm| vm.pages.may_grow_by(room)).sum();
        self.ceiling.note_left_out(left_out, now);
    }

    fn forget_oldest(&mut self, bytes: u64, now: Monotonic) {
        let forgotten = choose(self.remembered(), bytes);
        for it in &forgotten {
            self.forget_knowledge(&it.what);
        }
        self.ceiling.note_forgotten(&forgotten, now);
    }

    fn remembered(&self) -> Vec<Remembered> {
        let tapes = self.vms.iter().map(|(id, vm)| {
            let earlier = vm.prefetch.earlier.as_ref().map_or(0, |earlier| earlier.tape.bytes());
            let used = vm.prefetch.marks.last().map_or(0, |at| at.0);
            Remembered { what: What::Tape(*id), used, bytes: vm.prefetch.tape.bytes() + earlier }
        });
        let mut all: Vec<Remembered> = tapes.filter(|it| it.bytes > 0).collect();
        all.extend(self.memory.remembered());
        all.extend(self.images.remembered());
        all.extend(self.tenants.remembered());
        all
    }

    fn forget_knowledge(&mut self, what: &What) {
        match what {
            What::TapeOnRecord(identity) => self.memory.forget_tape(identity),
            What::VmOnRecord(identity) => self.memory.forget_vm(identity),
            What::ImageOnRecord(image) => self.images.forget_record(image),
            What::OpenImage(image) => self.images.forget_order(image),
            What::Tags(tenant) => {
                if let Some(tenant) = self.tenants.get_mut(tenant) {
                    tenant.tags = Tags::default();
                }
            }
            What::Tape(id) => {
                for other in self.vms.values_mut() {
                    other.forget_leader(*id);
                }
                if let Some(vm) = self.vms.get_mut(id) {
                    vm.prefetch.tape = Tape::new(vm.pages.layout().pages());
                    vm.prefetch.marks = Marks::default();
                    vm.prefetch.earlier = None;
                    vm.prefetch.ahead = Ahead::default();
                    vm.knowledge.tape_kept = vm.prefetch.tape.end();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::VmId;

    fn tape(name: &str, used: u64, bytes: u64) -> Remembered {
        Remembered { what: What::TapeOnRecord(name.to_owned()), used, bytes }
    }

    #[test]
    fn the_oldest_goes_first_and_what_is_there_last() {
        let live = Remembered { what: What::Tape(VmId(1)), used: 1, bytes: 100 };
        let tags = Remembered { what: What::Tags("a".into()), used: 0, bytes: 50 };
        let all =
            vec![live.clone(), tape("new", 9, 30), tags.clone(), tape("old", 2, 30), tape("empty", 0, 0)];
        assert_eq!(choose(all.clone(), 0), []);
        assert_eq!(choose(all.clone(), 1), [tape("old", 2, 30)]);
        assert_eq!(choose(all.clone(), 31), [tape("old", 2, 30), tape("new", 9, 30)]);
        assert_eq!(choose(all.clone(), 61).last(), Some(&tags));
        assert_eq!(choose(all, 1000).last(), Some(&live));
    }

    #[test]
    fn what_was_forgotten_is_told_by_kind() {
        let forgotten = [
            tape("a", 1, 2048),
            tape("b", 1, 1024),
            Remembered { what: What::Tape(VmId(1)), used: 1, bytes: 5 << 20 },
        ];
        assert_eq!(Forgotten(&forgotten).to_string(), "2 tapes on record (3 KiB), 1 tapes of VMs (5120 KiB)");
    }

    #[test]
    fn it_forgets_before_the_limit_is_reached_and_tables_never_grow_beyond_it() {
        let mut ceiling = Ceiling::new(Some(Size(800)), 0);
        assert_eq!(ceiling.look(700), 0);
        assert_eq!(ceiling.look(701), 101);
        assert_eq!(ceiling.room(3), 16, "half of what is left, in three parts");
        ceiling.look(900);
        assert_eq!(ceiling.room(3), 0);
        assert_eq!(Ceiling::new(None, 100 << 30).limit_bytes, (64 << 20) + (1 << 30));
    }
}
