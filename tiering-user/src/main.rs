//! The `tiering` program: runs one command, and turns its failure into a line and an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tiering_user::cli::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tiering: {failure}");
            ExitCode::from(failure.code)
        }
    }
}
