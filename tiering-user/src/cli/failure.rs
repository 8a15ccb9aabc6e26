//! Every way the command line can fail, as an exit code and one line.
//!
//! In: the errors of all parts. Out: a [`Failure`]; codes follow sysexits(3). Not here: printing it.

use std::fmt;
use std::io;

use clap::error::ErrorKind;

use crate::agent;
use crate::config;
use crate::telemetry::client::ClientError;
use crate::telemetry::request::ApiError;

/// The arguments make no sense.
pub const USAGE: u8 = 64;
/// What is needed is not there: no agent, or it says no.
pub const UNAVAILABLE: u8 = 69;
/// A fault of the program itself.
pub const INTERNAL: u8 = 70;
/// A file cannot be read or written.
pub const IO: u8 = 74;
/// Permission is missing.
pub const NO_PERMISSION: u8 = 77;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the process to exit with.
    pub code: u8,
    /// One line: what is wrong and what to do.
    pub message: String,
}

impl Failure {
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        let code = match &error {
            config::Error::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                NO_PERMISSION
            }
            config::Error::Read { .. } | config::Error::Invalid { .. } => CONFIG,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Denied { .. } => NO_PERMISSION,
            ClientError::Agent(ApiError::NotFound(_) | ApiError::BadRequest(_)) => USAGE,
            ClientError::NoAgent { .. }
            | ClientError::Connect { .. }
            | ClientError::Broken(_)
            | ClientError::Agent(ApiError::Refused(_) | ApiError::Unavailable(_)) => UNAVAILABLE,
            ClientError::Unreadable(_) => INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

impl From<agent::Error> for Failure {
    fn from(error: agent::Error) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

/// Help and version are printed and are no failure; a usage error becomes one line.
pub(super) fn from_clap(error: &clap::Error) -> Result<(), Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe is the reader's choice.
            let _ = error.print();
            Ok(())
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::new(USAGE, "a command is missing: `tiering --help` lists them"))
        }
        _ => Err(Failure::new(USAGE, usage_line(&error.to_string()))),
    }
}

/// clap's message, which ends where its usage text begins, on one line.
fn usage_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let message = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let message = message.collect::<Vec<_>>().join(" ");
    format!("{}: see `tiering --help`", message.strip_prefix("error: ").unwrap_or(&message))
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use crate::config::Config;
    use clap::Parser;

    #[test]
    fn a_usage_error_is_one_line_that_names_what_is_wrong() {
        let cases: [(&[&str], &str); 8] = [
            (&["tiering"], "a command is missing"),
            (&["tiering", "vm"], "a command is missing"),
            (&["tiering", "flush"], "flush"),
            (&["tiering", "move", "db"], "--to"),
            (&["tiering", "map", "db", "--hva", "1-2"], "1-2"),
            (&["tiering", "map", "db", "--pfn", "frame"], "frame"),
            (&["tiering", "map", "db", "--gpa", "0..1", "--pfn", "1"], "--pfn"),
            (&["tiering", "run", "--duration", "soon"], "soon"),
        ];
        for (arguments, word) in cases {
            let error = Cli::try_parse_from(arguments).expect_err("a usage error");
            let failure = from_clap(&error).expect_err("a failure");
            assert_eq!(failure.code, 64, "{failure}");
            assert!(failure.message.contains(word), "{failure}");
            assert!(failure.message.contains("tiering --help"), "{failure}");
            assert_eq!(failure.message.lines().count(), 1, "{failure}");
        }
    }

    #[test]
    fn exit_codes_tell_causes_apart() {
        let socket = || "/s".into();
        let code = |error: ClientError| Failure::from(error).code;
        assert_eq!(code(ClientError::NoAgent { socket: socket() }), 69);
        assert_eq!(code(ClientError::Denied { socket: socket() }), 77);
        assert_eq!(code(ApiError::NotFound(String::new()).into_client()), 64);
        assert_eq!(code(ApiError::Refused(String::new()).into_client()), 69);
        let invalid = Config::parse("[agent]\nx = 1", "f.toml").expect_err("x is unknown");
        assert_eq!(Failure::from(invalid).code, 78);
    }

    impl ApiError {
        fn into_client(self) -> ClientError {
            self.into()
        }
    }
}
