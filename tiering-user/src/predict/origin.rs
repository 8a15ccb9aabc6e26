//! Why a page is thought to be touched soon: whose accesses say so, and how its pages correspond to theirs.

use std::time::Duration;

use crate::track::VmId;

/// What is not touched so soon after it was predicted was predicted wrongly, as a rule.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Windows on a tape that may be open at a time: a VM that jumps may use later what was staged for it before.
pub(super) const WINDOWS: u32 = 16;

/// Why a page is thought to be touched soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The VM touched it next, last time.
    OwnPast,
    /// The VM touched it a period ago, and its load comes again; within so long, as exactly as the period is
    /// known.
    Season(Duration),
    /// The VM touched what corresponds to it next, before it was started anew.
    Earlier(Match),
    /// Another VM has just touched what corresponds to it.
    Touched(VmId, Match),
    /// Another VM touched what corresponds to it next, after what corresponds to the page that this one touched.
    Followed(VmId, Match),
    /// It comes after the page that the VM touched in the order of addresses.
    Readahead,
}

/// How pages of two VMs correspond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// They have, or had when they were last in swap, the same content.
    Content,
    /// They have the same guest-physical address; of the content of one nothing is known.
    Page,
    /// They have the same guest-physical address, and different contents.
    Address,
}

impl Origin {
    /// The other VM.
    pub fn leader(self) -> Option<VmId> {
        match self {
            Self::OwnPast | Self::Season(_) | Self::Earlier(_) | Self::Readahead => None,
            Self::Touched(vm, _) | Self::Followed(vm, _) => Some(vm),
        }
    }

    /// How pages correspond; none for what the same process touched.
    pub fn by(self) -> Option<Match> {
        match self {
            Self::OwnPast | Self::Season(_) | Self::Readahead => None,
            Self::Earlier(by) | Self::Touched(_, by) | Self::Followed(_, by) => Some(by),
        }
    }

    /// How soon what it predicts is touched, if it is right.
    pub fn patience(self) -> Duration {
        if let Self::Season(patience) = self { patience } else { PATIENCE }
    }

    /// Whether it says what will be touched a while later, not what comes next.
    pub(super) fn is_for_later(self) -> bool {
        matches!(self, Self::Touched(..) | Self::Season(_))
    }

    /// Pages, at first and at most. What has the same content is likely to be used for the same, and what a process
    /// touched next it is likely to touch next again; all else has to prove itself. On a tape the window is how far
    /// ahead is staged: as far as a VM gets while that is read. What another one touches may be touched here
    /// seconds later. Of a period there is one chance in each: what begins with it is to be there by then, and what
    /// comes after that is predicted by the tape. In the order of addresses less is right the further it is.
    pub(super) fn window_bounds(self) -> (u32, u32) {
        if self == Self::Readahead {
            return (16, 64);
        }
        let first = match self.by() {
            None if self.is_for_later() => 512,
            None | Some(Match::Content) => 64,
            Some(Match::Page | Match::Address) => 16,
        };
        (first, if self.is_for_later() { 16_384 } else { 1024 })
    }
}
