//! Which VMs of a tenant hold the same content in lower tiers.
//!
//! In: tags of pages as they go down, and that they are up again. Out: the others that have the same tag. A page in
//! swap cannot change, so its tag is true as long as it is there. One index a tenant: what is not in it cannot be
//! found.
//!
//! # Limits
//! At most [`MOST_PAGES`] a tenant have a tag, the first ones. A page that came up unseen and went down by the kernel's
//! doing keeps the tag it had: at worst a page is staged in vain.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use twox_hash::XxHash3_64;

use crate::tiermap::PageIndex;
use crate::track::VmId;

/// A keyed hash of a page's content. It is never shown; it is kept beside a tape, in a file that only the agent can
/// read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// The secret of one tenant: with another one, equal content has other tags.
#[derive(Clone)]
pub struct TagKey([u8; SECRET_BYTES]);

/// As many as XXH3's own default secret has.
const SECRET_BYTES: usize = 192;
/// What is looked at in one go, so that the compiler can do it in wide registers.
const LOOK_BYTES: usize = 64;

impl TagKey {
    /// A key that nobody else knows.
    pub fn new(random: &RandomState) -> Self {
        let words = (0..SECRET_BYTES / 8).flat_map(|word| random.hash_one(word).to_ne_bytes());
        let mut secret = [0; SECRET_BYTES];
        secret.iter_mut().zip(words).for_each(|(byte, random)| *byte = random);
        Self(secret)
    }

    /// The key that [`as_bytes`](Self::as_bytes) gave; none if these are not the bytes of one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The secret itself: for the state on disk, and nothing else.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The tag of a page's content (XXH3 with the secret); none for a page of zeroes, which every VM has.
    pub fn tag(&self, content: &[u8]) -> Option<Tag> {
        let any = |part: &[u8]| part.iter().fold(0, |all, byte| all | byte) != 0;
        if !content.chunks(LOOK_BYTES).any(any) {
            return None;
        }
        // Refuses only a secret that is too short.
        XxHash3_64::oneshot_with_secret(&self.0, content).ok().map(Tag)
    }
}

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey")
    }
}

/// Tagged pages of one tenant: 4 GiB of them.
const MOST_PAGES: usize = 1 << 20;
/// Pages of one content that are remembered: content that is everywhere predicts nothing.
const MOST_COPIES: usize = 64;

/// What a tagged page takes, about: an entry by page, one by content, and a list that is a piece of the heap of its
/// own.
const PAGE_TAKES_BYTES: u64 = 128;

/// The tagged pages of one tenant.
#[derive(Clone, Debug, Default)]
pub struct Tags {
    tags: HashMap<VmId, HashMap<PageIndex, Tag>>,
    /// How many pages have one.
    tagged: usize,
    pages: HashMap<Tag, Vec<(VmId, PageIndex)>>,
}

impl Tags {
    /// `page` of `vm` is in a lower tier and has this content. Returns whether there was room for it.
    pub fn insert(&mut self, vm: VmId, page: PageIndex, tag: Tag) -> bool {
        self.remove(vm, page);
        if self.tagged >= MOST_PAGES {
            return false;
        }
        let pages = self.pages.entry(tag).or_default();
        let room = pages.len() < MOST_COPIES;
        if room {
            pages.push((vm, page));
            self.tags.entry(vm).or_default().insert(page, tag);
            self.tagged += 1;
        }
        room
    }

    /// Memory that they take, about.
    pub fn bytes(&self) -> u64 {
        self.tagged as u64 * PAGE_TAKES_BYTES
    }

    /// `page` of `vm` can change from now on. Returns the tag that it had.
    pub fn remove(&mut self, vm: VmId, page: PageIndex) -> Option<Tag> {
        let tag = self.tags.get_mut(&vm)?.remove(&page)?;
        self.tagged -= 1;
        if let Some(pages) = self.pages.get_mut(&tag) {
            pages.retain(|entry| *entry != (vm, page));
            if pages.is_empty() {
                self.pages.remove(&tag);
            }
        }
        Some(tag)
    }

