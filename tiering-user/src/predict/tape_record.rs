//! A tape as bytes, to be kept.
//!
//! In: touches, oldest first. Out: a version, then for each touch a varint and perhaps a tag. The varint is the zigzag
//! of the page number less that of the touch before, and in its two lowest bits what is known of the content: nothing;
//! a tag, whose eight bytes follow; or the tag that the page had on this tape the last time, so that walks which come
//! again take two or three bytes a touch. What is not such a record gives nothing: no part of it is believed, and what
//! it takes to read it is bounded by its length and by [`MOST_TOUCHES`].
//!
//! # Limits
//! Tags are random numbers: eight bytes each the first time. The order of touches is not compressed, only each step of
//! it.

use std::collections::HashMap;

use integer_encoding::VarInt as _;

use super::{Tag, Touch};
use crate::tiermap::PageIndex;

/// Most touches of a record.
pub const MOST_TOUCHES: usize = 1 << 18;
const VERSION: u8 = 1;
const NO_TAG: u64 = 0;
const NEW_TAG: u64 = 1;
const SAME_TAG: u64 = 2;
const LONGEST_VARINT: usize = 10;

/// The record of these touches, of the first [`MOST_TOUCHES`] of them.
pub fn encode(touches: impl IntoIterator<Item = Touch>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let mut tags: HashMap<PageIndex, Tag> = HashMap::new();
    let mut before = 0;
    for (page, tag) in touches.into_iter().take(MOST_TOUCHES) {
        let known = match tag {
            None => NO_TAG,
            Some(tag) if tags.insert(page, tag) == Some(tag) => SAME_TAG,
            Some(_) => NEW_TAG,
        };
        let step = i64::from(page) - i64::from(before);
        before = page;
        let mut varint = [0; LONGEST_VARINT];
        let length = (zigzag(step) << 2 | known).encode_var(&mut varint);
        bytes.extend_from_slice(&varint[..length]);
        if let Some(tag) = tag.filter(|_| known == NEW_TAG) {
            bytes.extend_from_slice(&tag.0.to_le_bytes());
        }
    }
    bytes
}

/// The touches of a record; none if it is damaged.
pub fn decode(bytes: &[u8]) -> Option<Vec<Touch>> {
    let mut rest = bytes.strip_prefix(&[VERSION])?;
    let mut touches = Vec::new();
    let mut tags: HashMap<PageIndex, Tag> = HashMap::new();
    let mut before = 0i64;
    while !rest.is_empty() {
        if touches.len() == MOST_TOUCHES {
            return None;
        }
        let (number, length) = u64::decode_var(rest)?;
        rest = rest.get(length..)?;
        before = before.checked_add(unzigzag(number >> 2))?;
        let page = PageIndex::try_from(before).ok()?;
        let tag = match number & 3 {
            NO_TAG => None,
            NEW_TAG => {
                let (tag, behind) = rest.split_first_chunk()?;
                rest = behind;
                let tag = Tag(u64::from_le_bytes(*tag));
                tags.insert(page, tag);
                Some(tag)
            }
            SAME_TAG => Some(*tags.get(&page)?),
            _ => return None,
        };
        touches.push((page, tag));
    }
    Some(touches)
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_walk_that_comes_again_takes_few_bytes() {
        let walk = |pages: &mut dyn Iterator<Item = u32>, tagged: bool| {
            let touches: Vec<_> = pages
                .map(|page| (page, tagged.then_some(Tag(0x0123_4567_89ab_cdef + u64::from(page)))))
                .collect();
            let bytes = encode(touches.iter().copied());
            assert_eq!(decode(&bytes), Some(touches));
            bytes.len()
        };
        assert_eq!(walk(&mut (1..=1000), false), 1 + 1000, "in sequence");
        assert_eq!(walk(&mut (1..=1000).chain(0..1000), true), 1 + 1000 * 9 + 1 + 8 + 999 + 1);
        assert!(walk(&mut (0..1000).map(|number| number * 7919 % 65_536), false) < 3001, "all over 256 MiB");
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let good = encode([(7, None), (3, Some(Tag(9))), (3, Some(Tag(9)))]);
        assert_eq!(decode(&good).map(|touches| touches.len()), Some(3));
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[VERSION]), Some(vec![]));
        assert_eq!(decode(&[VERSION + 1, 0]), None, "a later version");
        assert_eq!(decode(&good[..good.len() - 2]), None, "cut off in a tag");
        assert_eq!(decode(&[VERSION, 3]), None, "no such kind of tag");
        assert_eq!(decode(&[VERSION, 2]), None, "a former tag that was never there");
        assert_eq!(decode(&[VERSION, 1 << 2]), None, "a page below 0");
        assert_eq!(decode(&[VERSION, 0x80]), None, "half a number");
        let mut long = vec![0; MOST_TOUCHES + 2];
        long[0] = VERSION;
        assert_eq!(decode(&long), None, "more touches than are ever written");
        assert_eq!(encode(std::iter::repeat((0, None))).len(), 1 + MOST_TOUCHES);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(touches in prop::collection::vec((prop_oneof![0u32..50, any::<u32>()], 0u64..9), 0..300)) {
            let touches: Vec<_> =
                touches.into_iter().map(|(page, tag)| (page, (tag != 0).then_some(Tag(tag)))).collect();
            prop_assert_eq!(decode(&encode(touches.iter().copied())), Some(touches));
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            decode(&bytes);
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            if let Some(touches) = decode(&bytes) {
                prop_assert!(touches.len() < bytes.len());
            }
        }

        #[test]
        fn one_wrong_byte_does_no_harm(at in 0usize..900, byte in any::<u8>()) {
            let mut bytes = encode((0..100).map(|page| (page * 3 % 70, Some(Tag(page.into())))));
            let at = at % bytes.len();
            bytes[at] = byte;
            decode(&bytes);
        }
    }
}
