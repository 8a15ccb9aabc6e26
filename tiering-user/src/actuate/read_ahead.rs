//! Parts of files into the page cache, ahead of need.

use std::fs::File;
use std::ops::Range;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// One call reads no more than the device's readahead setting, of which this is the default (mm/readahead.c,
/// `force_page_cache_ra`, Linux 6.1 to 6.18).
const CALL_BYTES: u64 = 128 << 10;

/// Has the kernel begin to read these parts, bytes. On a server that is down it may not come back.
pub fn read_ahead(file: &File, parts: &[Range<u64>]) {
    for part in parts {
        for start in part.clone().step_by(CALL_BYTES as usize) {
            let bytes = CALL_BYTES.min(part.end - start);
            let (Ok(start), Ok(bytes)) = (i64::try_from(start), i64::try_from(bytes)) else { continue };
            if let Err(error) = posix_fadvise(file, start, bytes, PosixFadviseAdvice::POSIX_FADV_WILLNEED) {
                // It comes up when it is read.
                tracing::debug!(%error, "not read ahead");
            }
        }
    }
}
