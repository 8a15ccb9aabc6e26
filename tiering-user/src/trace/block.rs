//! Events as bytes: one block of them after another.
//!
//! A block is its length and the XXH3 of what follows (4 and 8 bytes, little-endian), and then its events. An event is
//! a byte that says which one it is, the microseconds since the one before (since zero in the first), and its fields,
//! as variable-length integers. Accesses, of which there are most, give their page as the difference to that of the
//! access before to the same VM, and their VM only where it is another one.

use std::collections::BTreeMap;
use std::time::Duration;

use integer_encoding::VarInt;
use twox_hash::XxHash3_64;

use super::{Appeared, Event, Timed};
use crate::sys::Monotonic;
use crate::tiermap::{PageRun, Place};
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::Usage;

/// Version of the format.
pub(super) const VERSION: u8 = 2;
/// What a trace begins with.
pub const MAGIC: [u8; 8] = [b'T', b'I', b'E', b'R', b'T', b'R', b'C', VERSION];
/// A block is ended when it has so many bytes.
pub const BLOCK_BYTES: usize = 64 << 10;
/// No block is longer, with room for the event that ends it.
pub(super) const MOST_BYTES: usize = 2 * BLOCK_BYTES;
/// Longest name of a VM that is kept.
const NAME_BYTES: usize = 256;

/// The lowest bit of the byte that begins an event says that it is an access; of an access these follow.
const ACCESS: u8 = 1;
const WRITE: u8 = 1 << 1;
const SAME_MACHINE: u8 = 1 << 2;
const WEIGHT_SHIFT: u32 = 3;
/// Of all others which one it is.
const APPEARED: u8 = 1 << 1;
const GONE: u8 = 2 << 1;
const FOUND: u8 = 3 << 1;
const MOVED: u8 = 4 << 1;
const ARMED: u8 = 5 << 1;
const LOST: u8 = 6 << 1;
const USED: u8 = 7 << 1;

const UNTOUCHED: u8 = 0;
const OTHER_SWAP: u8 = 1;
const FIRST_TIER: u8 = 2;

/// A block that is being filled.
#[derive(Debug, Default)]
pub struct Block {
    bytes: Vec<u8>,
    accesses: u64,
    last: Last,
}

/// What the events of a block are told against.
#[derive(Debug, Default)]
struct Last {
    us: u64,
    vm: u32,
    page: BTreeMap<u32, u32>,
}

impl Block {
    /// Whether it is time to [`take`](Self::take) it.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BLOCK_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Accesses in it.
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// Appends an event. Time never goes back: what is earlier than the event before counts as happened with it.
    pub fn push(&mut self, time: Monotonic, event: &Event) {
        let us = (time.0 / 1000).max(self.last.us);
        let since = us - self.last.us;
        self.last.us = us;
        match event {
            Event::Accessed { vm, page, write, weight_log2 } => {
                let same = vm.0 == self.last.vm;
                let flags = ACCESS | if *write { WRITE } else { 0 } | if same { SAME_MACHINE } else { 0 };
                self.bytes.push(flags | weight_log2.min(&31) << WEIGHT_SHIFT);
                self.number(since);
                if !same {
                    self.number(vm.0);
                    self.last.vm = vm.0;
                }
                let before = self.last.page.insert(vm.0, *page).unwrap_or(0);
                self.number(i64::from(*page) - i64::from(before));
                self.accesses += 1;
            }
            Event::Appeared(Appeared { vm, name, pages, priority, node_tiers }) => {
                self.begin(APPEARED, since);
                self.number(vm.0);
                self.number(*pages);
                self.bytes.extend([*priority, *node_tiers]);
                let name = &name.as_bytes()[..name.floor_char_boundary(NAME_BYTES)];
                self.number(name.len() as u64);
                self.bytes.extend(name);
            }
            Event::Gone(vm) => {
                self.begin(GONE, since);
                self.number(vm.0);
            }
            Event::Found { vm, run, place } => self.placed(FOUND, since, *vm, *run, *place),
            Event::Moved { vm, run, place } => self.placed(MOVED, since, *vm, *run, *place),
            Event::Armed(vm) => {
                self.begin(ARMED, since);
                self.number(vm.0);
            }
            Event::Used { vm, usage } => {
                self.begin(USED, since);
                self.number(vm.0);
                self.bytes.push(usage.is_some().into());
                for number in usage.iter().flat_map(usage_numbers) {
                    self.number(number);
                }
            }
            Event::Lost(accesses) => {
                self.begin(LOST, since);
                self.number(*accesses);
            }
        }
    }

