//! Memory of the agent's own with an address that devices can read into: starts and ends with a page.

use std::io;

use super::mapping::Mapping;

/// Zeroes, none of them present before they are written.
#[derive(Debug)]
pub struct Buffer(Mapping);

impl Buffer {
    /// Maps `pages` small pages: a huge one that its node has not free as a whole would come from another node.
    ///
    /// # Errors
    /// `ENOMEM`, `EINVAL` (no page).
    pub fn map(pages: usize) -> io::Result<Self> {
        Mapping::new(pages).map(Self)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length, is initialised (to zeroes), and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.0.start(), self.0.bytes()) }
    }

    /// All of it, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` is the only way to it now.
        unsafe { std::slice::from_raw_parts_mut(self.0.start(), self.0.bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_aligned_and_keeps_what_is_written() {
        let mut buffer = Buffer::map(3).unwrap();
        assert!(buffer.bytes().iter().all(|byte| *byte == 0));
        assert_eq!((buffer.bytes().len(), buffer.bytes().as_ptr() as usize % 4096), (3 * 4096, 0));
        buffer.bytes_mut()[4097] = 7;
        assert_eq!(buffer.bytes()[4097], 7);
        assert!(Buffer::map(0).is_err());
    }
}
