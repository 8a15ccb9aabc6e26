//! What the agent's own task does not do itself, because it may hang: opening images and reading ahead in them, reading
//! labels, writing the report, reading page ages.
//!
//! In: look-ups for the [`Helpers`], one kind for each thing that is done. Out: what they found; and all that keeps the
//! agent from a part of its work now, in words for the status.

use std::path::Path;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Error;
use super::descriptors::check_room;
use super::helpers::{DEADLINE, Helpers, Spot, Subject};
use super::images::Opened;
use super::report;
use super::state::State;
use crate::bpf::Faults;
use crate::class::Labels;
use crate::sys;
use crate::telemetry::RunOptions;
use crate::telemetry::status::Status;
use crate::track::VmId;
use crate::vm::{FileId, NoAges, PageAges, libvirt};

/// A disk with much to do has reads wait.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// A lane may be at one job for so long.
const JOB_DEADLINE: Duration = Duration::from_mins(1);
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
    reporting: bool,
    /// Why processes could not be looked at, as the scanner says.
    pub not_looked_at: Vec<String>,
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
            not_looked_at: Vec::new(),
        }
    }

    /// Writes the report, if one is asked for, without waiting for it.
    pub(super) fn report(&mut self, status: Arc<Status>, options: &RunOptions) {
        if let Some(path) = options.report.clone().filter(|_| !self.reporting) {
            self.reporting = true;
            let found = self.found.clone();
            self.files.look(Spot::Only("report"), report_subject(&path), move || {
                found.send(Found::Reported(report::write(&status, &path))).ok();
            });
        }
    }

    /// Writes the last report, if one is asked for, and waits for it.
    pub(super) fn last_report(&self, status: Arc<Status>, options: &RunOptions) -> Result<(), Error> {
        let Some(path) = options.report.clone() else { return Ok(()) };
        let (done, written) = std_mpsc::channel();
        let to = path.clone();
        self.files.look(Spot::Only("report"), report_subject(&path), move || {
            done.send(report::write(&status, &to)).ok();
        });
        written
            .recv_timeout(LAST_REPORT)
            .unwrap_or_else(|_| Err(Error::Report { path, source: std::io::ErrorKind::TimedOut.into() }))
    }
}

fn report_subject(path: &Path) -> Subject {
    let what = format!("writing the report {}", path.display());
    Subject { what, without: "it is out of date" }
}

impl State {
    pub(super) fn on_found(&mut self, found: Found, faults: &mut Faults) {
        match found {
            Found::Image(vm, id, opened) => self.join_image(vm, id, Some(opened), faults),
            Found::Labels(vm, labels) => self.on_labels(vm, labels),
            Found::ReadAhead { device, bytes } => self.images.done(device, bytes),
            Found::PageAges(read) => self.on_page_ages(read),
            Found::Reported(result) => {
                self.aside.reporting = false;
                if let Err(error) = result {
                    tracing::warn!(%error, "trying again in {} s", super::REPORT_EVERY.as_secs());
                }
            }
        }
    }

    /// Tries again what could not be done, and sees to it that nothing waits behind what hangs.
    pub(super) fn tend(&mut self, faults: &mut Faults) {
        self.aside.files.tend();
        self.aside.readers.tend();
        for vm in self.left_out.machines() {
            let key = vm.key;
            self.admit(vm, faults);
            // What the first one lacks the others lack too.
            if self.left_out.has(key) && check_room().is_err() {
                break;
            }
        }
    }

    /// What keeps the agent from a part of its work now, each in a line.
    pub(super) fn hindrances(&self) -> Vec<String> {
        let now = sys::now();
        let busy = self.lanes.busy().into_iter().chain(self.sweeper.busy());
        let busy = busy.filter(|job| now.since(job.since) > JOB_DEADLINE);
        let busy = busy.map(|job| {
            let seconds = now.since(job.since).as_secs();
            format!("{} takes {seconds} s so far: meanwhile nothing else of that kind is done", job.what)
        });
        let Aside { files, readers, processes, not_looked_at, .. } = &self.aside;
        let hanging = [files, readers, processes].into_iter().flat_map(Helpers::warnings);
        hanging.chain(not_looked_at.iter().cloned()).chain(self.left_out.warnings()).chain(busy).collect()
    }
}