    /// Its bytes, with length and checksum; it is empty then.
    pub fn take(&mut self) -> Vec<u8> {
        let events = std::mem::take(self).bytes;
        let length = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(XxHash3_64::oneshot(&events).to_le_bytes());
        bytes.extend(events);
        bytes
    }

    fn begin(&mut self, kind: u8, since: u64) {
        self.bytes.push(kind);
        self.number(since);
    }

    fn placed(&mut self, kind: u8, since: u64, vm: VmId, run: PageRun, place: Place) {
        self.begin(kind, since);
        self.number(vm.0);
        self.number(run.first);
        self.number(run.count);
        self.bytes.push(match place {
            Place::Untouched => UNTOUCHED,
            Place::OtherSwap => OTHER_SWAP,
            Place::In(TierId(level)) => level.saturating_add(FIRST_TIER),
        });
    }

    fn number(&mut self, number: impl VarInt) {
        let mut bytes = [0; 10];
        let length = number.encode_var(&mut bytes);
        self.bytes.extend_from_slice(&bytes[..length]);
    }
}

/// In the order in which they are written; processor time in microseconds.
fn usage_numbers(usage: &Usage) -> [u64; 6] {
    let Usage { cpu, read_bytes, written_bytes, anonymous_bytes, file_bytes, shared_bytes } = *usage;
    let us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
    [us, read_bytes, written_bytes, anonymous_bytes, file_bytes, shared_bytes]
}

/// The events of a block; none if they are not what [`Block`] writes.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<Timed>> {
    let mut bytes = Bytes(bytes);
    let mut last = Last::default();
    let mut events = Vec::new();
    while let Some(first) = bytes.byte() {
        last.us = last.us.checked_add(bytes.number()?)?;
        let event = if first & ACCESS != 0 {
            if first & SAME_MACHINE == 0 {
                last.vm = bytes.number()?;
            }
            let page = last.page.entry(last.vm).or_default();
            *page = u32::try_from(i64::from(*page).checked_add(bytes.number::<i64>()?)?).ok()?;
            let (write, weight_log2) = (first & WRITE != 0, first >> WEIGHT_SHIFT);
            Event::Accessed { vm: VmId(last.vm), page: *page, write, weight_log2 }
        } else {
            match first {
                APPEARED => {
                    let (vm, pages) = (VmId(bytes.number()?), bytes.number()?);
                    let (priority, node_tiers) = (bytes.byte()?, bytes.byte()?);
                    let length = usize::try_from(bytes.number::<u64>()?).ok()?;
                    let name = str::from_utf8(bytes.next(length)?).ok()?.to_owned();
                    Event::Appeared(Appeared { vm, name, pages, priority, node_tiers })
                }
                GONE => Event::Gone(VmId(bytes.number()?)),
                FOUND => {
                    let (vm, run, place) = bytes.placed()?;
                    Event::Found { vm, run, place }
                }
                MOVED => {
                    let (vm, run, place) = bytes.placed()?;
                    Event::Moved { vm, run, place }
                }
                ARMED => Event::Armed(VmId(bytes.number()?)),
                USED => Event::Used { vm: VmId(bytes.number()?), usage: bytes.usage()? },
                LOST => Event::Lost(bytes.number()?),
                _ => return None,
            }
        };
        events.push(Timed { time: Monotonic(last.us.checked_mul(1000)?), event });
    }
    Some(events)
}

/// What is left to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    fn next(&mut self, count: usize) -> Option<&'a [u8]> {
        self.0.split_off(..count)
    }

    fn number<T: VarInt>(&mut self) -> Option<T> {
        let (number, length) = T::decode_var(self.0)?;
        self.next(length)?;
        Some(number)
    }

    /// None where it is broken, and none within where there is none.
    fn usage(&mut self) -> Option<Option<Usage>> {
        if self.byte()? == 0 {
            return Some(None);
        }
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = self.number()?;
        }
        let [us, read_bytes, written_bytes, anonymous_bytes, file_bytes, shared_bytes] = numbers;
        let cpu = Duration::from_micros(us);
        Some(Some(Usage { cpu, read_bytes, written_bytes, anonymous_bytes, file_bytes, shared_bytes }))
    }

    fn placed(&mut self) -> Option<(VmId, PageRun, Place)> {
        let (vm, first, count): (u32, u32, u32) = (self.number()?, self.number()?, self.number()?);
        first.checked_add(count)?;
        let place = match self.byte()? {
            UNTOUCHED => Place::Untouched,
            OTHER_SWAP => Place::OtherSwap,
            level => Place::In(TierId(level - FIRST_TIER)),
        };
        Some((VmId(vm), PageRun { first, count }, place))
    }
}
