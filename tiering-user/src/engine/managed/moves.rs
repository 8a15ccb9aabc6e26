//! Steps of a VM that wait for the mover, and how much memory leaves the first tier by them and by orders to the
//! kernel.
//!
//! In: steps, as the policy planned them or an operator asked for them. Out: one batch after the other, without the
//! pages that were accessed since they were planned.

use std::collections::VecDeque;
use std::time::Duration;

use super::decisions::Decisions;
use super::{LATELY, ManagedVm};
use crate::actuate::Outcome;
use crate::policy::{Action, Reason, Step};
use crate::reclaim::Recent;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{BLOCK_PAGES, PageIndex, Place, Seconds};
use crate::tiers::TierId;

/// Pages of one job: 32 MiB, so that the last look before each is recent.
const BATCH_PAGES: usize = 8192;

/// Moves of one VM: those that wait, the one under way, and what became of former ones.
#[derive(Debug)]
pub struct Moves {
    queue: VecDeque<Queued>,
    /// With the mover now.
    in_flight: Option<Queued>,
    moved_at: Monotonic,
    refused_now: Option<String>,
    /// Planning pauses until then.
    rest_until: Monotonic,
    decisions: Decisions,
    pub totals: Moved,
    /// Pages that the mover took out of memory in the last seconds.
    left: Recent<u64>,
}

impl Moves {
    /// Of a VM with so many pages.
    pub fn new(pages: u32) -> Self {
        Self {
            queue: VecDeque::new(),
            in_flight: None,
            moved_at: Monotonic::default(),
            refused_now: None,
            rest_until: Monotonic::default(),
            decisions: Decisions::new(pages),
            totals: Moved::default(),
            left: Recent::new(LATELY),
        }
    }

    /// Steps that wait, and the one that is with the mover.
    pub fn waiting(&self) -> impl Iterator<Item = &Queued> {
        self.queue.iter().chain(&self.in_flight)
    }

    pub fn is_under_way(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Something begins to move, or did until now.
    pub fn note_moving(&mut self, now: Monotonic) {
        self.moved_at = now;
    }

    /// When a move last began or ended, which is now for one under way: a look that began before is out of date.
    pub fn moved_at(&self, now: Monotonic) -> Monotonic {
        if self.in_flight.is_some() { now } else { self.moved_at }
    }

    /// The mover is done with its batch.
    pub fn end(&mut self, now: Monotonic) -> Option<Queued> {
        self.note_moving(now);
        self.in_flight.take()
    }

    /// Drops what was planned; what an operator asked for stays.
    pub fn forget_plans(&mut self) {
        self.queue.retain(|queued| queued.ticket.is_some());
    }

    /// Why the last look before a move refused it, if it did.
    pub fn refused_now(&self) -> Option<&str> {
        self.refused_now.as_deref()
    }

    /// Returns whether that is new.
    pub fn refuse(&mut self, why: Option<String>) -> bool {
        let is_new = self.refused_now != why;
        self.refused_now = why;
        is_new
    }

    /// Plans nothing until then.
    pub fn rest(&mut self, until: Monotonic) {
        self.rest_until = until;
    }

    /// How much longer nothing is planned.
    pub fn rests(&self, now: Monotonic) -> Option<Duration> {
        (self.rest_until > now).then(|| self.rest_until.since(now))
    }

    /// Steps that are done, those of the latest first.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    pub fn note_decision(&mut self, outcome: &Outcome) {
        self.decisions.note(outcome);
    }

    /// The mover has taken so many pages out of memory.
    pub fn note_left(&mut self, pages: u64, at: Monotonic) {
        self.left.add(pages, at);
    }

    /// Pages that it took out of memory in so much time.
    pub fn left_within(&self, within: Duration, now: Monotonic) -> u64 {
        self.left.within(within, now)
    }
}

/// Totals of what the mover did, pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    pub demoted: u64,
    pub promoted: u64,
    /// Came back to memory soon after they went down.
    pub ping_pong: u64,
    /// Made into huge pages again.
    pub collapsed: u64,
    /// In huge pages before a step and not after it, whoever chose them.
    pub huge_split: u64,
}

