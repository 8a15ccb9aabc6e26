//! The ways to attach a program to an event of the kernel.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::{BtfTracePoint, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{TRACEFS_MAGIC, statfs};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachKind {
    /// BTF-typed tracepoint.
    TpBtf,
    /// Raw tracepoint: needs no BTF.
    Raw,
    /// Classic tracepoint: needs tracefs.
    Classic,
}

/// The attach kinds in order of preference.
pub const PROBE_ATTACH_KINDS: [AttachKind; 3] = [AttachKind::TpBtf, AttachKind::Raw, AttachKind::Classic];

impl AttachKind {
    /// As `status` and `doctor` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Raw => "raw tracepoint",
            Self::Classic => "classic tracepoint",
        }
    }

    /// Loads `program` and attaches it to `event`. Only classic tracepoints have a category.
    pub(super) fn attach(
        self,
        ebpf: &mut Ebpf,
        program: &str,
        category: &str,
        event: &str,
    ) -> Result<(), String> {
        // aya remembers for the life of the process that it found no tracefs: it must never look without it.
        let _tracefs = (self == Self::Classic).then(Tracefs::mounted).transpose()?;
        let attached = (|| -> Result<(), ProgramError> {
            let program = ebpf.program_mut(program).ok_or(ProgramError::NotLoaded)?;
            match self {
                Self::TpBtf => {
                    let program: &mut BtfTracePoint = program.try_into()?;
                    program.load(event, &Btf::from_sys_fs()?)?;
                    program.attach()?;
                }
                Self::Raw => {
                    let program: &mut RawTracePoint = program.try_into()?;
                    program.load()?;
                    program.attach(event)?;
                }
                Self::Classic => {
                    let program: &mut TracePoint = program.try_into()?;
                    program.load()?;
                    program.attach(category, event)?;
                }
            }
            Ok(())
        })();
        attached.map_err(|error| match &error {
            ProgramError::LoadError { io_error, verifier_log } => {
                refusal(io_error, &verifier_log.to_string())
            }
            _ => chain(&error),
        })
    }
}

/// A program and the event that it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub program: &'static str,
    pub category: &'static str,
    pub event: &'static str,
}

impl AttachKind {
    /// Attaches all of these programs or none: half of an attach kind would count everything twice beside the next one.
    pub(super) fn attach_all(self, ebpf: &mut Ebpf, set: &[Attachment]) -> Result<(), String> {
        let attached = set.iter().try_for_each(|one| self.attach(ebpf, one.program, one.category, one.event));
        if attached.is_err() {
            set.iter().for_each(|one| self.unload(ebpf, one.program));
        }
        attached
    }

    fn unload(self, ebpf: &mut Ebpf, program: &str) {
        let unloaded = ebpf.program_mut(program).map(|program| match self {
            Self::TpBtf => <&mut BtfTracePoint>::try_from(program)?.unload(),
            Self::Raw => <&mut RawTracePoint>::try_from(program)?.unload(),
            Self::Classic => <&mut TracePoint>::try_from(program)?.unload(),
        });
        // An error means that it is not loaded: what we want.
        drop(unloaded);
    }
}

/// What the kernel says of the fields of an event.
pub(super) fn format(category: &str, event: &str) -> Result<String, String> {
    let _tracefs = Tracefs::mounted()?;
    let path = Path::new(Tracefs::PATH).join("events").join(category).join(event).join("format");
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// tracefs, mounted. What this value has mounted is unmounted when it is dropped; what is attached stays so.
struct Tracefs {
    is_ours: bool,
}

impl Tracefs {
    const PATH: &str = "/sys/kernel/tracing";

    fn mounted() -> Result<Self, String> {
        if statfs(Self::PATH).is_ok_and(|fs| fs.filesystem_type() == TRACEFS_MAGIC) {
            return Ok(Self { is_ours: false });
        }
        let mounted = mount(Some("tracefs"), Self::PATH, Some("tracefs"), MsFlags::empty(), None::<&str>);
        mounted.map_err(|error| format!("cannot mount tracefs at {}: {error}", Self::PATH))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if self.is_ours {
            // Busy means that somebody else uses it by now.
            umount(Self::PATH).ok();
        }
    }
}

/// Why the kernel does not load a program: the last line of the verifier's log that is not one of its statistics.
fn refusal(error: &io::Error, log: &str) -> String {
    let told = |line: &&str| {
        let statistics = ["processed ", "verification time ", "stack depth "];
        !line.trim().is_empty() && !statistics.iter().any(|start| line.starts_with(start))
    };
    match log.lines().rfind(told) {
        Some(line) => format!("the kernel refuses it: {}", line.trim()),
        None => format!("the kernel refuses it: {error}"),
    }
}

/// The first line of an error and of all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::OBJECT;

    #[test]
    fn of_a_set_of_which_one_cannot_be_attached_none_stays_attached() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let mut ebpf = Ebpf::load(OBJECT).unwrap();
        let there = Attachment { program: "fault_user_raw", category: "", event: "page_fault_user" };
        let missing = Attachment { program: "fault_kern_raw", category: "", event: "no_such_event" };
        let is_loaded = |ebpf: &Ebpf| ebpf.program(there.program).unwrap().fd().is_ok();
        AttachKind::Raw.attach_all(&mut ebpf, &[there, missing]).unwrap_err();
        assert!(!is_loaded(&ebpf));
        // Nothing is in the way of another try.
        AttachKind::Raw.attach_all(&mut ebpf, &[there]).unwrap();
        assert!(is_loaded(&ebpf));
    }

    #[test]
    fn a_refusal_is_told_by_what_the_verifier_said_last() {
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let log = "0: R1=ctx() R10=fp0\n0: (85) call bpf_probe_read_kernel#113\n\
                   unknown func bpf_probe_read_kernel#113\n\
                   processed 1 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(refusal(&error, log), "the kernel refuses it: unknown func bpf_probe_read_kernel#113");
        assert_eq!(refusal(&error, ""), "the kernel refuses it: Invalid argument (os error 22)");
    }
}
