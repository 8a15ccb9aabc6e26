//! A trace, read block by block.

use std::io::{self, ErrorKind, Read};

use twox_hash::XxHash3_64;

use super::block::{MAGIC, MOST_BYTES, VERSION, decode};
use super::{Event, Timed};

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("this is not a trace: it does not begin as `tiering record` begins one")]
    NoTrace,
    #[error(
        "this trace has version {found} of the format, and this program reads version {VERSION}: use the one that recorded it"
    )]
    Version { found: u8 },
    #[error("block {0} is damaged: what comes before it can be replayed from a copy that ends there")]
    Damaged(u64),
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads a trace from its beginning. Memory: one block.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    blocks: u64,
    torn: bool,
}

impl<R: Read> Reader<R> {
    /// # Errors
    /// [`TraceError`] where it is no trace, or not of this version.
    pub fn new(mut source: R) -> Result<Self, TraceError> {
        let mut magic = [0; MAGIC.len()];
        match source.read_exact(&mut magic) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(TraceError::NoTrace),
            read => read?,
        }
        match magic {
            MAGIC => Ok(Self { source, blocks: 0, torn: false }),
            [name @ .., version] if name == MAGIC[..7] => Err(TraceError::Version { found: version }),
            _ => Err(TraceError::NoTrace),
        }
    }

    /// Whether the trace ended within a block: what recorded it was ended by force, or the disk was full.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// The events of the next block; none at the end.
    ///
    /// # Errors
    /// [`TraceError`] for a block that is damaged, or cannot be read.
    pub fn next_block(&mut self) -> Result<Option<Vec<Timed>>, TraceError> {
        let mut head = Vec::with_capacity(12);
        self.source.by_ref().take(12).read_to_end(&mut head)?;
        if head.is_empty() {
            return Ok(None);
        }
        let damaged = TraceError::Damaged(self.blocks + 1);
        let Some((length, hash)) = head.split_first_chunk().and_then(|(length, hash)| {
            Some((u32::from_le_bytes(*length) as usize, u64::from_le_bytes(hash.try_into().ok()?)))
        }) else {
            self.torn = true;
            return Ok(None);
        };
        if length > MOST_BYTES {
            return Err(damaged);
        }
        let mut bytes = Vec::with_capacity(length);
        self.source.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            self.torn = true;
            return Ok(None);
        }
        self.blocks += 1;
        let whole = XxHash3_64::oneshot(&bytes) == hash;
        whole.then(|| decode(&bytes)).flatten().map(Some).ok_or(damaged)
    }

    /// Calls `visit` for each event that is left, in order.
    ///
    /// # Errors
    /// [`TraceError`], as [`next_block`](Self::next_block); all events before are visited.
    pub fn for_each(&mut self, mut visit: impl FnMut(&Timed)) -> Result<(), TraceError> {
        while let Some(events) = self.next_block()? {
            events.iter().for_each(&mut visit);
        }
        Ok(())
    }
}

