//! `/proc/swaps`: which swap areas are on, how full, with which priority.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// More than the kernel gives in one read, which is a page of lines.
const READ_BYTES: usize = 64 << 10;

/// One swap area that is on, ours or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapLine {
    /// As the kernel shows it: one of several ways to the file, and no way at all if that was unmounted since.
    pub path: PathBuf,
    /// A file; else a device.
    pub is_file: bool,
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
/// The kernel counts lines from one read to the next: an area that is switched off between two reads hides one that
/// stays on. All lines fit into one read, unless paths are long and areas many.
///
/// # Errors
/// Where `/proc/swaps` cannot be read (no swap in this kernel).
pub fn read() -> io::Result<Vec<SwapLine>> {
    let mut file = File::open("/proc/swaps")?;
    let (mut text, mut part) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(parse(&text)),
            bytes => text.extend_from_slice(&part[..bytes]),
        }
    }
}

/// Paths need not be text, so nor is this.
fn parse(text: &[u8]) -> Vec<SwapLine> {
    text.split(|byte| *byte == b'\n').skip(1).filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<SwapLine> {
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let path = unescape(fields.next()?);
    let is_file = fields.next()? == b"file";
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse::<i64>().ok();
    let (size_kib, used_kib) = (u64::try_from(number()?).ok()?, u64::try_from(number()?).ok()?);
    let priority = i32::try_from(number()?).ok()?;
    Some(SwapLine { path, is_file, size_bytes: size_kib << 10, used_bytes: used_kib << 10, priority })
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
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
    use std::path::Path;

    #[test]
    fn files_and_devices_are_read() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/nvme0n1p3                          partition\t8388604\t\t1024\t\t-2\n\
                    /var/lib/my\\040tier/segment-0            file\t\t262140\t\t262140\t\t32001\n";
        let areas = parse(text.as_bytes());
        assert_eq!(areas.iter().map(|area| area.is_file).collect::<Vec<_>>(), [false, true]);
        assert_eq!(areas[0].priority, -2);
        assert_eq!(areas[0].free_bytes(), (8_388_604 - 1024) << 10);
        assert_eq!(areas[1].path, Path::new("/var/lib/my tier/segment-0"));
        assert_eq!(areas[1].free_bytes(), 0);
    }

    #[test]
    fn nonsense_is_left_out() {
        assert!(parse(b"Filename\nnot a line\n/x file one 2 3\n").is_empty());
    }

    #[test]
    fn a_path_that_is_no_text_is_read_with_the_others() {
        let areas = parse(b"Filename\n/srv/\xff\xfe file 4 0 1\n/b partition 4 0 -2\n");
        assert_eq!(areas.len(), 2);
        assert_eq!(areas[0].path.as_os_str().as_encoded_bytes(), b"/srv/\xff\xfe");
    }
}