    /// Forgets all pages of a VM.
    pub fn forget(&mut self, vm: VmId) {
        let gone: Vec<_> = self.of_vm(vm).map(|(page, _)| page).collect();
        for page in gone {
            self.remove(vm, page);
        }
        self.tags.remove(&vm);
    }

    /// All pages of a VM that have a tag.
    pub fn of_vm(&self, vm: VmId) -> impl Iterator<Item = (PageIndex, Tag)> + '_ {
        self.tags.get(&vm).into_iter().flatten().map(|(page, tag)| (*page, *tag))
    }

    /// The content of a page in swap.
    pub fn of(&self, vm: VmId, page: PageIndex) -> Option<Tag> {
        self.tags.get(&vm)?.get(&page).copied()
    }

    /// The pages of this VM with this content.
    pub fn copies_in(&self, tag: Tag, vm: VmId) -> impl Iterator<Item = PageIndex> + '_ {
        let all = self.pages.get(&tag).into_iter().flatten();
        all.filter(move |(owner, _)| *owner == vm).map(|(_, page)| *page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: VmId = VmId(1);
    const OTHER: VmId = VmId(2);

    fn copies(tags: &Tags, tag: u64, vm: VmId) -> Vec<PageIndex> {
        tags.copies_in(Tag(tag), vm).collect()
    }

    #[test]
    fn equal_content_has_equal_tags_under_one_key_only() {
        let (key, other) = (TagKey::new(&RandomState::new()), TagKey::new(&RandomState::new()));
        let (page, changed) = ([7u8; 4096], [8u8; 4096]);
        assert_eq!(key.tag(&page), key.clone().tag(&page));
        assert_ne!(key.tag(&page), key.tag(&changed));
        assert_ne!(key.tag(&page), other.tag(&page));
        assert_eq!(key.tag(&[0; 4096]), None);
        let again = TagKey::from_bytes(key.as_bytes()).unwrap();
        assert_eq!(again.tag(&page), key.tag(&page), "tags mean the same to the next agent");
        assert!(TagKey::from_bytes(&key.as_bytes()[1..]).is_none());
        let mut last = [0; 4096];
        last[4095] = 1;
        assert!(key.tag(&last).is_some());
    }

    #[test]
    fn copies_in_other_vms_are_found_until_they_come_up() {
        let mut tags = Tags::default();
        tags.insert(ONE, 3, Tag(7));
        tags.insert(ONE, 4, Tag(7));
        tags.insert(OTHER, 9, Tag(7));
        tags.insert(OTHER, 10, Tag(8));
        assert_eq!((tags.of(OTHER, 10), tags.of(OTHER, 3)), (Some(Tag(8)), None));
        assert_eq!((copies(&tags, 7, OTHER), copies(&tags, 8, ONE)), (vec![9], vec![]));
        assert_eq!(tags.remove(OTHER, 9), Some(Tag(7)));
        assert_eq!(tags.remove(OTHER, 9), None);
        assert_eq!(copies(&tags, 7, OTHER), [0; 0]);
        assert_eq!(copies(&tags, 7, ONE), [3, 4]);
    }

    #[test]
    fn a_page_has_one_tag_and_a_vm_that_is_gone_has_none() {
        let mut tags = Tags::default();
        tags.insert(OTHER, 9, Tag(7));
        tags.insert(OTHER, 9, Tag(8));
        assert_eq!((copies(&tags, 7, OTHER), copies(&tags, 8, OTHER)), (vec![], vec![9]));
        tags.forget(OTHER);
        assert!(tags.tags.is_empty() && tags.pages.is_empty());
    }

    #[test]
    fn content_that_is_everywhere_is_not_followed_everywhere() {
        let mut tags = Tags::default();
        let taken = (0..1000).filter(|page| tags.insert(OTHER, *page, Tag(7))).count();
        assert_eq!((taken, tags.tagged, tags.of_vm(OTHER).count()), (MOST_COPIES, MOST_COPIES, MOST_COPIES));
    }
}
