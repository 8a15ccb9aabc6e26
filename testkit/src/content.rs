//! What a page of a test guest holds: a function of seed, page number and version, so nothing has to be stored to check
//! it.
//!
//! Different pages, versions and seeds differ in every word, so a page in the wrong place, of the wrong guest, of an
//! older version or partly written is seen. No page is zero: those are special to the kernel.

use crate::pattern::PAGE_BYTES;
use crate::random::mix;
use std::io::{self, Write};

/// Words of a page.
pub const WORDS: usize = PAGE_BYTES / size_of::<u64>();
/// A page as its words.
pub type Page = [u64; WORDS];

/// What the words of a page follow from; its versions differ from version 0 in the lower 32 bits.
#[must_use]
pub fn identity(seed: u64, page: usize) -> u64 {
    mix(mix(seed) ^ page as u64)
}

/// The two numbers of which one is [`identity`] XOR version, if this is the first word of a page. Other words have two
/// such numbers as well, so it takes [`holds`] to prove it.
#[must_use]
pub fn identities(first_word: u64) -> [u64; 2] {
    // The way of `words` back, whose first step overwrote the lowest bit.
    let mut state = first_word;
    state = undo(state, |z| z << 17);
    state = undo(state, |z| z >> 7);
    state = undo(state, |z| z << 13);
    [unmix(state), unmix(state ^ 1)]
}

/// The words of a page, in order.
fn words(seed: u64, page: usize, version: u32) -> impl Iterator<Item = u64> {
    // Odd, so that xorshift64 never starts from 0, where it would stay.
    let mut state = mix(identity(seed, page) ^ u64::from(version)) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// The first word of a version of a page.
#[must_use]
pub fn first_word(seed: u64, number: usize, version: u32) -> u64 {
    words(seed, number, version).next().unwrap_or_default()
}

/// Writes a version of a page.
pub fn fill(page: &mut Page, seed: u64, number: usize, version: u32) {
    for (word, value) in page.iter_mut().zip(words(seed, number, version)) {
        *word = value;
    }
}

/// Whether a page is, in every word, this version.
#[must_use]
pub fn holds(page: &Page, seed: u64, number: usize, version: u32) -> bool {
    page.iter().zip(words(seed, number, version)).all(|(word, value)| *word == value)
}

/// Writes the pages from 0 on, version 0, one after the other: the file of an image.
///
/// # Errors
/// What `out` fails with.
pub fn write_pages(out: &mut (impl Write + ?Sized), seed: u64, pages: usize) -> io::Result<()> {
    for number in 0..pages {
        let mut bytes = [0; PAGE_BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(size_of::<u64>()).zip(words(seed, number, 0)) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Undoes [`mix`]: the constants are the inverses of its own, modulo 2^64.
fn unmix(mut z: u64) -> u64 {
    z = undo(z, |z| z >> 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = undo(z, |z| z >> 27).wrapping_mul(0x96de_1b17_3f11_9089);
    undo(z, |z| z >> 30)
}

/// The number x for which `x ^ shift(x)` is z. Each round makes as many bits right as the shift is wide.
fn undo(z: u64, shift: impl Fn(u64) -> u64) -> u64 {
    let mut x = z;
    // 64 bits, 7 by the narrowest shift.
    for _ in 0..9 {
        x = z ^ shift(x);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u64, number: usize, version: u32) -> Page {
        let mut page = [0; WORDS];
        fill(&mut page, seed, number, version);
        page
    }

    #[test]
    fn a_page_holds_what_was_filled_in_and_nothing_else() {
        let filled = page(7, 3, 1);
        assert!(holds(&filled, 7, 3, 1));
        assert!(!holds(&filled, 8, 3, 1), "of another guest");
        assert!(!holds(&filled, 7, 4, 1), "in another place");
        assert!(!holds(&filled, 7, 3, 0), "of an older version");
        let mut torn = filled;
        torn[WORDS - 1] ^= 1;
        assert!(!holds(&torn, 7, 3, 1), "one bit in the last word");
    }

    #[test]
    fn no_word_is_zero_and_pages_are_not_alike() {
        let (one, other) = (page(7, 0, 0), page(7, 1, 0));
        assert!(one.iter().all(|word| *word != 0));
        assert_eq!(one.iter().zip(&other).filter(|(a, b)| a == b).count(), 0);
    }
    #[test]
    fn the_first_word_tells_page_and_version() {
        for (number, version) in [(0, 0), (3, 1), (40_000, 12_345_678)] {
            let expected = identity(7, number) ^ u64::from(version);
            assert!(identities(page(7, number, version)[0]).contains(&expected), "{number} {version}");
        }
    }
}
