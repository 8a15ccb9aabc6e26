//! What a VM will touch next, and whether such guesses were right before.
//!
//! In: the pages it touched that were, or had been, in a lower tier, in order ([`Tape`]); the content of pages that
//! went down ([`Tags`]). Out: the pages that followed last time ([`Tape::part`]), the copies that other VMs of the
//! tenant hold, what followed on the tapes of those ([`Ahead`]), what comes next by address ([`readahead()`]), tapes as
//! bytes to be kept ([`encode`]), and from what became of it the window, the confidence ([`Stages`]) and what it was
//! worth ([`LastDay`]). Pure: the time is an argument.

mod ahead;
mod calibration;
mod delays;
mod image;
mod last_day;
mod marks;
mod origin;
mod readahead;
mod record;
mod shadow;
mod stage;
mod stages;
mod tags;
mod tape;
mod tape_record;
mod votes;

pub use ahead::Ahead;
pub use calibration::{Bin, Calibration};
pub use delays::Delays;
pub use image::{Extent, ImageTape};
pub use last_day::{LastDay, Worth};
pub use marks::Marks;
pub use origin::{Match, Origin, PATIENCE};
pub use readahead::readahead;
pub use record::PROOF_ENDS;
pub use shadow::{Foreseen, SHADOW_PAGES};
pub use stage::{OriginCounts, Request, StageCounts, Used, Wasted};
pub use stages::{Chance, Stages};
pub use tags::{Tag, TagKey, Tags};
pub use tape::{Position, Tape, Touch};
pub use tape_record::{MOST_TOUCHES, decode, encode};
pub use votes::Votes;
