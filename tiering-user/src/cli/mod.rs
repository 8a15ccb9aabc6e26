//! The command line: arguments in, one call per command, text or JSON out.
//!
//! In: the process's arguments. Out: text on standard output, or a [`Failure`] with a sysexits code and one
//! line that says what is wrong and what to do. Not here: any work; the agent, the host's probes and the
//! control socket's client do it.

mod commands;
mod explain;
mod failure;
mod profile;
mod render;
mod savings;
mod similar;
mod table;
mod trace;
mod units;

use std::io::IsTerminal as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::config::Config;
use crate::telemetry::explain::Address;
use crate::telemetry::request::{Pages, parse_number, parse_range};

pub use failure::Failure;

/// Read where no `--config` is given, if it exists.
pub const DEFAULT_CONFIG: &str = "/etc/tiering/tiering.toml";

/// Memory tiering for VMs: keeps the memory that VMs need in fast tiers, and the rest below.
#[derive(Debug, Parser)]
#[command(name = "tiering", version)]
struct Cli {
    /// Configuration file [default: /etc/tiering/tiering.toml if it exists, else built-in defaults]
    #[arg(long, global = true, value_name = "F")]
    config: Option<PathBuf>,
    /// Control socket [default: as configured]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<String>,
    /// Log more, twice for everything; RUST_LOG is finer
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground
    Run {
        /// Plan and report, but move nothing
        #[arg(long)]
        dry_run: bool,
        /// Stop after this time, such as 60s
        #[arg(long, value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
        /// Write the status there as JSON, every 10 s and at the end
        #[arg(long, value_name = "F.json")]
        report: Option<PathBuf>,
    },
    /// Show what this host offers, what is missing, and what is lost by it
    Doctor(Output),
    /// Show tiers, VMs, event accounting and access sources
    Status(Output),
    /// Show VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// Show in which tier each page of a VM is
    Map {
        /// Name, UUID, pid or NAMESPACE/NAME
        vm: String,
        #[command(flatten)]
        pages: WhichPages,
        #[command(flatten)]
        output: Output,
    },
    /// Say why a VM, or one page of it, is where it is, and what comes next
    Explain {
        /// Name, UUID, pid or NAMESPACE/NAME
        vm: String,
        #[command(flatten)]
        page: OnePage,
        #[command(flatten)]
        output: Output,
    },
    /// Show how alike VMs are, and what that follows from
    Similar {
        /// Only this one and those it may learn from: name, UUID, pid or NAMESPACE/NAME
        vm: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Move pages of a VM to a tier
    Move {
        /// Name, UUID, pid or NAMESPACE/NAME
        vm: String,
        /// Name of the tier
        #[arg(long, value_name = "TIER")]
        to: String,
        #[command(flatten)]
        range: AddressRange,
        #[command(flatten)]
        output: Output,
    },
    /// Bring all pages of a tier up and switch it off
    Drain {
        /// Name of the tier
        tier: String,
        #[command(flatten)]
        output: Output,
    },
    /// Write down what happens to the memory of VMs, until Ctrl-C: accesses, moves; never contents
    Record {
        /// The trace
        #[arg(short, long, value_name = "F")]
        output: PathBuf,
        /// Only this VM; may be given more than once
        #[arg(long, value_name = "VM")]
        vm: Vec<String>,
        /// Stop after this time, such as 60s
        #[arg(long, value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
    },
    /// Say what the policy would have done with what was recorded, under this configuration
    Replay {
        /// The trace
        trace: PathBuf,
        /// Write each decision there, a line each
        #[arg(long, value_name = "F")]
        decisions: Option<PathBuf>,
        /// Write each VM's profile at the end of each epoch there, as a row of CSV
        #[arg(long, value_name = "F")]
        epochs: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// One line a VM
    List(Output),
    /// Everything about one VM
    Show {
        /// Name, UUID, pid or NAMESPACE/NAME
        vm: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration can be used
    Check,
    /// Print the effective configuration, defaults included
    Show(Output),
}

#[derive(Debug, Clone, Copy, Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct AddressRange {
    /// Only these host-virtual addresses, such as 0x7f0000000000..0x7f0000200000
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    hva: Option<Range<u64>>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct WhichPages {
    /// Only these host-virtual addresses, such as 0x7f0000000000..0x7f0000200000
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    hva: Option<Range<u64>>,
    /// Only these guest-physical addresses, such as 0..0x200000
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    gpa: Option<Range<u64>>,
    /// Only the page with this page frame number
    #[arg(long, value_name = "N", value_parser = parse_number)]
    pfn: Option<u64>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct OnePage {
    /// The page at this host-virtual address
    #[arg(long, value_name = "A", value_parser = parse_number)]
    hva: Option<u64>,
    /// The page at this guest-physical address
    #[arg(long, value_name = "A", value_parser = parse_number)]
    gpa: Option<u64>,
}

impl OnePage {
    fn address(&self) -> Option<Address> {
        self.hva.map(Address::Hva).or(self.gpa.map(Address::Gpa))
    }
}

impl WhichPages {
    fn pages(&self) -> Pages {
        let hva = self.hva.clone().map(Pages::Hva);
        hva.or(self.gpa.clone().map(Pages::Gpa)).or(self.pfn.map(Pages::Frame)).unwrap_or_default()
    }
}

impl Cli {
    /// The configuration this command works with, and the name to report it under.
    fn load_config(&self) -> Result<(Config, String), Failure> {
        let default = Path::new(DEFAULT_CONFIG);
        let (mut config, origin) = match &self.config {
            Some(path) => (Config::load(path)?, path.display().to_string()),
            // A folder that may not be searched must not pass for one without the file.
            None if default.try_exists().unwrap_or(true) => {
                (Config::load(default)?, DEFAULT_CONFIG.to_owned())
            }
            None => (Config::default(), "built-in defaults".to_owned()),
        };
        if let Some(socket) = &self.socket {
            config.agent.socket = PathBuf::from(socket);
        }
        Ok((config, origin))
    }
}

/// Runs the command that the process's arguments name.
///
/// # Errors
/// A [`Failure`], for `main` to print and exit with.
pub fn main() -> Result<(), Failure> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::from_clap(&error),
    };
    log_to_stderr(&cli);
    commands::run(&cli)
}

fn log_to_stderr(cli: &Cli) {
    let level = match (cli.verbose, &cli.command) {
        (0, Command::Run { .. }) => LevelFilter::INFO,
        (0, _) => LevelFilter::WARN,
        (1, _) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(level));
    // Colours for a person, not for a journal.
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    tracing_subscriber::registry().with(lines).with(filter).init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_read_wherever_they_stand() {
        let cli = Cli::try_parse_from([
            "tiering",
            "--socket",
            "/s",
            "map",
            "db",
            "--hva",
            "0x0..0x1000",
            "--json",
            "-vv",
        ])
        .unwrap();
        assert_eq!((cli.socket.as_deref(), cli.verbose), (Some("/s"), 2));
        let Command::Map { vm, pages, output } = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!((vm.as_str(), pages.pages(), output.json), ("db", Pages::Hva(0..0x1000), true));
    }

    #[test]
    fn the_socket_on_the_command_line_beats_the_configured_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        std::fs::write(&file, "[agent]\nsocket = \"/from/file\"").unwrap();
        let load = |more: &[&str]| {
            let arguments = ["tiering", "status", "--config", file.to_str().unwrap()];
            let cli = Cli::try_parse_from(arguments.iter().chain(more)).unwrap();
            cli.load_config().unwrap().0.agent.socket
        };
        assert_eq!(load(&[]), Path::new("/from/file"));
        assert_eq!(load(&["--socket", "/from/flag"]), Path::new("/from/flag"));
    }
}
