//! Where a guest's pages are, seen from the outside: by their content, which owes nothing to the agent or the guest's
//! kernel.
//!
//! In: a process, its guest RAM, a pattern. Out: the address in the process of each page of the pattern. Reading
//! through /proc/PID/mem is an access like any other: it brings back what is in swap, and gives pages to shared RAM
//! where there were none. So locate first, and move pages afterwards.
//!
//! Limits: page size 4 KiB; a guest that writes meanwhile may have pages that are not found.

use crate::content::{self, Page, WORDS};
use crate::pattern::{PAGE_BYTES, Pattern};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Pages read at once.
const BATCH: usize = 512;

/// Where the pages of a pattern are in `ram`, a range of addresses in a process: address by page number, whatever
/// version a page is. Pages that are not found are not in it; whether all are needed is for the caller.
///
/// # Errors
/// Where the memory cannot be read, or a page is there twice: then its content does not tell where it is.
pub fn locate(pid: u32, ram: Range<u64>, pattern: &Pattern) -> Result<HashMap<usize, u64>> {
    let path = format!("/proc/{pid}/mem");
    let memory = File::open(&path).with_context(|| format!("opening {path}"))?;
    let known = Known::new(pattern);
    let mut found = HashMap::new();
    let mut bytes = vec![0; BATCH * PAGE_BYTES];
    for batch in ram.clone().step_by(BATCH * PAGE_BYTES) {
        let wanted = bytes.len().min(usize::try_from(ram.end - batch)?);
        let bytes = &mut bytes[..wanted];
        memory.read_exact_at(bytes, batch).with_context(|| format!("reading {path} at {batch:#x}"))?;
        for (hva, page) in (batch..).step_by(PAGE_BYTES).zip(bytes.chunks_exact(PAGE_BYTES)) {
            let Some(number) = known.number(page) else { continue };
            if let Some(other) = found.insert(number, hva) {
                bail!("page {number} is at {other:#x} and at {hva:#x} of process {pid}: which one is used?");
            }
        }
    }
    Ok(found)
}

/// The only mapping that can be RAM of a guest: not inherited by children (QEMU says so of RAM), not executable (unlike
/// QEMU's buffer for emulation), of the guest's size.
///
/// # Errors
/// Where there is none, or more than one.
pub fn ram(pid: u32, memory_mib: u32) -> Result<Range<u64>> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let found = ram_of(&smaps, u64::from(memory_mib) << 20);
    ensure!(
        found.len() == 1,
        "process {pid} has {} mappings that could be its {memory_mib} MiB of RAM: {found:x?}",
        found.len()
    );
    Ok(found[0].clone())
}

fn ram_of(smaps: &str, bytes: u64) -> Vec<Range<u64>> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut mapping = 0..0;
    let mut found = Vec::new();
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-').and_then(|(a, b)| Some((hex(a)?, hex(b)?))) {
            mapping = start..end;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split_whitespace().any(|other| other == flag);
            if has("dc") && !has("ex") && mapping.end - mapping.start == bytes {
                found.push(mapping.clone());
            }
        }
    }
    found
}

/// The pages that are looked for, by the half of their identity that versions do not change.
struct Known<'a> {
    pattern: &'a Pattern,
    by_half: HashMap<u64, Vec<usize>>,
}

impl<'a> Known<'a> {
    fn new(pattern: &'a Pattern) -> Self {
        let mut by_half: HashMap<_, Vec<_>> = HashMap::with_capacity(pattern.pages());
        for number in 0..pattern.pages() {
            let identity = content::identity(pattern.content_seed(number), number);
            by_half.entry(identity >> 32).or_default().push(number);
        }
        Self { pattern, by_half }
    }

    /// The number of the page that these bytes are.
    fn number(&self, bytes: &[u8]) -> Option<usize> {
        let mut words =
            bytes.chunks_exact(size_of::<u64>()).map(|word| word.try_into().map(u64::from_ne_bytes));
        let first = words.next()?.ok().filter(|word| *word != 0)?;
        let versions = content::identities(first).into_iter().flat_map(|identity| {
            let numbers = self.by_half.get(&(identity >> 32)).into_iter().flatten().copied();
            numbers.filter_map(move |number| Some((self.version(number, identity)?, number)))
        });
        // The smallest: a page of content looks like some version of another page as well, which is about two billion
        // then. Of sets of 40,000 pages one in three has such a page.
        let (version, number) = versions.min()?;
        holds(bytes, self.pattern.content_seed(number), number, version).then_some(number)
    }

