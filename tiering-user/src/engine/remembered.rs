//! What the agent remembers beyond what VMs do now, so that it can be counted, and forgotten.

use serde::{Deserialize, Serialize};

use crate::track::VmId;

/// What can be forgotten, least missed first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    TapeOnRecord(String),
    ImageOnRecord(ImageName),
    OpenImage(ImageName),
    VmOnRecord(String),
    Tags(String),
    Tape(VmId),
}

impl What {
    pub(super) fn rank(&self) -> usize {
        match self {
            Self::TapeOnRecord(_) => 0,
            Self::ImageOnRecord(_) => 1,
            Self::OpenImage(_) => 2,
            Self::VmOnRecord(_) => 3,
            Self::Tags(_) => 4,
            Self::Tape(_) => 5,
        }
    }
}

/// How things of each rank are called.
pub(super) const RANKS: [&str; 6] = [
    "tapes on record",
    "orders of images on record",
    "orders of open images",
    "VMs that are gone",
    "indexes of content",
    "tapes of VMs",
];

/// Something that is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    pub what: What,
    /// Of two of a kind the one with the lower number goes first.
    pub used: u64,
    pub bytes: u64,
}

/// What an image is known by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ImageName {
    pub owner: String,
    pub name: String,
    pub inode: u64,
    pub bytes: u64,
    pub changed_unix_s: i64,
}
