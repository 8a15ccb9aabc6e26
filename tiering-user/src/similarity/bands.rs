//! Which VMs are worth comparing, without comparing all.
//!
//! Locality-sensitive hashing (Broder; Indyk and Motwani): three bins of a sketch are a band, and VMs of which a
//! band is the same are a pair to compare. With [`BANDS`] bands a Jaccard index of 0.5 is missed once in 600, one of
//! 0.1 is taken once in 20. A band in which both are empty says nothing and is left out; one that is empty in part says
//! more than a full one, so sets of few names are found just as well. A file is a bucket as well.
//!
//! In: the portraits that changed. Out: pairs, of which at least one changed. A band is a sorted list of keys and
//! VMs: to sort it again is cheap where little changed.
//!
//! # Limits
//! Of more than [`MOST_TOGETHER`] VMs in a bucket each is compared with a few only, by their places in the order
//! of ids: with 2 in a band, up to 48 over the bands of a sketch, and with 16 of a file. So of a large family each
//! VM knows some, not all, and not always the best; who they are depends on who was there, and may differ from
//! what a fresh start finds. What is contained in something more than twice as large is found through a file, or by
//! chance.

use super::parts::Seen;
use super::sketch::{BINS, EMPTY, Sketch, mix};
use crate::track::VmId;

const BANDS: usize = 48;
const BINS_A_BAND: usize = 3;
const _: () = assert!(BANDS * BINS_A_BAND <= BINS);
/// Content, places, trail.
const SKETCHES: usize = 3;
/// In a larger bucket not all are compared with all.
const MOST_TOGETHER: usize = 64;
/// With how many others, twice, a VM is compared in a crowded bucket: of a band, and of a file.
const PARTNERS_BAND: u64 = 1;
const PARTNERS_FILE: u64 = 8;
/// In so many bands of a sketch these are other ones.
const CROWD_SEEDS: usize = 24;

/// All buckets.
#[derive(Clone, Debug)]
pub(super) struct Bands {
    bands: Vec<Band>,
    files: Band,
}

impl Default for Bands {
    fn default() -> Self {
        Self { bands: vec![Band::default(); BANDS * SKETCHES], files: Band::default() }
    }
}

impl Bands {
    /// Takes these VMs out. Sorted.
    pub fn remove(&mut self, stale: &[VmId]) {
        let bands = self.bands.iter_mut().chain([&mut self.files]);
        bands.for_each(|band| band.0.retain(|entry| stale.binary_search(&entry.vm()).is_err()));
    }

    /// Puts a VM in; [`settle`](Self::settle) when all are.
    pub fn insert(&mut self, id: VmId, member: &Seen<'_>) {
        let Seen { portrait, seen } = member;
        let sketches: [&Sketch; SKETCHES] = [&portrait.content, &portrait.placed, seen];
        for (bands, sketch) in self.bands.chunks_mut(BANDS).zip(sketches) {
            for (band, bins) in bands.iter_mut().zip(sketch.bins().chunks_exact(BINS_A_BAND)) {
                band.0.extend(key(bins).map(|key| Entry::new(key, id)));
            }
        }
        self.files.0.extend(portrait.files.iter().map(|file| Entry::new((mix(*file) >> 32) as u32, id)));
    }

    /// Makes the buckets ready to be asked.
    pub fn settle(&mut self) {
        // The stable sort sees that most is in order already.
        self.bands.iter_mut().chain([&mut self.files]).for_each(|band| band.0.sort());
        // Two files of one VM may have one key.
        self.files.0.dedup();
    }

    /// The pairs, each once, the smaller id first, of which one is among the changed VMs, which are sorted; and
    /// the number of crowded buckets.
    pub fn pairs(&self, changed: &[VmId]) -> (Vec<(VmId, VmId)>, usize) {
        let mut pairs = Pairs::new(changed);
        for (at, band) in self.bands.iter().enumerate() {
            pairs.take(band, (at % CROWD_SEEDS) as u64, PARTNERS_BAND);
        }
        pairs.take(&self.files, CROWD_SEEDS as u64, PARTNERS_FILE);
        pairs.finish()
    }
}

