//! A process that cannot be mistaken for another one that got its number later.
//!
//! The kernel gives a number away again once the process that had it has ended and was waited for; an open pidfd does
//! not keep it.
//!
//! | what acts on the process | goes by |
//! |---|---|
//! | advice | the pidfd |
//! | reading page tables, re-arming | a file below `/proc/PID`, which belongs to the address space it was opened for |
//! | reading and touching memory, moves between nodes | the number, since the calls take nothing else: [`Pidfd::by_number`] looks before and after |
//!
//! # Limits
//! Between the look before a call and the call the process may end and its number go to another one. The kernel hands
//! numbers out in a circle of at least 32,768 (`alloc_pid` in kernel/pid.c, Linux 6.1 to 6.18), so that many processes
//! would have to begin in that moment. The stranger would then have pages moved to another node, or made present: never
//! changed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Pagemap;
use super::pagemap::Held;

/// An open process, with the files of it that are looked at again and again.
#[derive(Debug)]
pub struct Pidfd {
    pid: i32,
    fd: OwnedFd,
    pagemap: OnceLock<Arc<File>>,
    /// Of all that read it.
    held: Arc<Held>,
}

impl Pidfd {
    /// Opens the process with this number.
    ///
    /// # Errors
    /// `ESRCH` if there is none, `EMFILE` or `ENFILE` where there is no descriptor left.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: takes two integers and returns a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: `fd` was just opened by the kernel for us and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { pid, fd, pagemap: OnceLock::new(), held: Arc::default() })
    }

    /// The number it was opened by.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the process still runs (a pidfd becomes readable when it ends).
    pub fn is_alive(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 0 }
    }

    /// Where each of its pages is; opened by the first call.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn pagemap(&self) -> io::Result<Pagemap> {
        let open = || self.open_file("pagemap", OpenOptions::new().read(true)).map(Arc::new);
        let file = once(&self.pagemap, open)?;
        Ok(Pagemap::of(Arc::clone(file), Arc::clone(&self.held)))
    }

    /// Opens one of its files below `/proc`.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` where it has ended; `EACCES` without CAP_SYS_PTRACE; `EMFILE` or `ENFILE`.
    pub fn open_file(&self, name: impl AsRef<Path>, options: &OpenOptions) -> io::Result<File> {
        let path = PathBuf::from("/proc").join(self.pid.to_string()).join(name);
        let file = options.open(path)?;
        // As long as the process lives the number is its own: it was when the file was opened.
        self.check_alive()?;
        Ok(file)
    }

    /// Runs a call that takes the number of the process. What it says of a process that has ended meanwhile counts for
    /// nothing.
    ///
    /// # Errors
    /// `ESRCH` where the process has ended; those of the call.
    pub(super) fn by_number<T>(&self, call: impl FnOnce(i32) -> io::Result<T>) -> io::Result<T> {
        self.check_alive()?;
        let result = call(self.pid);
        self.check_alive()?;
        result
    }

    fn check_alive(&self) -> io::Result<()> {
        if self.is_alive() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn once<T>(cell: &OnceLock<T>, open: impl FnOnce() -> io::Result<T>) -> io::Result<&T> {
    if let Some(opened) = cell.get() {
        return Ok(opened);
    }
    let opened = open()?;
    Ok(cell.get_or_init(|| opened))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::sys::{MoveStatus, Span, move_pages, read_pages, rearm, touch_read, touch_write};

    fn sleeper() -> (Child, Pidfd) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Pidfd::open(child.id().cast_signed()).unwrap();
        (child, process)
    }

    fn end(child: &mut Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The process has ended, and its number has gone to another one: here to this process.
    fn with_a_number_given_away() -> Pidfd {
        let (mut child, process) = sleeper();
        end(&mut child);
        Pidfd { pid: std::process::id().cast_signed(), ..process }
    }

    fn is_gone<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
        matches!(result.map_err(|error| error.raw_os_error()), Err(Some(libc::ESRCH)))
    }

    #[test]
    fn nothing_is_done_to_a_process_that_got_the_number_of_one_that_has_ended() {
        let process = with_a_number_given_away();
        let page = vec![7u8; 4096];
        let address = page.as_ptr() as u64;
        let span = Span { start: address, bytes: 1 };
        assert!(is_gone(process.pagemap()), "pagemap of a stranger");
        assert!(is_gone(touch_read(&process, &[span])));
        assert!(is_gone(touch_write(&process, span)));
        assert!(is_gone(read_pages(&process, &[address], &mut [[0; 4096]])));
        assert!(is_gone::<Vec<MoveStatus>>(move_pages(&process, &[address], 0)));
        assert!(is_gone(rearm(&process)));
    }

    #[test]
    fn files_that_were_opened_show_nothing_after_the_end_of_their_process() {
        let (mut child, process) = sleeper();
        process.pagemap().unwrap();
        end(&mut child);
        assert!(!process.is_alive());
        assert!(process.pagemap().unwrap().read(0x1000, 1).is_err());
        assert!(is_gone(touch_read(&process, &[Span { start: 0x1000, bytes: 1 }])));
    }

    #[test]
    fn a_call_during_which_the_process_ends_has_told_nothing() {
        let (mut child, process) = sleeper();
        let told = process.by_number(|_| {
            end(&mut child);
            Ok("of whom?")
        });
        assert!(is_gone(told));
    }
}
