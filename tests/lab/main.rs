//! Tests in the lab, a whole virtual host: here that the lab itself does what docs/lab.md says.
//!
//! A boot takes seconds, on a busy machine more: few tests, each with much in it.
#![expect(clippy::unwrap_used, reason = "a test panics with the error")]

mod boots;
