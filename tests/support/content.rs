//! What a page of a test guest holds: a function of seed, page number and version, so nothing has to be stored to check it.
//!
//! Different pages, versions and seeds differ in every word, so a page in the wrong place, of the wrong guest, of an older
//! version or partly written is seen. No page is zero: those are special to the kernel.

use crate::pattern::PAGE_BYTES;

/// Words of a page.
pub const WORDS: usize = PAGE_BYTES / size_of::<u64>();
/// A page as its words.
pub type Page = [u64; WORDS];

/// The words of a page, in order.
fn words(seed: u64, page: usize, version: u32) -> impl Iterator<Item = u64> {
    // Odd, so that xorshift64 never starts from 0, where it would stay.
    let mut state = mix(mix(mix(seed) ^ page as u64) ^ u64::from(version)) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
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

/// Splitmix64's output function: a bijection that spreads every bit.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
}
