//! What is known of a block of 2 MiB as a whole.
//!
//! Data only; what follows from it is for the policy.

/// A block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockInfo {
    /// One huge page, as the last sweep found it.
    pub huge: bool,
    /// It was one before.
    pub was_huge: bool,
    /// The kernel did not make it one again when it was asked to.
    pub given_up: bool,
}
