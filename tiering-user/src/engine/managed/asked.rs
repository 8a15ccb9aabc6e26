//! What the kernel was asked to reclaim of a VM, or of the whole host, and what came of it. Pure.
//!
//! In: orders, their outcomes, the kernel's count of pages that were read back. Out: until when nothing is asked for,
//! and why; pages that were read back, but for those that the agent read.

use std::collections::VecDeque;
use std::time::Duration;

use crate::actuate::{NoReclaim, Reclaimed};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;

/// After so many orders in a row of which next to nothing came, nothing is asked for a while.
const LITTLE_MOST: u32 = 3;
/// Of what was asked for: less is next to nothing.
const LITTLE_DIVISOR: u64 = 8;
/// How long a read of the agent may take to show as a refault: those of pages that were in memory never do.
const OWN_READS_KEPT: Duration = Duration::from_secs(10);
/// After an order that was not carried out; and the first rest, which doubles up to [`REST`].
const SOON: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_mins(1);
/// How long the agent chooses where the kernel could not be asked.
const REFUSED: Duration = Duration::from_mins(10);

/// Orders for one VM, or for the host.
#[derive(Debug, Default)]
pub struct Asked {
    /// Bytes of an order that is with the lane.
    under_way: Option<u64>,
    /// Copies that go with it.
    copies: Vec<PageIndex>,
    /// Since when one may have asked.
    since: Option<Monotonic>,
    /// When memory was last reclaimed: sweeps have to look.
    pub reclaimed_at: Option<Monotonic>,
    little: u32,
    /// Until when nothing is asked, and why.
    rests: Option<(Monotonic, String)>,
    /// Until when the agent chooses, and why.
    refused: Option<(Monotonic, String)>,
    refaults_total: Option<u64>,
    /// Pages that the agent has read and that no refault was seen of yet, and when.
    own_reads: VecDeque<(Monotonic, u64)>,
}

impl Asked {
    /// An order for so many bytes, with which these copies go, is with the lane.
    pub fn begin(&mut self, bytes: u64, copies: Vec<PageIndex>) {
        self.under_way = Some(bytes);
        self.copies = copies;
    }

    /// It is done: the copies that went with it.
    pub fn end(&mut self) -> Vec<PageIndex> {
        self.under_way = None;
        std::mem::take(&mut self.copies)
    }

    /// Bytes of an order that is with the lane.
    pub fn under_way(&self) -> Option<u64> {
        self.under_way
    }

    /// Bytes of mapped memory that leave by an order which is with the lane.
    pub fn leaving(&self) -> u64 {
        self.under_way.filter(|_| self.copies.is_empty()).unwrap_or(0)
    }

    /// How long one may have asked.
    pub fn known_for(&mut self, now: Monotonic) -> Duration {
        now.since(*self.since.get_or_insert(now))
    }

    /// The agent has read so many pages.
    pub fn note_own_read(&mut self, pages: u64, at: Monotonic) {
        self.own_reads.retain(|(read, _)| at.since(*read) <= OWN_READS_KEPT);
        if pages > 0 {
            self.own_reads.push_back((at, pages));
        }
    }

