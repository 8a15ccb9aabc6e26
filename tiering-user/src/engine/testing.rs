//! For tests: a simulated host that writes down what the engine asks for.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::{Command, Demote, Event, Look};
use crate::config::Config;
use crate::policy::Step;
use crate::replay::{SimulatedHost, Wait, guest};
use crate::sys::Monotonic;
use crate::tiermap::{PageIndex, PageRun, Place};
use crate::tiers::TierId;
use crate::track::VmId;

/// One memory tier, and two swap tiers.
pub(super) const SWAP: &str = r#"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "nvme"
swap = { path = "/nvme", size = "1GiB" }
[[tier]]
name = "qlc"
swap = { path = "/qlc", size = "4GiB" }
[policy]
demote_after = "10s"
"#;

/// Two memory tiers, and one swap tier.
pub(super) const CXL: &str = r#"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "cxl"
nodes = [1]
[[tier]]
name = "nvme"
swap = { path = "/nvme", size = "1GiB" }
[policy]
demote_after = "10s"
"#;

pub(super) struct Host {
    host: SimulatedHost,
    began: Monotonic,
    /// What was asked for, in words, with the second in which it was.
    pub log: Vec<(u64, String)>,
}

impl Deref for Host {
    type Target = SimulatedHost;

    fn deref(&self) -> &SimulatedHost {
        &self.host
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut SimulatedHost {
        &mut self.host
    }
}

impl Host {
    pub(super) fn new(config: &str) -> Self {
        let began = Monotonic(1_000_000_000_000);
        let config = Config::parse(config, "test").unwrap();
        Self { host: SimulatedHost::new(config, began), began, log: Vec::new() }
    }

    /// A VM comes, of so many pages, all of which are in the first tier.
    pub(super) fn start(&mut self, id: u32, name: &str, pages: u32) -> VmId {
        let vm = guest(VmId(id), name, pages);
        let all = PageRun { first: 0, count: pages };
        self.with(|host, told| host.start(VmId(id), vm, &[(all, Place::In(TierId(0)))], told));
        VmId(id)
    }

    pub(super) fn end(&mut self, vm: VmId) {
        self.with(|host, told| host.end(vm, told));
    }

    /// So many seconds pass; in each of them these pages are touched.
    pub(super) fn run(&mut self, seconds: u64, touch: impl Fn(u64) -> Vec<(VmId, PageIndex)>) {
        for second in 0..seconds {
            let now = self.now().after(Duration::from_secs(1));
            self.host.set_now(now);
            for (vm, page) in touch(second) {
                self.with(|host, told| {
                    if host.touch(vm, page) != Wait::Nothing {
                        host.show(vm, page, (false, 0), told);
                    }
                });
            }
            self.with(SimulatedHost::second);
        }
    }

    pub(super) fn idle(&mut self, seconds: u64) {
        self.run(seconds, |_| Vec::new());
    }

    /// A VM touches these pages one after the other, 1 ms apart. Returns for how many it waited for a read.
    pub(super) fn walk(&mut self, vm: VmId, pages: impl IntoIterator<Item = PageIndex>) -> usize {
        let mut reads = 0;
        for page in pages {
            let now = self.now().after(Duration::from_millis(1));
            self.host.set_now(now);
            self.with(|host, told| {
                let wait = host.touch(vm, page);
                reads += usize::from(wait == Wait::Read);
                if wait != Wait::Nothing {
                    host.show(vm, page, (false, 0), told);
                }
            });
        }
        reads
    }

    /// An access shows.
    pub(super) fn see(&mut self, vm: VmId, page: PageIndex) {
        self.with(|host, told| host.show(vm, page, (false, 0), told));
    }

    pub(super) fn tell(&mut self, event: Event<'_>) {
        self.with(|host, told| host.tell(event, told));
    }

    /// What was asked for since this was last called, in words.
    pub(super) fn asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log).into_iter().map(|(_, words)| words).collect()
    }

    /// Pages of the VM in this tier.
    pub(super) fn in_tier(&self, vm: VmId, tier: u8) -> u64 {
        self.pages_in(vm, Place::In(TierId(tier)))
    }

    pub(super) fn with(&mut self, act: impl FnOnce(&mut SimulatedHost, &mut dyn FnMut(&Command))) {
        let second = self.now().since(self.began).as_secs();
        let log = &mut self.log;
        act(&mut self.host, &mut |command| log.extend(in_words(command).map(|words| (second, words))));
    }
}

/// A command in words; none of those that only show what is known.
fn in_words(command: &Command) -> Option<String> {
    Some(match command {
        Command::Step(_, Step { vm, action, pages, reason }) => {
            let (first, last) = (pages.iter().min()?, pages.iter().max()?);
            format!("VM {}: {action:?} {} pages of {first} to {last}: {reason}", vm.0, pages.len())
        }
        Command::Drain(tier, vms) => format!("drain tier {}, {} VMs", tier.0, vms.len()),
        Command::Reclaim(vm, bytes) => format!("VM {}: reclaim {} KiB of its group", vm.id.0, bytes >> 10),
        Command::ReclaimNodes(vms, bytes) => {
            format!("reclaim {} KiB of the host, {} VMs", bytes >> 10, vms.len())
        }
        Command::Look(vm, look) => match look {
            Look::Sweep(part) => format!("VM {}: sweep {} pages", vm.id.0, part.count),
            Look::Rearm => format!("VM {}: arm anew", vm.id.0),
            Look::Compare(frames) => format!("VM {}: compare {} frames", vm.id.0, frames.len()),
        },
        Command::WantFrames(vm) => format!("VM {}: frames wanted", vm.id.0),
        Command::EnoughFrames(vm) => format!("VM {}: enough frames", vm.0),
        Command::SampleOneIn(vm, log2) => format!("VM {}: look at one access in {}", vm.id.0, 1u64 << log2),
        Command::WatchRegions(vms, _) => format!("DAMON watches {} VMs", vms.len()),
        Command::WatchImage(_, number) => format!("watch image {number}"),
        Command::UnwatchImage(_) => "an image is not watched any more".to_owned(),
        Command::OpenImage { vm, .. } => format!("VM {}: open an image", vm.id.0),
        Command::CloseImage { name, .. } => format!("close {name}"),
        Command::ReadAhead(ahead) => format!("read {} KiB of {} ahead", ahead.bytes() >> 10, ahead.name),
        Command::ReadLabels(vm) => format!("VM {}: read its labels", vm.id.0),
        Command::ReadPageAges(groups) => format!("read page ages of {} groups", groups.len()),
        Command::FindFrame { vm, pfn, .. } => format!("VM {}: find frame {pfn:#x}", vm.id.0),
        Command::TellMap { vm, .. } => format!("VM {}: tell its map", vm.id.0),
        Command::TellExplanation { vm, .. } => format!("VM {}: explain", vm.id.0),
        Command::GiveBackFreed => "give back freed memory".to_owned(),
        Command::KernelDemotion(Demote::Keep(why_not)) => format!("demotion of the kernel: {why_not:?}"),
        Command::KernelDemotion(Demote::Leave(_))
        | Command::AllowNodeReclaim(_)
        | Command::ShowMoves(..)
        | Command::ShowBlock(..) => return None,
    })
}
