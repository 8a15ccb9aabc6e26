//! What a guest says about its program.

use serde::{Deserialize, Serialize};

/// Printed before the JSON of a [`Progress`].
pub const PROGRESS: &str = "tg: progress ";

/// What a guest says at the end of a round, or of several short ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// From 1.
    pub number: u64,
    /// The program, as it is called on the command line.
    pub name: String,
    /// When its first round began, on the guest's monotonic clock.
    pub start_ns: u64,
    /// When its last round ended.
    pub end_ns: u64,
    /// Runs of the client.
    pub rounds: u64,
    /// What the client says it did in them: transactions, requests, files, queries.
    pub operations: u64,
}

/// What a guest says about its program when it is told to finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramResult {
    /// All data was as it should be.
    pub data_ok: bool,
    /// The server ended by itself, and well, when it was asked to; true where there is none.
    pub ended_well: bool,
    /// All runs of the client.
    pub rounds: u64,
    /// All operations.
    pub operations: u64,
}
