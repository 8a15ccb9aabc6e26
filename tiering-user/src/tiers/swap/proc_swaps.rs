//! `/proc/swaps`: which swap areas are on, how full, with which priority.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One swap area that is on, ours or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapLine {
    pub path: PathBuf,
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub priority: i32,
}

impl SwapLine {
    /// Bytes of it that no page holds.
    pub fn free_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.used_bytes)
    }
}

/// The areas that are on, in the order of the kernel's numbers. Lines that do not parse are left out: this
/// file never fails to be read in the middle of a move.
///
/// # Errors
/// Where `/proc/swaps` cannot be read (no swap in this kernel).
pub fn read() -> io::Result<Vec<SwapLine>> {
    Ok(parse(&std::fs::read_to_string(Path::new("/proc/swaps"))?))
}

fn parse(text: &str) -> Vec<SwapLine> {
    text.lines().skip(1).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<SwapLine> {
    let mut fields = line.split_ascii_whitespace();
    let path = unescape(fields.next()?);
    let _kind = fields.next()?;
    let size_kib: u64 = fields.next()?.parse().ok()?;
    let used_kib: u64 = fields.next()?.parse().ok()?;
    let priority = fields.next()?.parse().ok()?;
    Some(SwapLine { path, size_bytes: size_kib << 10, used_bytes: used_kib << 10, priority })
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(code);
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_devices_are_read() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/nvme0n1p3                          partition\t8388604\t\t1024\t\t-2\n\
                    /var/lib/my\\040tier/segment-0            file\t\t262140\t\t262140\t\t32001\n";
        let areas = parse(text);
        assert_eq!(areas.len(), 2);
        assert_eq!(areas[0].priority, -2);
        assert_eq!(areas[0].free_bytes(), (8_388_604 - 1024) << 10);
        assert_eq!(areas[1].path, Path::new("/var/lib/my tier/segment-0"));
        assert_eq!(areas[1].free_bytes(), 0);
    }

    #[test]
    fn nonsense_is_left_out() {
        assert!(parse("Filename\nnot a line\n/x file one 2 3\n").is_empty());
    }
}
