//! What a test guest does with its memory, and what it answers. The one place where both are described, shared by the
//! guest that does it and the host that checks it.
//!
//! The host writes a [`Pattern`] on the guest's kernel command line; the guest's init reads it there. A guest
//! 1. maps `mem_mib` of anonymous memory and fills every page with content that follows from seed, page and version (or
//!    maps the file of an image, which holds such pages, or opens a disk that does), and prints `tg: ready`;
//! 2. does one round of [`Pattern::touches`] after another: freely, or one for each line `go` on its console. Each
//!    touch compares the whole page, one in `write_one_in` writes a new version;
//! 3. at a round's end prints `tg: phase ` and a [`PhaseResult`]. Running freely it prints at most one a second: rounds
//!    that end sooner are told by the next line;
//! 4. on the line `finish` compares every page once and prints `tg: result ` and a [`GuestResult`]; on `poweroff`
//!    switches off.
//!
//! A page that is not what it should be is printed as `tg: bad page N`.
//!
//! In: a pattern. Out: its words for the command line, and which pages are touched in which order. When that happens is
//! the guest's part: nothing here knows the time.

mod cmdline;
mod report;
mod touches;
mod zipf;

pub use report::{GuestResult, PhaseResult, TouchNs};
pub use touches::{Touch, Touches};

use anyhow::{Result, ensure};

/// Printed when all pages are filled.
pub const READY: &str = "tg: ready";
/// Printed before the JSON of a [`PhaseResult`].
pub const PHASE: &str = "tg: phase ";
/// Printed before the JSON of a [`GuestResult`].
pub const RESULT: &str = "tg: result ";
/// Bytes of a page of the guest.
pub const PAGE_BYTES: usize = 4096;
/// The file of an image in the guest.
pub const IMAGE_PATH: &str = "image";
/// The guest's disk.
pub const DISK_PATH: &str = "/dev/vda";
/// The folder of modules in the guest, named so that they sort in the order in which they are to be loaded.
pub const MODULES_PATH: &str = "modules";

const PAGES_A_MIB: usize = (1 << 20) / PAGE_BYTES;

/// The memory behaviour of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// What content and choices follow from: guests of equal seed hold equal pages.
    pub seed: u64,
    /// All memory of the pattern. The guest's own system takes about 60 MiB more.
    pub mem_mib: usize,
    /// One touch in this many writes; 0 is never, 1 is always.
    pub write_one_in: u64,
    /// At most this many touches a second; 0 is as fast as possible.
    pub touches_per_s: u64,
    /// Touches of one round; 0 is a walk: as many as the set has pages.
    pub round_touches: u64,
    /// The guest touches nothing until it is told `go`, which is one round.
    pub rounds_on_command: bool,
    /// The memory is a file of an image with this seed, read only: guests of one image seed have booted the same image.
    pub image_seed: Option<u64>,
    /// That image is a disk of the guest, and each touch reads a page of it past the guest's own page cache.
    pub on_disk: bool,
    /// A walk has another order each time, which follows from the one before: the same in leader and followers.
    pub reorder: bool,
    /// Which pages are touched in which order.
    pub access: Access,
}

