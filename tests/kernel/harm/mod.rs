//! The agent does not hurt the host it runs on, nor the machines beside it: one test for each kind of fault that was
//! found.

mod balloon;
mod brakes;
mod device;
mod memory;
mod shell;
mod swap;
mod vms;
mod walks;
