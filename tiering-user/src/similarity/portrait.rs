//! What is known of one VM, in a form in which it can be compared.

use std::collections::BTreeSet;

use super::sketch::{Sketch, mix};
use super::trail::Trail;

/// One VM. What stays empty counts as not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Portrait {
    /// Tags of its pages. They must be keyed, by one key for the tenant.
    pub content: Sketch,
    /// Its pages' tags together with where the pages are.
    pub placed: Sketch,
    /// Names of what it touches: tags where they are known, else page numbers; the same for all VMs of a tenant.
    pub trail: Trail,
    /// Identities of the files behind its memory and disks.
    pub files: BTreeSet<u64>,
    /// What its profile says, as numbers of like scale; as many for each VM.
    pub behaviour: Option<Vec<f32>>,
}

impl Portrait {
    /// The VM holds content with this tag in the page of this guest-physical page number.
    pub fn hold(&mut self, guest_page: u64, tag: u64) {
        self.content.insert(tag);
        self.placed.insert(tag ^ mix(!guest_page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_elsewhere_is_the_same_content_but_not_in_the_same_place() {
        let (mut one, mut other) = (Portrait::default(), Portrait::default());
        for page in 0..1000 {
            one.hold(page, mix(page));
            other.hold(page + 1, mix(page));
        }
        assert_eq!(one.content.jaccard(&other.content), 1.0);
        assert_eq!(one.placed.jaccard(&other.placed), 0.0);
    }
}
