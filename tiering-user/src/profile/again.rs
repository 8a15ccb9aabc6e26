//! How much of what a machine used in one epoch it uses again in the next, and how much of what it wrote it writes again.
//!
//! In: accesses to pages, of which the same ones are looked at each time, and ends of epochs. Out: numbers of such pages.

use derive_more::{Add, Mul};

/// What is known of one page's last use.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    epoch: u64,
    written: bool,
    /// In the epoch before that one too.
    written_before: bool,
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

/// The epochs of one machine.
#[derive(Debug, Default)]
pub struct Again {
    /// The running one.
    epoch: u64,
    now: Pages,
}

impl Again {
    /// Notes an access. `used` is what was known of the page, and is returned as it is known now.
    pub fn access(&mut self, used: Option<Used>, write: bool) -> Used {
        let now = &mut self.now;
        let mut used = used.filter(|used| used.epoch == self.epoch).unwrap_or_else(|| {
            let before = used.filter(|used| used.epoch + 1 == self.epoch);
            let written_before = before.is_some_and(|used| used.written);
            now.used += 1.0;
            now.kept += f64::from(u8::from(before.is_some()));
            now.kept_written += f64::from(u8::from(written_before));
            Used { epoch: self.epoch, written: false, written_before }
        });
        if write && !used.written {
            used.written = true;
            now.written += 1.0;
            now.written_again += f64::from(u8::from(used.written_before));
        }
        used
    }

    /// Ends an epoch, and tells of it.
    pub fn end_epoch(&mut self) -> Pages {
        self.epoch += 1;
        let next = Pages { used_before: self.now.used, ..Pages::default() };
        std::mem::replace(&mut self.now, next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_is_used_and_written_again_is_told_from_what_is_new() {
        let mut again = Again::default();
        let mut pages: HashMap<u32, Used> = HashMap::new();
        let mut epoch = |accesses: &[(u32, bool)]| {
            for (page, write) in accesses {
                let used = again.access(pages.get(page).copied(), *write);
                pages.insert(*page, used);
            }
            again.end_epoch()
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
