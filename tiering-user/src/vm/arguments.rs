//! Which options a QEMU process was started with. In: its arguments, and the files that `-readconfig` names. Out: the
//! options that matter here, each with its group and its pairs, in QEMU's order. What they mean is `cmdline`'s
//! business.
//!
//! An argument that belongs to an option is never taken for an option itself, whatever it looks like: parts of the text
//! are chosen by the VM's owner, who may also name any number of files: what is read and kept of one process is
//! limited, and beyond that nothing of its RAM is believed.

use std::time::Instant;

use super::options::{Given, Options};
use super::printable;
use super::readconfig::{self, DEADLINE, MOST_BYTES};

/// Options that are kept of one process, sections and pairs of files included. Large VMs have some hundred.
const MOST_OPTIONS: usize = 4096;
/// Files of `-readconfig` that are read.
const MOST_FILES: usize = 16;

/// Options that stand alone (qemu-options.hx, QEMU 4.0 to 10.0); every other one takes the argument behind it.
const FLAGS: [&str; 46] = [
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-kvm-pit",
    "no-kvm-pit-reinjection",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "nouserconfig",
    "old-param",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "tdf",
    "no-tdf",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// All options.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) given: Vec<Given>,
    /// QEMU only answers a question.
    pub(super) query_only: bool,
    /// Why some of them are not known.
    pub(super) unread: Option<String>,
}

/// What may still be read and kept.
#[derive(Debug)]
struct Room {
    options: usize,
    files: usize,
    bytes: usize,
    /// When the first file was begun.
    begun: Option<Instant>,
}

impl Arguments {
    /// Reads the arguments, program name included. `read` gives the text of a `-readconfig` file, or says why it cannot
    /// be had. `None` where an option lacks its value: QEMU does not start then.
    pub(super) fn read(
        arguments: &[String],
        read: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Option<Arguments> {
        let mut all = Arguments::default();
        let mut room = Room { options: MOST_OPTIONS, files: MOST_FILES, bytes: MOST_BYTES, begun: None };
        let mut arguments = arguments.iter().skip(1);
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                continue;
            };
            if FLAGS.contains(&option) {
                all.query_only |= matches!(option, "version" | "help" | "h");
                continue;
            }
            let value = arguments.next()?;
            let done = match option {
                // Where one cannot be read, nothing is gained by the next.
                "readconfig" if all.unread.is_some() => Ok(()),
                "readconfig" => room
                    .read_file(value, read)
                    .map(|sections| all.given.extend(sections))
                    .map_err(|why| format!("{}: {why}", printable(value))),
                "set" => room.take_option().map(|()| all.set(value)),
                _ => Given::of(option, value)
                    .map_or(Ok(()), |given| room.take_option().map(|()| all.given.push(given))),
            };
            if let Err(why) = done {
                all.unread.get_or_insert(why);
            }
        }
        Some(all)
    }

    /// `-set GROUP.ID.KEY=VALUE` changes what was given before.
    fn set(&mut self, text: &str) {
        let parts = || {
            let (place, value) = text.split_once('=')?;
            let (group, rest) = place.split_once('.')?;
            let (id, key) = rest.rsplit_once('.')?;
            Some((group, id, key, value))
        };
        let Some((group, id, key, value)) = parts() else { return };
        let meant = |given: &&mut Given| given.group == group && given.options.get("id") == Some(id);
        if let Some(given) = self.given.iter_mut().find(meant) {
            given.options.set(key, value);
        }
    }
}

impl Room {
    fn take_option(&mut self) -> Result<(), String> {
        self.options =
            self.options.checked_sub(1).ok_or_else(|| format!("more than {MOST_OPTIONS} options"))?;
        Ok(())
    }

    /// The sections of a file.
    fn read_file(
        &mut self,
        path: &str,
        read: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<Vec<Given>, String> {
        self.files = self.files.checked_sub(1).ok_or_else(|| format!("more than {MOST_FILES} files"))?;
        if self.begun.get_or_insert_with(Instant::now).elapsed() > DEADLINE {
            return Err("the files before it took too long".to_owned());
        }
        let text = read(path)?;
        self.bytes = self
            .bytes
            .checked_sub(text.len())
            .ok_or_else(|| format!("all files together are larger than {MOST_BYTES} bytes"))?;
        readconfig::parse(&text, &mut || self.take_option())
    }
}

impl Given {
    fn of(option: &str, value: &str) -> Option<Given> {
        let (group, implied) = match option {
            "m" => ("memory", "size"),
            "M" | "machine" => ("machine", "type"),
            "name" => ("name", "guest"),
            "smbios" => ("smbios", "file"),
            "object" => ("object", "qom-type"),
            "numa" => ("numa", "type"),
            "device" => ("device", "driver"),
            "netdev" => ("netdev", "type"),
            "cpu" => ("cpu", "model"),
            "smp" => ("smp-opts", "cpus"),
            "overcommit" | "realtime" => (option, ""),
            // No pairs: one value.
            "uuid" | "incoming" | "mem-path" => {
                let options = Options::of(vec![("value".to_owned(), value.to_owned())]);
                return Some(Given { group: option.to_owned(), options });
            }
            _ => return None,
        };
        Some(Given { group: group.to_owned(), options: Options::parse(value, implied) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options of a process that names so many files, each with this text, and how many were read.
    fn with_files(count: usize, text: &str) -> (Arguments, usize) {
        let line = format!("kvm{}", " -readconfig /a".repeat(count));
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut reads = 0;
        let all = Arguments::read(&arguments, &mut |_| {
            reads += 1;
            Ok(text.to_owned())
        });
        (all.unwrap(), reads)
    }

    #[test]
    fn what_the_files_of_a_process_cost_is_limited() {
        let (all, reads) = with_files(16, "[memory]\nsize = \"1G\"\n");
        assert_eq!((all.given.len(), all.unread, reads), (16, None, 16));
        let unread = |count, text: &str| {
            let (all, reads) = with_files(count, text);
            assert!(all.given.len() <= MOST_OPTIONS);
            (all.unread.unwrap(), reads)
        };
        assert_eq!(unread(1000, "[a]\n"), ("/a: more than 16 files".to_owned(), 16));
        let (why, reads) = unread(10, &"# nothing\n".repeat(60_000));
        assert_eq!((why.as_str(), reads), ("/a: all files together are larger than 1048576 bytes", 2));
        assert_eq!(unread(3, &"[a]\n".repeat(3000)), ("/a: more than 4096 options".to_owned(), 2));
        assert_eq!(unread(1, &format!("[a]\n{}", "b = \"c\"\n".repeat(4096))).1, 1);
    }

    #[test]
    fn a_flood_of_options_is_not_kept() {
        let line = format!("kvm{}", " -device a -set device.a.b=c".repeat(5000));
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let all = Arguments::read(&arguments, &mut |_| Err("none".to_owned())).unwrap();
        assert_eq!(
            (all.given.len(), all.unread.as_deref()),
            (MOST_OPTIONS / 2, Some("more than 4096 options"))
        );
    }
}