    pub fn rests(&self, now: Monotonic) -> Option<&str> {
        self.rests.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.as_str())
    }

    pub fn refused(&self, now: Monotonic) -> Option<&str> {
        self.refused.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.as_str())
    }

    /// Pages that were read back since the last time, but for those that the agent read.
    pub fn refaults(&mut self, total: Option<u64>, now: Monotonic) -> u64 {
        let before = std::mem::replace(&mut self.refaults_total, total);
        let Some((before, total)) = before.zip(total) else { return 0 };
        self.own_reads.retain(|(at, _)| now.since(*at) <= OWN_READS_KEPT);
        let mut refaults = total.saturating_sub(before);
        while refaults > 0
            && let Some((_, own)) = self.own_reads.front_mut()
        {
            let seen = refaults.min(*own);
            refaults -= seen;
            *own -= seen;
            if *own == 0 {
                self.own_reads.pop_front();
            }
        }
        refaults
    }

    /// What was read back meanwhile is nobody's concern.
    pub fn forget_refaults(&mut self) {
        self.refaults_total = None;
    }

    /// What came of an order for memory of `whose`.
    pub fn note(
        &mut self,
        reclaimed: Result<Reclaimed, NoReclaim>,
        whose: &str,
        now: Monotonic,
    ) -> Reclaimed {
        let mut last = String::new();
        let reclaimed = match reclaimed {
            Ok(reclaimed) => reclaimed,
            Err(NoReclaim::NotThere(why)) => {
                self.refused = Some((now.after(REFUSED), why));
                return Reclaimed::default();
            }
            Err(NoReclaim::Now(why)) => {
                self.rests = Some((now.after(SOON), why));
                return Reclaimed::default();
            }
            Err(NoReclaim::Found(why)) => {
                last = format!(" ({why})");
                Reclaimed::default()
            }
        };
        if reclaimed.bytes() > 0 && reclaimed.bytes() >= reclaimed.asked_bytes / LITTLE_DIVISOR {
            self.little = 0;
            return reclaimed;
        }
        self.little += 1;
        // At first all pages look used: the kernel has not yet looked at them twice. So the first rests are short.
        if let Some(times) = self.little.checked_sub(LITTLE_MOST) {
            let why = format!("the kernel finds next to nothing to reclaim of {whose}{last}");
            let rest = SOON.saturating_mul(1 << times.min(8)).min(REST);
            self.rests = Some((now.after(rest), why));
        }
        reclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::OnNodes;

    const MIB: u64 = 1 << 20;

    fn at(second: u64) -> Monotonic {
        Monotonic(second * 1_000_000_000)
    }

    fn got(memory_mib: u64) -> Result<Reclaimed, NoReclaim> {
        Ok(Reclaimed { asked_bytes: 16 * MIB, memory_bytes: memory_mib * MIB, ..Reclaimed::default() })
    }

    #[test]
    fn a_group_in_which_nothing_is_found_is_left_alone_longer_and_longer() {
        let mut asked = Asked::default();
        let again = || Err(NoReclaim::Found("/a/memory.reclaim: try again".to_owned()));
        for reclaimed in [again(), got(1), got(8), again(), got(0)] {
            asked.note(reclaimed, "its group", at(0));
            assert_eq!(asked.rests(at(0)), None);
        }
        asked.note(again(), "its group", at(0));
        let why = asked.rests(at(4)).unwrap().to_owned();
        assert!(why.contains("next to nothing") && why.contains("try again"), "{why}");
        assert_eq!((asked.rests(at(5)), asked.refused(at(5))), (None, None));
        for (second, rest) in [(5, 10), (15, 20), (35, 40), (75, 60), (135, 60)] {
            asked.note(got(1), "its group", at(second));
            assert!(asked.rests(at(second + rest - 1)).is_some_and(|again| again.len() < why.len()));
            assert_eq!(asked.rests(at(second + rest)), None);
        }
        asked.note(got(8), "its group", at(195));
        asked.note(got(1), "its group", at(196));
        assert_eq!(asked.rests(at(196)), None, "it begins anew");
        asked.note(Err(NoReclaim::Now("a lower tier is being filled".to_owned())), "its group", at(200));
        assert_eq!(asked.rests(at(201)), Some("a lower tier is being filled"), "it was not even asked");
    }

    #[test]
    fn what_went_to_a_slower_memory_tier_was_found_and_did_not_leave_memory() {
        let on = OnNodes { guest_bytes: 16 * MIB, file_bytes: 0 };
        let demoted = Reclaimed { asked_bytes: 16 * MIB, first_tier: on, ..Reclaimed::default() };
        let mut asked = Asked::default();
        for second in 0..10 {
            assert_eq!(asked.note(Ok(demoted), "its group", at(second)).moved_bytes(), 16 * MIB);
            assert_eq!(asked.rests(at(second)), None, "the kernel finds enough");
        }
        let both = Reclaimed { memory_bytes: 4 * MIB, ..demoted };
        assert_eq!((both.moved_bytes(), both.memory_bytes), (16 * MIB, 4 * MIB));
    }

    #[test]
    fn what_the_agent_reads_itself_is_no_wait_of_the_vm() {
        let mut asked = Asked::default();
        assert_eq!(asked.refaults(Some(100), at(0)), 0, "what was before is not known");
        assert_eq!(asked.refaults(Some(107), at(1)), 7);
        asked.note_own_read(50, at(2));
        assert_eq!(asked.refaults(Some(137), at(2)), 0);
        assert_eq!(asked.refaults(Some(167), at(3)), 10);
        asked.note_own_read(50, at(3));
        assert_eq!(asked.refaults(Some(177), at(20)), 10, "long after the agent read anything");
    }

    #[test]
    fn where_the_kernel_cannot_be_asked_the_agent_chooses_for_a_while() {
        let mut asked = Asked::default();
        let why = "/a/memory.reclaim: permission denied".to_owned();
        asked.note(Err(NoReclaim::NotThere(why.clone())), "its group", at(0));
        assert_eq!(asked.refused(at(599)), Some(why.as_str()));
        assert_eq!(asked.refused(at(600)), None);
    }
}