/// What a band has in its bins, in short. Equal bins have equal keys; the opposite is not sure and need not be.
fn key(bins: &[i32]) -> Option<u32> {
    let all = |key, bin: &i32| mix(key ^ u64::from(bin.cast_unsigned())).wrapping_add(key);
    bins.iter().any(|bin| *bin != EMPTY).then(|| (bins.iter().fold(1, all) >> 32) as u32)
}

/// Keys and VMs, sorted.
#[derive(Clone, Debug, Default)]
struct Band(Vec<Entry>);

/// A key and a VM, in one number because that sorts faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u64);

impl Entry {
    fn new(key: u32, vm: VmId) -> Self {
        Self(u64::from(key) << 32 | u64::from(vm.0))
    }

    fn key(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn vm(self) -> VmId {
        VmId(self.0 as u32)
    }
}

/// Pairs of which most were offered a moment ago.
struct Pairs<'a> {
    changed: &'a [VmId],
    pairs: Vec<u64>,
    /// By hash, the pair of that hash which came last. Alike VMs share dozens of bands: to sort out all of that
    /// would take longer than anything else here.
    lately: Vec<u64>,
    /// Of one bucket, who changed.
    flags: Vec<bool>,
    crowded: usize,
}

/// Of `lately`, entries for each VM that changed: several times its usual pairs, so that few have the same hash.
const LATELY: usize = 128;
const LATELY_MOST: usize = 1 << 20;

impl<'a> Pairs<'a> {
    fn new(changed: &'a [VmId]) -> Self {
        let lately = vec![0; (changed.len() * LATELY).next_power_of_two().min(LATELY_MOST)];
        Self { changed, pairs: Vec::new(), lately, flags: Vec::new(), crowded: 0 }
    }

    /// The pairs of a band, or as many as there should be of a crowded bucket.
    fn take(&mut self, band: &Band, seed: u64, partners: u64) {
        for bucket in band.0.chunk_by(|a, b| a.key() == b.key()).filter(|bucket| bucket.len() > 1) {
            let mut flags = std::mem::take(&mut self.flags);
            flags.clear();
            flags.extend(bucket.iter().map(|entry| self.changed.binary_search(&entry.vm()).is_ok()));
            if bucket.len() <= MOST_TOGETHER {
                for (at, entry) in bucket.iter().enumerate() {
                    for (other, changed) in bucket[..at].iter().zip(&flags) {
                        if *changed || flags[at] {
                            self.offer(*other, *entry);
                        }
                    }
                }
            } else {
                self.crowded += 1;
                for partner in 0..partners {
                    let apart = 1 + (mix(seed << 32 | partner) % (bucket.len() as u64 - 1)) as usize;
                    for (at, entry) in bucket.iter().enumerate() {
                        let other = (at + apart) % bucket.len();
                        if flags[at] || flags[other] {
                            self.offer((*entry).min(bucket[other]), (*entry).max(bucket[other]));
                        }
                    }
                }
            }
            self.flags = flags;
        }
    }

    fn offer(&mut self, first: Entry, second: Entry) {
        // No VM is a pair with itself, so this is never 0.
        let pair = Entry::new(first.vm().0, second.vm()).0;
        let hash = mix(pair) as usize & (self.lately.len() - 1);
        let lately = &mut self.lately[hash];
        if *lately != pair {
            *lately = pair;
            self.pairs.push(pair);
        }
    }

    fn finish(mut self) -> (Vec<(VmId, VmId)>, usize) {
        self.pairs.sort_unstable();
        self.pairs.dedup();
        let pairs = self.pairs.into_iter().map(|pair| (VmId((pair >> 32) as u32), VmId(pair as u32)));
        (pairs.collect(), self.crowded)
    }
}
