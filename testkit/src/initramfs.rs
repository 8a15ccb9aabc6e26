//! An initramfs: executables, and a console.
//!
//! In: the names and bytes of the files, one of them a static `init`. Out: an uncompressed cpio archive in the "newc"
//! format (kernel `Documentation/driver-api/early-userspace/buffer-format.rst`), which is all the kernel needs.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// A file of an archive.
pub struct File<'a> {
    pub name: &'a str,
    pub bytes: u64,
    /// Writes exactly that many bytes.
    pub write: &'a dyn Fn(&mut dyn Write) -> io::Result<()>,
}

/// An archive with these files, as [`write()`] makes it.
///
/// # Panics
/// Where a file is 4 GiB or more, which the format cannot hold.
#[must_use]
pub fn build(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive =
        Vec::with_capacity(files.iter().map(|(_, data)| data.len() + 256).sum::<usize>() + 1024);
    let writers: Vec<_> =
        files.iter().map(|(_, data)| move |out: &mut dyn Write| out.write_all(data)).collect();
    let with_writers = files.iter().zip(&writers);
    let files: Vec<_> =
        with_writers.map(|((name, data), write)| File { name, bytes: data.len() as u64, write }).collect();
    write(&mut archive, &files).expect("a vector takes all, and each file has its length");
    archive
}

/// Writes an archive with these files in this order, all executable, behind the folders they are in, `/dev/console`
/// (the kernel opens it for init) and the empty folders that init mounts on.
///
/// # Errors
/// What `out` or a file fails with, or a file of 4 GiB or more, which the format cannot hold.
pub fn write(out: &mut dyn Write, files: &[File<'_>]) -> io::Result<()> {
    let mut folders = vec!["dev", "proc"];
    for file in files {
        let parents = file.name.match_indices('/').map(|(end, _)| &file.name[..end]);
        folders.extend(parents);
    }
    folders.sort_unstable();
    folders.dedup();
    let nothing = |_: &mut dyn Write| Ok(());
    let empty = |name| File { name, bytes: 0, write: &nothing };
    let folders = folders.into_iter().map(|name| (empty(name), DIRECTORY, (0, 0)));
    let console = [(empty("dev/console"), CHARACTER_DEVICE, (5, 1))];
    let files = files.iter().map(|file| (File { ..*file }, EXECUTABLE, (0, 0)));
    let end = [(empty("TRAILER!!!"), 0, (0, 0))];
    for (number, (file, mode, device)) in folders.chain(console).chain(files).chain(end).enumerate() {
        entry(out, number, &file, mode, device)?;
    }
    Ok(())
}

fn entry(
    out: &mut dyn Write,
    number: usize,
    file: &File<'_>,
    mode: u32,
    (major, minor): (u32, u32),
) -> io::Result<()> {
    let size = u32::try_from(file.bytes).map_err(io::Error::other)?;
    let name_size = file.name.len() + 1;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let header = format!(
        "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}{minor:08x}{name_size:08x}{0:08x}",
        0, 1
    );
    out.write_all(header.as_bytes())?;
    out.write_all(file.name.as_bytes())?;
    out.write_all(&[0])?;
    pad(out, (header.len() + name_size) as u64)?;
    (file.write)(out)?;
    pad(out, file.bytes)
}

/// Names and data end on a multiple of four.
fn pad(out: &mut dyn Write, written: u64) -> io::Result<()> {
    let missing = written.next_multiple_of(4) - written;
    out.write_all(&[0; 3][..usize::try_from(missing).unwrap_or(0)])
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
