//! Why a page is thought to be touched soon: whose accesses say so, and how its pages correspond to theirs.

use crate::track::VmId;

/// Why a page is thought to be touched soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The machine touched it next, last time.
    OwnPast,
    /// The machine touched what corresponds to it next, before it was started anew.
    Earlier(Match),
    /// Another machine has just touched what corresponds to it.
    Touched(VmId, Match),
    /// Another machine touched what corresponds to it next, after what corresponds to the page that this one touched.
    Followed(VmId, Match),
}

/// How pages of two machines correspond.
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
    /// The other machine.
    pub fn leader(self) -> Option<VmId> {
        match self {
            Self::OwnPast | Self::Earlier(_) => None,
            Self::Touched(vm, _) | Self::Followed(vm, _) => Some(vm),
        }
    }

    /// How pages correspond; none for what the same process touched.
    pub fn by(self) -> Option<Match> {
        match self {
            Self::OwnPast => None,
            Self::Earlier(by) | Self::Touched(_, by) | Self::Followed(_, by) => Some(by),
        }
    }

    /// Pages, at first and at most. What has the same content is likely to be used for the same, and what a process touched next it
    /// is likely to touch next again; all else has to prove itself.
    /// On a tape the window is also how far ahead is staged: as far as a machine gets while that is read. What another one
    /// touches may be touched here seconds later.
    pub(super) fn window_bounds(self) -> (u32, u32) {
        let first = if matches!(self.by(), None | Some(Match::Content)) { 64 } else { 16 };
        let most = if matches!(self, Self::Touched(..)) { 16_384 } else { 4096 };
        (first, most)
    }
}
