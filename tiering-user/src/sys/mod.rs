//! Raw system calls that no crate wraps, and nothing else: the only unsafe code of the agent.
//!
//! In: plain numbers, file descriptors and slices. Out: `std::io::Error`s as the kernel gave them; callers add
//! the path, process and address. Does not retry, interpret or decide.

mod boot;
mod buffer;
mod clock;
mod cpu;
mod file_facts;
mod file_pages;
mod frames;
mod mapping;
mod mark;
mod numa;
mod own_memory;
mod pagemap;
mod process;
mod process_memory;
mod rearm;
mod shown_access;
mod swap;
mod wake;
mod zero_pages;

pub use boot::boot_id;
pub use buffer::Buffer;
pub use clock::{Monotonic, now, unix_seconds};
pub use cpu::{OneCpu, run_ahead, stay_on_cpus};
pub use file_facts::{FileFacts, known_facts};
pub use file_pages::pages_of_file;
pub use frames::{FrameFacts, Frames};
pub use mark::{folder_is_marked, mark_folder};
pub use numa::{MoveStatus, PreferNodes, move_pages, node_of, prefer_nodes_of_file};
pub use own_memory::{give_back_freed, own_memory};
pub use pagemap::{FIRST_SPECIAL, PageState, Pagemap, ScanRange, frames_are_shown, keeps_soft_dirty};
pub use process::Pidfd;
pub use process_memory::{Advice, MAX_RANGES_PER_CALL, Span, advise, read_pages, touch_read, touch_write};
pub use rearm::{can_rearm, rearm};
pub use shown_access::shown_access;
pub use swap::{SWAP_PRIORITY_MAX, swap_off, swap_on};
pub use wake::wake_on;
pub use zero_pages::ZeroPages;

/// Bytes of a base page: what pagemap, swap slots and the mapping table count in.
///
/// The agent is built for x86-64, where this is fixed.
pub const PAGE_BYTES: u64 = 4096;
