//! The order in which the VMs of one tenant read an image, and what of it should be read ahead.
//!
//! In: extents that a VM had read from the disk. Out: the extents that came next the last time, a window ahead.
//!
//! What is in the page cache is read unseen. So of what came next one extent in [`HELD_BACK`] is left alone: that the
//! VM has it read tells how far it is, and that the rest is likely to be used. While the tape is not trusted all
//! is left alone and only compared. For the same reason the tape is not written anew while it is trusted.
//!
//! # Limits
//! Of a sparse image only as many extents are remembered as are allocated: one that reads holes forgets the rest
//! sooner. Where VMs read an image at the same time their orders are mixed on its tape.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use super::{Position, Tape};
use crate::sys::Monotonic;
use crate::track::VmId;

/// An extent's number in its image.
pub type Extent = u32;

/// Of so many extents that come next one is held back.
const HELD_BACK: u64 = 16;
/// Held-back extents that are not read by then were not right.
const DEADLINE: Duration = Duration::from_secs(10);
/// Extents that are compared at a time while the tape is not trusted.
const COMPARED: usize = 64;
/// Extents on the tape by which a VM that goes on may seem to go back: several reads are under way at a time.
const BACK_MOST: u64 = 16;
const WINDOW: Range<u32> = 64..1024;
/// Extents that are remembered in any case: not all file systems tell at once what is allocated.
const FEW: u32 = 1024;
/// What is judged at a time.
const EPISODE: u32 = 8;
/// Of what was compared at first.
const PROOF: u32 = 16;

/// What is known of how right the tape is.
#[derive(Clone, Copy, Debug)]
struct Trust {
    right: u32,
    ended: u32,
    /// Since the window was judged last.
    right_lately: u32,
    ended_lately: u32,
    window: u32,
}

impl Trust {
    fn end(&mut self, right: bool) {
        self.right += u32::from(right);
        self.ended += 1;
        self.right_lately += u32::from(right);
        self.ended_lately += 1;
        if self.ended_lately < EPISODE {
            return;
        }
        let share = f64::from(self.right_lately) / f64::from(self.ended_lately);
        if share >= 0.8 {
            self.window = (self.window * 2).min(WINDOW.end);
        } else if share < 0.5 {
            self.window = (self.window / 2).max(WINDOW.start);
        }
        (self.right_lately, self.ended_lately) = (0, 0);
        if self.ended >= 2 * PROOF {
            (self.right, self.ended) = (self.right / 2, self.ended / 2);
        }
    }

    /// The mean of a Beta distribution that began even.
    fn confidence(&self) -> f64 {
        (f64::from(self.right) + 1.0) / (f64::from(self.ended) + 2.0)
    }

    fn is_trusted(&self, threshold: f64) -> bool {
        self.ended >= PROOF && self.confidence() >= threshold
    }
}

/// The tape of one image.
#[derive(Clone, Debug)]
pub struct ImageTape {
    tape: Tape,
    trust: Trust,
    /// Where each VM is, and up to where the tape was followed for it.
    followed: BTreeMap<VmId, (Position, Position)>,
    /// Extents that are held back, and since when.
    held: HashMap<Extent, Monotonic>,
    held_order: VecDeque<(Monotonic, Extent)>,
    /// Extents that came next so far.
    predicted: u64,
    /// Up to where it is written down.
    pub kept: Position,
}

impl ImageTape {
    /// The tape of an image of so many extents, of which as many are `allocated`: no more are remembered, or [`FEW`].
    /// This was read in this order before.
    pub fn new(extents: u32, allocated: u32, before: impl IntoIterator<Item = Extent>) -> Self {
        let mut tape = Tape::new(allocated.max(FEW).min(extents));
        before.into_iter().filter(|extent| *extent < extents).for_each(|extent| {
            tape.record(extent, None);
        });
        let trust = Trust { right: 0, ended: 0, right_lately: 0, ended_lately: 0, window: WINDOW.start };
        let kept = tape.end();
        Self {
            tape,
            trust,
            followed: BTreeMap::new(),
            held: HashMap::new(),
            held_order: VecDeque::new(),
            predicted: 0,
            kept,
        }
    }

    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Probability that what comes next on the tape is read.
    pub fn confidence(&self) -> f64 {
        self.trust.confidence()
    }

    /// How many extents ahead are read.
    pub fn window(&self) -> u32 {
        self.trust.window
    }

