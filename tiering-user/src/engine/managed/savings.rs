//! What is known of the memory that a VM does without.

use crate::reclaim::savings::{Estimate, FreeHistory};
use crate::sys::Monotonic;

/// Of one VM.
#[derive(Debug, Default)]
pub struct VmSavings {
    /// What was free of it.
    pub free: FreeHistory,
    /// What more can be freed: when that was estimated, and what came of it.
    pub estimated: Option<(Monotonic, Result<Estimate, String>)>,
}
