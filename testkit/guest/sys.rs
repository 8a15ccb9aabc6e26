//! The few things that need the kernel: memory without huge pages, a file as memory, a load that really happens, the
//! clock, file systems, the loopback, switching off.

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::chroot;
use std::fs::File;
use std::io::Error;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;
use tiering_testkit::content::Page;
use tiering_testkit::pattern::PAGE_BYTES;

/// Maps zeroed anonymous memory of its own, never to be unmapped, in small pages.
pub fn map_pages(pages: usize) -> Result<&'static mut [Page]> {
    const { assert!(size_of::<Page>() == PAGE_BYTES) }
    ensure!(pages > 0, "a pattern without memory");
    let bytes = pages * PAGE_BYTES;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    ensure!(start != libc::MAP_FAILED, "mapping {bytes} bytes: {}", Error::last_os_error());
    // SAFETY: the range is the mapping made above; the advice changes no content.
    let advised = unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
    // EINVAL means a kernel without huge pages: nothing to switch off.
    let refused = advised != 0 && Error::last_os_error().raw_os_error() != Some(libc::EINVAL);
    ensure!(!refused, "switching huge pages off: {}", Error::last_os_error());
    // SAFETY: the mapping is page-aligned, zeroed (valid integers), `bytes` long, stays for ever, and nothing else
    // refers to it.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), pages) })
}

/// Maps the pages of a file of the initramfs to be read, never to be unmapped.
pub fn map_file(file: &File, pages: usize) -> Result<&'static [Page]> {
    ensure!(pages > 0, "a file without pages");
    let bytes = pages * PAGE_BYTES;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this process.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    ensure!(start != libc::MAP_FAILED, "mapping {bytes} bytes: {}", Error::last_os_error());
    // SAFETY: the mapping is page-aligned, any bytes are valid integers, it is `bytes` long and stays for ever. The
    // file has that many bytes, as the caller looked up, and init, the guest's only process, neither writes nor
    // truncates it.
    Ok(unsafe { std::slice::from_raw_parts(start.cast(), pages) })
}

/// The monotonic clock.
pub fn now() -> Duration {
    // It fails for clocks that do not exist only.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Loads a word: not optimised away, and not moved past the clock.
pub fn load(word: &u64) {
    // SAFETY: a reference is valid to read from.
    let _ = unsafe { std::ptr::from_ref(word).read_volatile() };
}

/// Stores a word: not optimised away, and not moved past the clock.
pub fn store(word: &mut u64, value: u64) {
    // SAFETY: a mutable reference is valid to write to.
    unsafe { std::ptr::from_mut(word).write_volatile(value) };
}

/// Mounts a file system of the kernel.
pub fn mount(kind: &str, folder: &Path) -> Result<()> {
    let nothing: Option<&str> = None;
    nix::mount::mount(Some(kind), folder, Some(kind), MsFlags::empty(), nothing)
        .with_context(|| format!("mounting {}", folder.display()))
}

/// Makes the ext4 file system of a disk the root, which can be written to.
pub fn enter_disk(disk: &Path) -> Result<()> {
    let root = Path::new("/disk");
    std::fs::create_dir(root).context("creating /disk")?;
    let nothing: Option<&str> = None;
    nix::mount::mount(Some(disk), root, Some("ext4"), MsFlags::MS_NOATIME, nothing).with_context(|| {
        format!("mounting {}: have kernel and modules virtio_blk and ext4?", disk.display())
    })?;
    for (kind, folder) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev")] {
        mount(kind, &root.join(folder))?;
    }
    let shared = root.join("dev/shm");
    std::fs::create_dir(&shared).context("creating /dev/shm")?;
    mount("tmpfs", &shared)?;
    chroot(root).context("changing the root")?;
    std::env::set_current_dir("/").context("going to the new root")
}

/// Switches the network of the machine itself on.
pub fn loopback_up() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("a socket")?;
    // SAFETY: zero is valid for all of its integers and bytes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP)?;
    // SAFETY: the request is one of an interface, with a name that ends with a zero, and lives during the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    ensure!(done == 0, "switching the loopback on: {}", Error::last_os_error());
    Ok(())
}

/// Switches the machine off. As process 1 there is nothing else left to do.
pub fn power_off() -> ! {
    // SAFETY: no arguments but the command; no memory is involved.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    // Only without the right to do it; init must not return.
    std::process::exit(1)
}