    /// `vm` had this extent read from the disk. Returns what to read ahead now, in the order of the tape.
    pub fn read(&mut self, vm: VmId, extent: Extent, threshold: f64, now: Monotonic) -> Vec<Extent> {
        self.expire(now);
        if self.held.remove(&extent).is_some() {
            self.trust.end(true);
        }
        let Some(place) = self.tape.find(extent) else {
            self.tape.record(extent, None);
            self.followed.remove(&vm);
            return Vec::new();
        };
        let end = place.plus(1 + self.trust.window).min(self.tape.end());
        let first = place.plus(1);
        // Further back, or further ahead than the window reaches: it has jumped.
        let goes_on = |(at, until): &(Position, Position)| {
            at.since(place) <= BACK_MOST && (first..=end).contains(until)
        };
        let until = self.followed.get(&vm).copied().filter(goes_on).map_or(first, |(_, until)| until);
        let next: Vec<_> = self.tape.part(until..end).map(|(_, extent, _)| extent).collect();
        if !self.trust.is_trusted(threshold) {
            // Should it not be right, this will be the order.
            self.tape.record(extent, None);
            // What is not compared now is so later.
            next.into_iter().for_each(|extent| self.hold(extent, COMPARED, now));
            return Vec::new();
        }
        self.followed.insert(vm, (place, end));
        let mut ahead = Vec::new();
        for extent in next {
            self.predicted += 1;
            if self.predicted.is_multiple_of(HELD_BACK) {
                self.hold(extent, usize::MAX, now);
            } else {
                // It may have been compared until now.
                self.held.remove(&extent);
                ahead.push(extent);
            }
        }
        ahead
    }

    /// A VM has gone.
    pub fn forget(&mut self, vm: VmId) {
        self.followed.remove(&vm);
    }

    fn hold(&mut self, extent: Extent, most: usize, now: Monotonic) {
        if self.held.len() < most && self.held.insert(extent, now).is_none() {
            self.held_order.push_back((now, extent));
        }
    }

    fn expire(&mut self, now: Monotonic) {
        while let Some((since, extent)) =
            self.held_order.pop_front_if(|(since, _)| now.since(*since) >= DEADLINE)
        {
            if self.held.get(&extent) == Some(&since) {
                self.held.remove(&extent);
                self.trust.end(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: VmId = VmId(1);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    /// Extents 0 to 999 in an order without neighbours.
    fn order() -> impl Iterator<Item = Extent> {
        (0..1000u32).map(|number| number * 7 % 1000)
    }

    /// A VM reads these, 1 ms each, and not what is in the page cache. Returns how many it waited for, and what
    /// was read ahead in vain.
    fn walk(tape: &mut ImageTape, extents: impl Iterator<Item = Extent>, begin: u64) -> (usize, usize) {
        let mut cached = std::collections::HashSet::new();
        let (mut waited, mut used) = (0, 0);
        for (ms, extent) in (begin..).zip(extents) {
            if cached.contains(&extent) {
                used += 1;
            } else {
                waited += 1;
                cached.extend(tape.read(VM, extent, 0.5, at(ms)));
            }
        }
        (waited, cached.len() - used)
    }

    #[test]
    fn what_was_read_before_is_read_ahead_but_for_a_few_extents() {
        let mut tape = ImageTape::new(1000, 1000, []);
        assert_eq!(walk(&mut tape, order(), 0), (1000, 0), "nothing is known");
        for pass in 1..4 {
            let (waited, in_vain) = walk(&mut tape, order(), pass * 100_000);
            assert!(waited < 1000 / 10 && in_vain < 20, "{pass}: {waited} {in_vain}");
            assert!(tape.confidence() > 0.9);
        }
        assert_eq!(tape.tape().len(), 1000, "what is followed is not written anew");
    }

    #[test]
    fn another_order_is_given_up_for_the_one_that_is_read_now() {
        let mut tape = ImageTape::new(10_000, 10_000, (0..10_000).map(|number| number * 7 % 10_000));
        walk(&mut tape, (0..2000).map(|number| number * 7 % 10_000), 0);
        assert!(tape.confidence() > 0.9);
        // Extents far from each other on the tape.
        let other = || (0..300).map(|number| number * 1001 % 10_000);
        let passes: Vec<_> =
            [3_000, 100_000, 200_000, 300_000].map(|begin| walk(&mut tape, other(), begin)).into();
        assert!(passes[0].1 > 0, "the old order is followed for a while");
        assert_eq!(passes[1].1, 0, "and not any more: {passes:?}");
        assert!(passes[3].0 < 100, "{passes:?}");
    }

    #[test]
    fn a_sparse_image_costs_what_it_holds_and_not_what_it_is_long() {
        let last = (16u64 << 40 >> 16) as u32 - 1;
        let mut tape = ImageTape::new(last + 1, 0, []);
        for extent in 0..100_000 {
            tape.read(VM, last - extent, 0.5, at(extent.into()));
        }
        assert_eq!(tape.tape().len(), FEW as usize);
        assert!(tape.tape().bytes() < 64 << 10, "{}", tape.tape().bytes());
    }

    #[test]
    fn a_tape_that_was_kept_is_compared_before_it_is_trusted() {
        let mut tape = ImageTape::new(1000, 1000, order().chain([5000]));
        let ahead: Vec<_> = order().take(16).map(|extent| tape.read(VM, extent, 0.5, at(0)).len()).collect();
        assert_eq!(ahead, [0; 16]);
        assert!(walk(&mut tape, order().skip(16), 1).0 < 100);
        assert_eq!(tape.tape().len(), 1000);
    }
}
