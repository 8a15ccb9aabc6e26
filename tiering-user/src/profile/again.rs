//! How much of what a VM used in one epoch it uses again in the next, and how much of what it wrote it writes
//! again.
//!
//! In: what each page was used for, of those that are looked at, epoch by epoch. Out: numbers of pages.

use derive_more::{Add, Mul};

/// What one page was used for in the running epoch, and in the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uses {
    now: Use,
    before: Use,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    #[default]
    None,
    Read,
    Written,
}

/// Pages of one epoch, or sums over epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Add, Mul)]
pub struct Pages {
    pub used: f64,
    pub written: f64,
    /// Used in the epoch before.
    pub used_before: f64,
    /// Of these, used in this one too.
    pub kept: f64,
    /// Of the latter, written in the epoch before.
    pub kept_written: f64,
    /// Of the latter, written in this one too.
    pub written_again: f64,
}

impl Uses {
    pub fn access(&mut self, write: bool) {
        self.now = self.now.max(if write { Use::Written } else { Use::Read });
    }

    /// Ends an epoch, and adds to it what the page was used for.
    pub fn end_epoch(&mut self, pages: &mut Pages) {
        let Self { now, before } = *self;
        let one_if = |is: bool| f64::from(u8::from(is));
        let kept = now > Use::None && before > Use::None;
        let kept_written = kept && before == Use::Written;
        pages.used += one_if(now > Use::None);
        pages.written += one_if(now == Use::Written);
        pages.used_before += one_if(before > Use::None);
        pages.kept += one_if(kept);
        pages.kept_written += one_if(kept_written);
        pages.written_again += one_if(kept_written && now == Use::Written);
        *self = Self { now: Use::None, before: now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_and_written_again_is_told_from_what_is_new() {
        let mut pages = [Uses::default(); 5];
        let mut epoch = |accesses: &[(usize, bool)]| {
            accesses.iter().for_each(|(page, write)| pages[*page].access(*write));
            let mut sum = Pages::default();
            pages.iter_mut().for_each(|page| page.end_epoch(&mut sum));
            sum
        };
        let first = epoch(&[(1, true), (1, false), (2, true), (3, false), (3, false)]);
        assert_eq!(first, Pages { used: 3.0, written: 2.0, ..Pages::default() });
        let second = epoch(&[(1, false), (1, true), (1, true), (2, false), (4, true)]);
        let expected = Pages {
            used: 3.0,
            written: 2.0,
            used_before: 3.0,
            kept: 2.0,
            kept_written: 2.0,
            written_again: 1.0,
        };
        assert_eq!(second, expected);
        let third = epoch(&[(3, true)]);
        assert_eq!(
            (third.kept, third.used_before, third.written),
            (0.0, 3.0, 1.0),
            "3 was not used last time"
        );
        assert_eq!(epoch(&[]), Pages { used_before: 1.0, ..Pages::default() });
    }
}