/// The VM an event is of.
impl Event {
    pub fn vm(&self) -> Option<crate::track::VmId> {
        match self {
            Self::Appeared(appeared) => Some(appeared.vm),
            Self::Gone(vm)
            | Self::Armed(vm)
            | Self::Used { vm, .. }
            | Self::Accessed { vm, .. }
            | Self::Found { vm, .. }
            | Self::Moved { vm, .. } => Some(*vm),
            Self::Lost(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Appeared, Block};
    use super::*;
    use crate::sys::Monotonic;
    use crate::tiermap::{PageRun, Place};
    use crate::tiers::TierId;
    use crate::track::VmId;
    use crate::vm::Usage;
    use proptest::prelude::*;
    use std::time::Duration;

    fn event() -> impl Strategy<Value = Event> {
        let vm = || any::<u32>().prop_map(VmId);
        let place = prop_oneof![
            Just(Place::Untouched),
            Just(Place::OtherSwap),
            (0u8..8).prop_map(|level| Place::In(TierId(level)))
        ];
        let usage = any::<(u32, [u64; 5])>().prop_map(|(ms, bytes)| {
            let [read_bytes, written_bytes, anonymous_bytes, file_bytes, shared_bytes] = bytes;
            let cpu = Duration::from_millis(ms.into());
            Usage { cpu, read_bytes, written_bytes, anonymous_bytes, file_bytes, shared_bytes }
        });
        let run = (0u32..1 << 30, 0u32..1 << 30).prop_map(|(first, count)| PageRun { first, count });
        prop_oneof![
            8 => (vm(), any::<u32>(), any::<bool>(), 0u8..32)
                .prop_map(|(vm, page, write, weight_log2)| Event::Accessed { vm, page, write, weight_log2 }),
            1 => (vm(), "[a-zä]{0,40}", any::<u32>(), 0u8..=100, 1u8..4)
                .prop_map(|(vm, name, pages, priority, node_tiers)| {
                    Event::Appeared(Appeared { vm, name, pages, priority, node_tiers })
                }),
            1 => vm().prop_map(Event::Gone),
            1 => vm().prop_map(Event::Armed),
            1 => (vm(), prop::option::of(usage)).prop_map(|(vm, usage)| Event::Used { vm, usage }),
            1 => any::<u64>().prop_map(Event::Lost),
            1 => (vm(), run.clone(), place.clone()).prop_map(|(vm, run, place)| Event::Found { vm, run, place }),
            1 => (vm(), run, place).prop_map(|(vm, run, place)| Event::Moved { vm, run, place }),
        ]
    }

    fn trace(events: &[Timed]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut block = Block::default();
        for Timed { time, event } in events {
            block.push(*time, event);
            if block.is_full() {
                bytes.extend(block.take());
            }
        }
        bytes.extend(block.take());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Timed>, bool), TraceError> {
        let mut reader = Reader::new(bytes)?;
        let mut events = Vec::new();
        reader.for_each(|event| events.push(event.clone()))?;
        Ok((events, reader.is_torn()))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(events in prop::collection::vec((0u64..1 << 40, event()), 0..200)) {
            let mut us = 0;
            let events: Vec<Timed> = events
                .into_iter()
                .map(|(later, event)| {
                    us += later;
                    Timed { time: Monotonic(us * 1000), event }
                })
                .collect();
            prop_assert_eq!(read(&trace(&events)).unwrap(), (events, false));
        }

        /// Nor is anything believed that was not written so.
        #[test]
        fn hostile_bytes_are_an_error_or_an_end(bytes in prop::collection::vec(any::<u8>(), 0..300), events in any::<bool>()) {
            let mut hostile = MAGIC.to_vec();
            if events {
                // A block whose checksum is right.
                hostile.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
                hostile.extend(XxHash3_64::oneshot(&bytes).to_le_bytes());
            }
            hostile.extend(&bytes);
            if let Ok((events, _)) = read(&hostile) {
                prop_assert!(events.len() <= bytes.len());
            }
        }
    }

    fn accesses(count: u64) -> Vec<Timed> {
        let access = |number: u64| {
            let page = (number * 7919 % 65_536) as u32;
            let event =
                Event::Accessed { vm: VmId(1), page, write: number.is_multiple_of(4), weight_log2: 0 };
            Timed { time: Monotonic(number * 100_000), event }
        };
        (0..count).map(access).collect()
    }

    #[test]
    fn an_access_takes_five_bytes() {
        let bytes = trace(&accesses(100_000)).len();
        assert!(bytes < 510_000, "{bytes}");
    }

    #[test]
    fn a_torn_end_ends_the_trace_at_the_last_whole_block() {
        let events = accesses(100_000);
        let bytes = trace(&events);
        let (read, torn) = read(&bytes[..bytes.len() / 2]).unwrap();
        assert!(torn && read.len() > 40_000 && read[..] == events[..read.len()], "{}", read.len());
    }

    #[test]
    fn what_is_damaged_old_or_no_trace_is_said_to_be() {
        let mut bytes = trace(&accesses(100_000));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert_eq!(
            read(&bytes).unwrap_err().to_string(),
            "block 4 is damaged: what comes before it can be replayed from a copy that ends there"
        );
        bytes[7] = 9;
        assert!(read(&bytes).unwrap_err().to_string().contains("version 9"));
        for no_trace in [&b""[..], b"TIER", b"\x7fELF\x02\x01\x01\x00\x00"] {
            assert!(matches!(read(no_trace), Err(TraceError::NoTrace)));
        }
        let mut long = MAGIC.to_vec();
        long.extend([0xff; 30]);
        assert!(matches!(read(&long), Err(TraceError::Damaged(1))));
    }
}
