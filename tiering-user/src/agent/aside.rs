//! What the agent's own task does not do itself, because it may hang: opening images and reading ahead in them, reading
//! labels, writing the report, reading page ages.
//!
//! In: look-ups for the [`Helpers`], one kind for each thing that is done. Out: what they found, and what hangs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Error;
use super::helpers::{DEADLINE, Helpers, Spot, Subject};
use super::image_files::open;
use crate::actuate::{VmInfo, read_ahead};
use crate::class::Labels;
use crate::engine::{Ahead, Opened};
use crate::telemetry::RunOptions;
use crate::telemetry::status::Status;
use crate::track::VmId;
use crate::vm::{FileId, NoAges, PageAges, libvirt};

/// A disk with much to do has reads wait.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// How long the last report may take.
const LAST_REPORT: Duration = Duration::from_secs(10);

/// What was found, or done.
#[derive(Debug)]
pub(super) enum Found {
    Image(VmId, FileId, Opened),
    Labels(VmId, Result<Labels, libvirt::LabelError>),
    ReadAhead { device: u64, bytes: u64 },
    Reported(Result<(), Error>),
    PageAges(Result<PageAges, NoAges>),
}

/// The helpers.
pub(super) struct Aside {
    pub files: Helpers,
    pub readers: Helpers,
    /// Used by the scanner.
    pub processes: Helpers,
    pub found: mpsc::UnboundedSender<Found>,
    /// A report is being written.
    pub reporting: bool,
}

impl Aside {
    /// What they find arrives at `found`.
    pub(super) fn new(found: mpsc::UnboundedSender<Found>) -> Self {
        Self {
            files: Helpers::new("tiering-files", DEADLINE),
            readers: Helpers::new("tiering-reader", READ_DEADLINE),
            processes: Helpers::new("tiering-look", DEADLINE),
            found,
            reporting: false,
        }
    }

    /// Opens the image behind this descriptor of a VM.
    pub(super) fn open_image(&self, vm: &VmInfo, id: FileId, fd: i32) {
        let path = Path::new("/proc").join(vm.vm.key.pid.to_string()).join("fd").join(fd.to_string());
        // What the link says is known without a look at the file.
        let name = fs::read_link(&path).unwrap_or_default();
        let subject = Subject {
            what: format!("opening the image {} of {}", name.display(), vm.vm.name),
            without: "nothing of it is read ahead",
        };
        let (vm, found) = (vm.id, self.found.clone());
        self.files.look(Spot::FileSystem(id.device), subject, move || {
            // Who has just ended has none.
            if let Some(opened) = open(&path, id) {
                found.send(Found::Image(vm, id, opened)).ok();
            }
        });
    }

    /// Closes an image. A server that is down may be asked.
    pub(super) fn close_image(&self, name: &str, id: FileId, file: Arc<File>) {
        let subject =
            Subject { what: format!("closing the image {name}"), without: "its descriptor stays in use" };
        self.files.look(Spot::FileSystem(id.device), subject, move || drop(file));
    }

    pub(super) fn read_ahead(&self, ahead: Ahead) {
        let (bytes, found) = (ahead.bytes(), self.found.clone());
        let Ahead { device, name, file, parts } = ahead;
        let subject = Subject {
            what: format!("reading ahead in the image {name}"),
            without: "nothing more of its file system is read ahead",
        };
        self.readers.look(Spot::FileSystem(device), subject, move || {
            read_ahead(&file, &parts);
            found.send(Found::ReadAhead { device, bytes }).ok();
        });
    }

    pub(super) fn read_labels(&self, vm: VmInfo) {
        let found = self.found.clone();
        let subject = Subject {
            what: format!("reading what libvirt says of {} in {}", vm.vm.name, libvirt::STATE_FOLDER),
            without: "labels are not known",
        };
        self.files.look(Spot::Only("libvirt"), subject, move || {
            let labels = libvirt::labels(Path::new(libvirt::STATE_FOLDER), &vm.vm);
            found.send(Found::Labels(vm.id, labels)).ok();
        });
    }

    /// Reads the page ages of these control groups.
    pub(super) fn read_page_ages(&self, groups: BTreeSet<String>) {
        let found = self.found.clone();
        let subject = Subject {
            what: "reading /sys/kernel/debug/lru_gen".to_owned(),
            without: "what can be freed is estimated without page ages",
        };
        self.files.look(Spot::Only("lru_gen"), subject, move || {
            let read = PageAges::read(Path::new("/sys"), Path::new("/proc"), |path| groups.contains(path));
            found.send(Found::PageAges(read)).ok();
        });
    }

    /// Sees to it that nothing waits behind what hangs.
    pub(super) fn tend(&self) {
        self.files.tend();
        self.readers.tend();
    }

    /// What hangs now, each in a line.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        [&self.files, &self.readers, &self.processes].into_iter().flat_map(Helpers::warnings)
    }

    /// Writes the report, if one is asked for, without waiting for it.
    pub(super) fn report(&mut self, status: Arc<Status>, options: &RunOptions) {
        if let Some(path) = options.report.clone().filter(|_| !self.reporting) {
            self.reporting = true;
            let found = self.found.clone();
            self.files.look(Spot::Only("report"), report_subject(&path), move || {
                found.send(Found::Reported(write_report(&status, &path))).ok();
            });
        }
    }

    /// Writes the last report, if one is asked for, and waits for it.
    pub(super) fn last_report(&self, status: Arc<Status>, options: &RunOptions) -> Result<(), Error> {
        let Some(path) = options.report.clone() else { return Ok(()) };
        let (done, written) = std_mpsc::channel();
        let to = path.clone();
        self.files.look(Spot::Only("report"), report_subject(&path), move || {
            done.send(write_report(&status, &to)).ok();
        });
        written
            .recv_timeout(LAST_REPORT)
            .unwrap_or_else(|_| Err(Error::Report { path, source: io::ErrorKind::TimedOut.into() }))
    }
}

/// Writes the status to the report file. A reader never sees half of it.
///
/// # Errors
/// [`Error::Report`].
pub(super) fn write_report(status: &Status, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Report { path: path.to_owned(), source };
    let text = serde_json::to_string_pretty(status).map_err(io::Error::from).map_err(failed)?;
    let new = path.with_extension("new");
    fs::write(&new, text + "\n").and_then(|()| fs::rename(&new, path)).map_err(failed)
}

fn report_subject(path: &Path) -> Subject {
    let what = format!("writing the report {}", path.display());
    Subject { what, without: "it is out of date" }
}
