//! What it costs a KVM guest that a page which is mapped on the host shows an access: measured on a guest of our own,
//! of 256 pages and six instructions.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::PAGE_BYTES;
use super::mapping::Mapping;

/// All that real mode reaches: a megabyte.
const PAGES: usize = 256;
/// Writes a byte of each page but the first, which it is in.
const PROGRAM: [u8; 13] = [
    0x8e, 0xc3, // mov es, bx
    0x26, 0xa2, 0x00, 0x00, // mov es:[0], al
    0x81, 0xc3, 0x00, 0x01, // add bx, 0x100
    0xe2, 0xf4, // loop, from the start
    0xf4, // hlt
];
/// The segment of the second page.
const SECOND_PAGE: u64 = 0x100;
/// Where Intel's processors without unrestricted guests keep what they need for real mode: nowhere in our memory.
const TSS: usize = 0xfffb_d000;
const REPEATS: usize = 7;
/// No way from a guest to KVM and back is as short.
const LEAST: Duration = Duration::from_nanos(200);
/// A guest that does not come to its end within this time never will.
const LIMIT: Duration = Duration::from_secs(1);

/// The median of a few measurements.
///
/// # Errors
/// What KVM answers; `EINVAL` where the guest did something else; `InvalidData` where nothing showed; `TimedOut`, and
/// then a thread is left behind.
pub fn shown_access() -> io::Result<Duration> {
    let (done, measured) = mpsc::channel();
    thread::Builder::new().name("tiering-probe".into()).spawn(move || done.send(measure()).ok())?;
    measured.recv_timeout(LIMIT).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn measure() -> io::Result<Duration> {
    let mut guest = Guest::new()?;
    guest.run()?;
    let mut costs = Vec::new();
    for _ in 0..REPEATS {
        let mapped = guest.run()?;
        guest.unmap()?;
        costs.push(guest.run()?.saturating_sub(mapped) / (PAGES as u32 - 1));
    }
    costs.sort_unstable();
    let median = costs[REPEATS / 2];
    // A KVM that executes real mode itself goes past its page tables.
    if median < LEAST { Err(io::ErrorKind::InvalidData.into()) } else { Ok(median) }
}

/// In the order in which they have to go.
struct Guest {
    processor: VcpuFd,
    _vm: VmFd,
    memory: Mapping,
}

impl Guest {
    fn new() -> io::Result<Self> {
        let memory = Mapping::new(PAGES)?;
        for page in 0..PAGES {
            let byte = memory.start().wrapping_add(page * PAGE_BYTES as usize);
            // SAFETY: inside the mapping, which is writable and nobody else's yet.
            unsafe { byte.write_volatile(0) };
        }
        // SAFETY: the program is shorter than the mapping.
        unsafe { memory.start().copy_from_nonoverlapping(PROGRAM.as_ptr(), PROGRAM.len()) };
        let vm = Kvm::new()?.create_vm()?;
        // AMD's processors have no such thing.
        vm.set_tss_address(TSS).ok();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.bytes() as u64,
            userspace_addr: memory.start() as u64,
        };
        // SAFETY: the mapping outlives the guest, and nothing else uses it while that runs.
        unsafe { vm.set_user_memory_region(region)? };
        let processor = vm.create_vcpu(0)?;
        let mut segments = processor.get_sregs()?;
        (segments.cs.base, segments.cs.selector) = (0, 0);
        processor.set_sregs(&segments)?;
        Ok(Self { processor, _vm: vm, memory })
    }

    /// Runs the program once.
    fn run(&mut self) -> io::Result<Duration> {
        let mut registers = self.processor.get_regs()?;
        (registers.rip, registers.rflags) = (0, 2);
        (registers.rbx, registers.rcx) = (SECOND_PAGE, PAGES as u64 - 1);
        self.processor.set_regs(&registers)?;
        let began = Instant::now();
        match self.processor.run()? {
            VcpuExit::Hlt => Ok(began.elapsed()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Has KVM let go of all pages. On the host they stay where they are, and like after re-arming a write has to be
    /// let through first.
    fn unmap(&mut self) -> io::Result<()> {
        for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
            // SAFETY: the whole mapping; the guest, the only one who uses it, does not run.
            let result =
                unsafe { libc::mprotect(self.memory.start().cast(), self.memory.bytes(), protection) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_access_costs_something_where_guests_have_page_tables_of_their_own() {
        let tdp_mmu = std::fs::read_to_string("/sys/module/kvm/parameters/tdp_mmu").unwrap_or_default();
        match shown_access() {
            Ok(cost) => assert!(cost < Duration::from_millis(1), "{cost:?}"),
            Err(error) => assert_ne!(tdp_mmu.trim(), "Y", "{error}"),
        }
    }
}