    fn version(&self, number: usize, identity: u64) -> Option<u32> {
        u32::try_from(identity ^ content::identity(self.pattern.content_seed(number), number)).ok()
    }
}

fn holds(bytes: &[u8], seed: u64, number: usize, version: u32) -> bool {
    let mut page: Page = [0; WORDS];
    for (word, bytes) in page.iter_mut().zip(bytes.chunks_exact(size_of::<u64>())) {
        *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
    }
    content::holds(&page, seed, number, version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Access;

    /// Pages of a pattern, shuffled, at a page boundary of this process.
    fn memory(pattern: &Pattern, numbers: &[(usize, u32)]) -> (Vec<Page>, Range<u64>) {
        let mut pages: Vec<Page> = vec![[0; WORDS]; numbers.len() + 1];
        let address = pages.as_ptr().addr();
        let skip = (address.next_multiple_of(PAGE_BYTES) - address) / size_of::<u64>();
        for (at, (number, version)) in numbers.iter().enumerate() {
            let words = &mut pages.as_flattened_mut()[skip + at * WORDS..][..WORDS];
            content::fill(words.try_into().unwrap(), pattern.content_seed(*number), *number, *version);
        }
        let start = address.next_multiple_of(PAGE_BYTES) as u64;
        (pages, start..start + (numbers.len() * PAGE_BYTES) as u64)
    }

    #[test]
    fn pages_are_found_by_content_in_any_order_and_version() {
        let access = Access::Follow { set_mib: 1, order_seed: 3, overlap_percent: 50 };
        let pattern = Pattern { mem_mib: 2, access, ..Pattern::default() };
        let numbers: Vec<_> = (0..500).map(|at| ((at * 7) % 512, u32::try_from(at * at).unwrap())).collect();
        let (_pages, ram) = memory(&pattern, &numbers);
        let found = locate(std::process::id(), ram.clone(), &pattern).unwrap();
        assert_eq!(found.len(), 500);
        for (at, (number, _)) in (0..).zip(&numbers) {
            assert_eq!(found[number], ram.start + at * PAGE_BYTES as u64);
        }
        let other = Pattern { seed: 8, access: Access::Idle, ..pattern };
        assert!(locate(std::process::id(), ram, &other).unwrap().is_empty());
    }

    #[test]
    fn a_page_that_looks_like_a_late_version_of_another_is_told_from_it() {
        // Some page of this set has the content of a version of page 3781.
        let pattern = Pattern { mem_mib: 40, access: Access::Idle, ..Pattern::default() };
        let numbers: Vec<_> = (0..pattern.pages()).map(|number| (number, 0)).collect();
        let (_pages, ram) = memory(&pattern, &numbers);
        assert_eq!(locate(std::process::id(), ram, &pattern).unwrap().len(), pattern.pages());
    }

    #[test]
    fn a_page_that_is_there_twice_is_an_error() {
        let pattern = Pattern { mem_mib: 2, access: Access::Idle, ..Pattern::default() };
        let (_pages, ram) = memory(&pattern, &[(5, 0), (6, 0), (5, 1)]);
        let error = locate(std::process::id(), ram, &pattern).unwrap_err().to_string();
        assert!(error.starts_with("page 5 is at"), "{error}");
    }

    #[test]
    fn ram_is_the_mapping_of_its_size_that_children_do_not_inherit() {
        let smaps = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0\nRss: 4 kB\nVmFlags: rd wr mr mw me dc ac sd\n\
7f1000000000-7f1000200000 rwxp 00000000 00:00 0\nVmFlags: rd wr ex mr mw me dc ac sd\n\
7f2000000000-7f2000200000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me ac sd\n\
7f3000000000-7f3000100000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me dc ac sd\n";
        let found = ram_of(smaps, 2 << 20);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0], 0x7f00_0000_0000..0x7f00_0020_0000);
    }
}
