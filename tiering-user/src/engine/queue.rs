//! Steps of a VM that wait for the mover, and how much memory leaves the first tier by them and by orders to the
//! kernel.
//!
//! In: steps, as the policy planned them or an operator asked for them. Out: one batch after the other, without the
//! pages that were accessed since they were planned.

use std::collections::VecDeque;

use super::decisions::Decisions;
use super::managed_vm::{LATELY, ManagedVm};
use crate::policy::{Action, Reason, Step};
use crate::reclaim::Recent;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{BLOCK_PAGES, PageIndex, Place, Seconds};
use crate::tiers::TierId;

/// Pages of one job: 32 MiB, so that the last look before each is recent.
const BATCH_PAGES: usize = 8192;

/// Moves of one VM: those that wait, the one under way, and what became of former ones.
#[derive(Debug)]
pub(super) struct Moves {
    pub queue: VecDeque<Queued>,
    /// With the mover now.
    pub in_flight: Option<Queued>,
    /// When a move last began or ended: a sweep that began before is out of date.
    pub moved_at: Monotonic,
    /// Why the last look before a move refused it, if it did.
    pub refused_now: Option<String>,
    /// Planning pauses until then.
    pub rest_until: Monotonic,
    pub decisions: Decisions,
    pub totals: Moved,
    /// Pages that the mover took out of memory in the last seconds.
    pub lately: Recent<u64>,
}

impl Moves {
    /// Of a VM with so many pages.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            queue: VecDeque::new(),
            in_flight: None,
            moved_at: Monotonic::default(),
            refused_now: None,
            rest_until: Monotonic::default(),
            decisions: Decisions::new(pages),
            totals: Moved::default(),
            lately: Recent::new(LATELY),
        }
    }
}

/// Totals of what the mover did, pages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
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
pub(super) struct Queued {
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
    pub(super) fn enqueue(&mut self, step: &Step, planned: Seconds, ticket: Option<u64>) -> usize {
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
    pub(super) fn leaving_pages(&self) -> u64 {
        let queued: u64 =
            self.moves.queue.iter().chain(&self.moves.in_flight).map(|queued| queued.leaving).sum();
        queued + self.asked.leaving() / PAGE_BYTES
    }

    /// The next batch for the mover, after a last look: what was accessed since it was planned stays.
    pub(super) fn next_batch(&mut self, now: Seconds) -> Option<Step> {
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
    pub(super) fn forget_plans_for(&mut self, to: TierId) {
        let (stay, go): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.moves.queue)
            .into_iter()
            .partition(|queued| queued.ticket.is_some() || queued.step.action != Action::Place { to });
        self.moves.queue = stay;
        for queued in go.iter().filter(|queued| queued.step.reason == Reason::MayBeTouched) {
            queued.step.pages.iter().for_each(|page| self.prefetch.stages.failed(*page));
        }
    }
}
