//! Which options a QEMU process was started with. In: its arguments, and the files that `-readconfig` names. Out: the
//! options that matter here, each with its group and its pairs, in QEMU's order. What they mean is `cmdline`'s
//! business.
//!
//! An argument that belongs to an option is never taken for an option itself, whatever it looks like: parts of the text
//! are chosen by the VM's owner.

use super::options::Options;
use super::printable;
use super::readconfig;

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

/// One option.
#[derive(Debug)]
pub(super) struct Given {
    /// As a section of a `-readconfig` file is called.
    pub(super) group: String,
    pub(super) options: Options,
}

/// All options.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) given: Vec<Given>,
    /// QEMU only answers a question.
    pub(super) query_only: bool,
    /// Why some of them are not known.
    pub(super) unread: Option<String>,
}

impl Arguments {
    /// Reads the arguments, program name included. `read` gives the text of a `-readconfig` file, or says why it cannot
    /// be had. `None` where an option lacks its value: QEMU does not start then.
    pub(super) fn read(
        arguments: &[String],
        read: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Option<Arguments> {
        let mut all = Arguments::default();
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
            match option {
                "readconfig" => all.read_file(value, read),
                "set" => all.set(value),
                _ => all.given.extend(Given::of(option, value)),
            }
        }
        Some(all)
    }

    fn read_file(&mut self, path: &str, read: &mut dyn FnMut(&str) -> Result<String, String>) {
        match read(path).and_then(|text| readconfig::parse(&text)) {
            Ok(sections) => self.given.extend(sections),
            Err(why) => {
                self.unread.get_or_insert_with(|| format!("{}: {why}", printable(path)));
            }
        }
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