/// Which pages are touched in which order. A `set_mib` is the first part of the memory; what is not in it stays cold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Random pages of the hot set (the first `hot_mib`), gently and all the time; and every `loop_every_ms` all pages
    /// of the loop set (the next `loop_mib`) in a pseudo-random order that is the same each time. It has a pace of its
    /// own.
    HotAndLoop {
        hot_mib: usize,
        loop_mib: usize,
        /// From the start of one walk to the next.
        loop_every_ms: u64,
    },
    /// The page of rank r is touched with a probability of r^-skew; ranks are spread over the set by the seed.
    Zipf {
        set_mib: usize,
        /// 100 is a skew of 1.
        skew_percent: u64,
    },
    /// Every page of the set is as likely.
    Uniform { set_mib: usize },
    /// In the order of the pages, again and again.
    Sequential { set_mib: usize },
    /// Every n-th page from page 0 on, then every n-th from page 1 on, and so on: a walk visits each page once.
    Stride { set_mib: usize, stride_pages: usize },
    /// Random pages of one part of the memory; after `every_touches` it jumps to another part.
    PhaseChange { part_mib: usize, every_touches: u64 },
    /// A round, sequential, every so often, and nothing in between.
    Periodic {
        set_mib: usize,
        /// From the start of one round to the next; the first begins that long after the guest is ready.
        every_ms: u64,
    },
    /// Memory of all ages: of a million touches `warm_ppm` are of the warm set, `tail_ppm` of the tail, the
    /// others of the hot set, at random places of each. Hot set, warm set and tail lie one behind the other; what is
    /// behind them is never touched again.
    Ages { hot_mib: usize, warm_mib: usize, tail_mib: usize, warm_ppm: u64, tail_ppm: u64 },
    /// Nothing at all.
    Idle,
    /// The pages of the set in the order that follows from `order_seed`, the same in each walk. At `overlap_percent` of
    /// the places it is that page, at the others a page of the guest's own, behind the set; its seed decides where.
    /// With 100 it is the leader. The set's pages hold what follows from the order's seed: the same in leader and
    /// followers.
    Follow { set_mib: usize, order_seed: u64, overlap_percent: u64 },
}

impl Default for Pattern {
    fn default() -> Self {
        Self {
            seed: 7,
            mem_mib: 160,
            write_one_in: 8,
            touches_per_s: 0,
            round_touches: 0,
            rounds_on_command: false,
            image_seed: None,
            on_disk: false,
            reorder: false,
            access: Access::HotAndLoop { hot_mib: 16, loop_mib: 48, loop_every_ms: 12_000 },
        }
    }
}

impl Pattern {
    /// The same on an image of this size: a file that [`crate::guest::Builder::start`] puts into the guest's initramfs.
    /// The guest unpacks it into its page cache, for which it needs about 2.5 times its size, and 60 MiB, of RAM.
    #[must_use]
    pub fn on_image(self, mib: usize, image_seed: u64) -> Self {
        Self { mem_mib: mib, image_seed: Some(image_seed), write_one_in: 0, ..self }
    }

    /// The same on a disk of this size: a file with such pages, given to [`crate::guest::Builder::disk`]. It takes no
    /// RAM.
    #[must_use]
    pub fn on_disk(self, mib: usize, image_seed: u64) -> Self {
        Self { on_disk: true, ..self.on_image(mib, image_seed) }
    }

