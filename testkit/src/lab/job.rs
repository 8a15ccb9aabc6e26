//! What the lab does, as a shell script, and the files by which it and this machine talk.
//!
//! In: a command, a folder, an environment. Out: the script. Quoting is exact for any bytes but zero.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What runs in the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// A shell at this terminal.
    Shell,
    /// A command, without standard input; its output and exit code come back.
    Command(Vec<OsString>),
}

/// Variables that come along; the others say how this machine is set up.
const PASSED_ON: [&str; 7] =
    ["PATH", "HOME", "TERM", "LANG", "CARGO_TARGET_DIR", "RUST_BACKTRACE", "RUST_LOG"];
const PASSED_ON_PREFIX: &[u8] = b"TIERING_";

/// The script that does the job in `folder`, with what of `environment` is of use there.
pub fn script(job: &Job, folder: &Path, environment: impl Iterator<Item = (OsString, OsString)>) -> Vec<u8> {
    let mut script = Vec::new();
    for (name, value) in environment {
        let of_use =
            PASSED_ON.iter().any(|passed| name == *passed) || name.as_bytes().starts_with(PASSED_ON_PREFIX);
        if of_use {
            script.extend_from_slice(b"export ");
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            push_quoted(&mut script, &value);
            script.push(b'\n');
        }
    }
    script.extend_from_slice(b"export LAB_OUT=/run/lab/out\ncd ");
    push_quoted(&mut script, folder.as_os_str());
    script.extend_from_slice(b" || exit 1\nexec");
    match job {
        // Without the user's start-up files, which were written for a faster machine: pyenv's took 30 s.
        Job::Shell => script.extend_from_slice(b" env PS1='lab:\\w# ' bash --norc -i"),
        Job::Command(words) => {
            for word in words {
                script.push(b' ');
                push_quoted(&mut script, word);
            }
        }
    }
    script.push(b'\n');
    script
}

/// In single quotes nothing is special but their end.
fn push_quoted(script: &mut Vec<u8>, word: &OsStr) {
    script.push(b'\'');
    for byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            _ => script.push(*byte),
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_gives_the_command_its_very_words_and_the_environment_of_use() {
        let words = ["printf", "%s|", "it's", "$HOME *", "two\nlines", "", "\\", "-n"].map(OsString::from);
        let environment = [("RUST_LOG", "a b'c"), ("EDITOR", "vi"), ("TIERING_STRICT", "1")];
        let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into()));
        let script = script(&Job::Command(words.to_vec()), Path::new("/"), environment);
        let ran = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "it's|$HOME *|two\nlines||\\|-n|");
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("export RUST_LOG='a b'\\''c'\n") && script.contains("TIERING_STRICT"));
        assert!(!script.contains("EDITOR"));
    }
}
