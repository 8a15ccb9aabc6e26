//! An initramfs: executables, and a console.
//!
//! In: the names and bytes of the files, one of them a static `init`. Out: an uncompressed cpio archive in the "newc" format
//! (kernel `Documentation/driver-api/early-userspace/buffer-format.rst`), which is all the kernel needs.

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive with these files, all executable, the folders they are in, `/dev/console` (the kernel opens it for init) and
/// the empty folders that init mounts on.
///
/// # Panics
/// Where a file is 4 GiB or more, which the format cannot hold.
#[must_use]
pub fn build(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut folders = vec!["dev", "proc"];
    for (name, _) in files {
        let parents = name.match_indices('/').map(|(end, _)| &name[..end]);
        folders.extend(parents);
    }
    folders.sort_unstable();
    folders.dedup();
    let bytes: usize = files.iter().map(|(_, data)| data.len() + 256).sum();
    let mut archive = Vec::with_capacity(bytes + 1024);
    let folders = folders.into_iter().map(|name| (name, DIRECTORY, (0, 0), &[][..]));
    let console = [("dev/console", CHARACTER_DEVICE, (5, 1), &[][..])];
    let files = files.iter().map(|(name, data)| (*name, EXECUTABLE, (0, 0), *data));
    let end = [("TRAILER!!!", 0, (0, 0), &[][..])];
    for (number, (name, mode, device, data)) in folders.chain(console).chain(files).chain(end).enumerate() {
        entry(&mut archive, number, name, mode, device, data);
    }
    archive
}

fn entry(
    archive: &mut Vec<u8>,
    number: usize,
    name: &str,
    mode: u32,
    (major, minor): (u32, u32),
    data: &[u8],
) {
    let size = u32::try_from(data.len()).expect("a file of 4 GiB cannot be unpacked in a guest of MiB");
    let name_size = name.len() + 1;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let header = format!(
        "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}{minor:08x}{name_size:08x}{0:08x}",
        0, 1
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

/// Names and data end on a multiple of four.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The eight hexadecimal digits of header field `index`.
    fn field(archive: &[u8], at: usize, index: usize) -> usize {
        let start = at + 6 + index * 8;
        usize::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
    }

    /// Reads the archive as the kernel does: (name, mode, data).
    fn entries(archive: &[u8]) -> Vec<(String, usize, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let (mode, size, name_size) =
                (field(archive, at, 1), field(archive, at, 6), field(archive, at, 11));
            let name = String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            found.push((name, mode, archive[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
        found
    }

    #[test]
    fn the_archive_holds_the_files_below_their_folders_and_ends_with_the_trailer() {
        let archive = build(&[("init", b"\x7fELF odd length"), ("lib/modules/x.ko", b"")]);
        let entries = entries(&archive);
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["dev", "lib", "lib/modules", "proc", "dev/console", "init", "lib/modules/x.ko", "TRAILER!!!"]
        );
        assert_eq!(entries[5].1, 0o100_755);
        assert_eq!(entries[5].2, b"\x7fELF odd length");
    }
}