    /// All pages of the pattern.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.mem_mib * PAGES_A_MIB
    }

    /// What the content of a page follows from, beside its number and version.
    #[must_use]
    pub fn content_seed(&self, page: usize) -> u64 {
        match (self.image_seed, self.access) {
            (Some(image_seed), _) => image_seed,
            (None, Access::Follow { set_mib, order_seed, .. }) if page < set_mib * PAGES_A_MIB => order_seed,
            _ => self.seed,
        }
    }

    /// Touches of one round: round n, counted from 0, is `touches().skip(n * round_len()).take(round_len())`.
    #[must_use]
    pub fn round_len(&self) -> u64 {
        match (self.access, self.round_touches) {
            (Access::Idle, _) => 0,
            (Access::PhaseChange { every_touches, .. }, 0) => every_touches,
            (_, 0) => (self.access.set_mib() * PAGES_A_MIB) as u64,
            (_, touches) => touches,
        }
    }

    /// From the start of one round to the next where they run freely; 0 is one after another.
    #[must_use]
    pub fn round_every_ms(&self) -> u64 {
        match self.access {
            Access::HotAndLoop { loop_every_ms, .. } => loop_every_ms,
            Access::Periodic { every_ms, .. } => every_ms,
            _ => 0,
        }
    }

    /// Whether it can be done.
    ///
    /// # Errors
    /// The first field that contradicts another.
    pub fn check(&self) -> Result<()> {
        ensure!(self.mem_mib > 0, "tg.mem_mib is 0: a pattern needs memory");
        ensure!(self.mem_mib <= 1 << 20, "tg.mem_mib is more than a TiB");
        ensure!(
            self.image_seed.is_none() || self.write_one_in == 0,
            "an image is only read: set tg.write_one_in to 0"
        );
        ensure!(
            !self.on_disk || self.image_seed.is_some(),
            "tg.on_disk: a disk holds an image, set tg.image_seed"
        );
        let set_mib = self.access.set_mib();
        match self.access {
            Access::HotAndLoop { hot_mib, loop_mib, .. } => {
                ensure!(
                    hot_mib.checked_add(loop_mib).is_some_and(|sets| sets <= self.mem_mib),
                    "hot set and loop set are larger than the memory: {self:?}"
                );
                ensure!(self.touches_per_s == 0, "tg.touches_per_s: hot_and_loop has a pace of its own");
                return Ok(());
            }
            Access::Idle => return Ok(()),
            _ => ensure!(
                (1..=self.mem_mib).contains(&set_mib),
                "the set has to be 1 to {} MiB, not {set_mib}: {self:?}",
                self.mem_mib
            ),
        }
        match self.access {
            Access::Zipf { skew_percent, .. } => {
                ensure!(skew_percent <= 1000, "tg.skew_percent is more than 1000, a skew of 10");
            }
            Access::Stride { stride_pages, .. } => ensure!(
                (1..=set_mib * PAGES_A_MIB).contains(&stride_pages),
                "tg.stride_pages has to be 1 to the {} pages of the set",
                set_mib * PAGES_A_MIB
            ),
            Access::PhaseChange { part_mib, every_touches } => {
                ensure!(
                    part_mib <= self.mem_mib / 2,
                    "tg.part_mib: the memory has to hold two parts or more"
                );
                ensure!(every_touches > 0, "tg.every_touches is 0");
            }
            Access::Ages { hot_mib, warm_mib, tail_mib, warm_ppm, tail_ppm } => {
                ensure!(
                    hot_mib.min(warm_mib).min(tail_mib) > 0,
                    "hot set, warm set and tail have to be 1 MiB or more"
                );
                ensure!(
                    warm_ppm.checked_add(tail_ppm).is_some_and(|both| both <= 1_000_000),
                    "tg.warm_ppm and tg.tail_ppm are more than a million together"
                );
            }
            Access::Follow { overlap_percent, .. } => {
                ensure!(overlap_percent <= 100, "tg.overlap_percent is more than 100");
                let own = touches::own_places(set_mib * PAGES_A_MIB, overlap_percent);
                ensure!(
                    own <= self.pages() - set_mib * PAGES_A_MIB,
                    "{own} pages of its own do not fit behind the set: tg.mem_mib has to be {} or more",
                    set_mib + own.div_ceil(PAGES_A_MIB)
                );
            }
            _ => {}
        }
        Ok(())
    }
}

impl Access {
    /// As it is called on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::HotAndLoop { .. } => "hot_and_loop",
            Self::Zipf { .. } => "zipf",
            Self::Uniform { .. } => "uniform",
            Self::Sequential { .. } => "sequential",
            Self::Stride { .. } => "stride",
            Self::PhaseChange { .. } => "phase_change",
            Self::Periodic { .. } => "periodic",
            Self::Ages { .. } => "ages",
            Self::Idle => "idle",
            Self::Follow { .. } => "follow",
        }
    }

    /// What a round walks.
    fn set_mib(&self) -> usize {
        match *self {
            Self::HotAndLoop { loop_mib, .. } => loop_mib,
            Self::PhaseChange { part_mib, .. } => part_mib,
            Self::Zipf { set_mib, .. }
            | Self::Uniform { set_mib }
            | Self::Sequential { set_mib }
            | Self::Stride { set_mib, .. }
            | Self::Periodic { set_mib, .. }
            | Self::Follow { set_mib, .. } => set_mib,
            Self::Ages { hot_mib, warm_mib, tail_mib, .. } => hot_mib + warm_mib + tail_mib,
            Self::Idle => 0,
        }
    }
}