/// A step that waits for the mover, or is with it.
#[derive(Debug)]
pub struct Queued {
    pub step: Step,
    /// When it was decided.
    pub planned: Seconds,
    /// The operator's request it is part of.
    pub ticket: Option<u64>,
    /// Pages that leave the first tier by it, as of when it was queued.
    leaving: u64,
}

impl ManagedVm {
    /// Queues a step for the mover, in batches.
    pub fn enqueue(&mut self, step: &Step, planned: Seconds, ticket: Option<u64>) -> usize {
        // Private and shared memory take different paths.
        let layout = self.pages.layout();
        let shared = |page: &PageIndex| layout.locate(*page).is_some_and(|(_, shared)| shared);
        let (mut shared, mut private): (Vec<_>, Vec<_>) = step.pages.iter().copied().partition(shared);
        if self.prefetch.in_tape_order {
            let lead = |page| match self.pages.block_of(page).huge {
                true => page - page % BLOCK_PAGES,
                false => page,
            };
            [&mut shared, &mut private].into_iter().for_each(|pages| self.prefetch.tape.sort(pages, lead));
        }
        let batches: Vec<_> = private.chunks(BATCH_PAGES).chain(shared.chunks(BATCH_PAGES)).collect();
        let count = batches.len();
        let goes_down = matches!(step.action, Action::Place { to } if to > TierId(0));
        let leaves = |page: &&PageIndex| goes_down && self.pages.get(**page).place() == Place::In(TierId(0));
        self.moves.queue.extend(batches.into_iter().map(|pages| Queued {
            step: Step { pages: pages.to_vec(), ..step.clone() },
            planned,
            ticket,
            leaving: pages.iter().filter(leaves).count() as u64,
        }));
        count
    }

    /// Pages of the first tier that are on their way to a lower one.
    pub fn leaving_pages(&self) -> u64 {
        let queued: u64 = self.moves.waiting().map(|queued| queued.leaving).sum();
        queued + self.asked.leaving() / PAGE_BYTES
    }

    /// The next batch for the mover, after a last look: what was accessed since it was planned stays.
    pub fn next_batch(&mut self, now: Seconds) -> Option<Step> {
        if self.moves.in_flight.is_some() {
            return None;
        }
        while let Some(mut queued) = self.moves.queue.pop_front() {
            let upwards = matches!(queued.step.reason, Reason::AccessedThere | Reason::WereHuge);
            if queued.ticket.is_none() && !upwards {
                let age = now.0.wrapping_sub(queued.planned.0);
                let still_idle = |page: &PageIndex| {
                    let entry = self.pages.get(*page);
                    entry.idle(now) >= age && !entry.staged()
                };
                let blocks = queued.step.pages.chunk_by(|a, b| a / BLOCK_PAGES == b / BLOCK_PAGES);
                let keep = |block: &[PageIndex]| -> Vec<PageIndex> {
                    // A huge page goes as a whole or not at all.
                    let whole = self.pages.block_of(block[0]).huge;
                    if whole && !block.iter().all(still_idle) {
                        return Vec::new();
                    }
                    block.iter().copied().filter(still_idle).collect()
                };
                queued.step.pages = blocks.flat_map(keep).collect();
            }
            if !queued.step.pages.is_empty() || queued.ticket.is_some() {
                let step = queued.step.clone();
                self.moves.in_flight = Some(queued);
                return Some(step);
            }
        }
        None
    }

    /// Drops what was planned into a tier; what an operator asked for stays.
    pub fn forget_plans_for(&mut self, to: TierId) {
        let (stay, go): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.moves.queue)
            .into_iter()
            .partition(|queued| queued.ticket.is_some() || queued.step.action != Action::Place { to });
        self.moves.queue = stay;
        for queued in go.iter().filter(|queued| queued.step.reason == Reason::MayBeTouched) {
            queued.step.pages.iter().for_each(|page| self.prefetch.stages.failed(*page));
        }
    }
}
