//! Every access that KVM shows is the one that the guest's seed says: the right page, at the right time, read or
//! written.
//!
//! Without an agent: the programs are attached by the library, the guest's memory is paged out from here, and each
//! round the addresses that arrive are compared with the touches recomputed from the guest's pattern.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use tiering_common::{SAMPLE_KVM, SAMPLE_WRITE, Sample};
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::locate::locate;
use tiering_testkit::observe::{At, PAGE, pagemap};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;
use tiering_user::bpf::{Faults, KvmSource, PROBE_ATTACH_KINDS};
use tiering_user::sys::{Advice, Pidfd, Span, advise, rearm};
use tiering_user::tiermap::{Layout, PageRun, written};
use tiering_user::track::VmId;
use tiering_user::vm::{Gpa, Scanner, Trust, Vm};

use crate::host::{BOOT, Host, kvm_guest, ready, shell};
use crate::scenario::Scenario;

const NAMES: [&str; 2] = ["tt-reads", "tt-mixed"];

/// The first guest only reads, the second writes at every third touch.
fn pattern(guest: u64) -> Pattern {
    Pattern {
        seed: guest,
        mem_mib: 16,
        write_one_in: if guest == 1 { 0 } else { 3 },
        rounds_on_command: true,
        access: Access::Stride { set_mib: 8, stride_pages: 7 },
        ..Pattern::default()
    }
}

fn track(faults: &mut Faults, guests: &[Guest]) -> Result<Vec<Vm>> {
    let mut vms = Scanner::new("/proc", "/sys/fs/cgroup", Trust::new(&[]).0).scan()?.appeared;
    vms.sort_by_key(|vm| NAMES.iter().position(|name| vm.name == *name));
    let names = |all: Vec<&str>| all.join(", ");
    let (found, started) = (vms.iter().map(|vm| vm.name.as_str()), guests.iter().map(Guest::name));
    let (found, started) = (names(found.collect()), names(started.collect()));
    ensure!(found == started, "found are {found}, started were {started}");
    for (id, vm) in (1..).map(VmId).zip(&vms) {
        faults.track(id, vm)?;
        faults.want_frames(id)?;
    }
    Ok(vms)
}

/// Writes these pages to swap, and says how many are there.
fn page_out(guest: &Guest, pages: &HashMap<usize, u64>) -> Result<usize> {
    let process = Pidfd::open(guest.pid().cast_signed())?;
    let spans: Vec<_> = pages.values().map(|start| Span { start: *start, bytes: PAGE }).collect();
    for _ in 0..2 {
        for chunk in spans.chunks(512) {
            advise(&process, chunk, Advice::PageOut)?;
        }
    }
    let mut swapped = 0;
    for hva in pages.values() {
        swapped += usize::from(matches!(pagemap(guest.pid(), *hva, 1)?[..], [At::Swap { .. }]));
    }
    Ok(swapped)
}

fn drain(faults: &mut Faults) -> Vec<Sample> {
    let mut samples = Vec::new();
    while faults.drain(&mut samples, 10_000) > 0 {}
    samples
}

/// The pages of the pattern in the order in which they were first seen, and whether that was a write.
fn seen(samples: &[Sample], id: u32, page_at: &HashMap<u64, usize>) -> Vec<(usize, bool)> {
    let mut seen = Vec::new();
    let mut known = HashSet::new();
    for sample in samples.iter().filter(|sample| sample.vm == id) {
        if let Some(page) = page_at.get(&(sample.hva & !(PAGE - 1)))
            && known.insert(*page)
        {
            seen.push((*page, sample.flags & SAMPLE_WRITE != 0));
        }
    }
    seen
}

fn every_sample_is_what_the_seed_says(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    host.swap_on("nvme", 512 << 20)?;
    let mut guests = Vec::new();
    for (guest, name) in (1..).zip(NAMES) {
        // Two mebibytes that are huge would come back in one fault.
        let builder = kvm_guest(name, Backend::AnonymousSmall).memory_mib(96).pattern(pattern(guest));
        guests.push(ready(builder, results)?);
    }
    let mut faults = Faults::attach(&PROBE_ATTACH_KINDS, None)?;
    let KvmSource::Active(attach_kind) = faults.kvm() else { anyhow::bail!("{:?}", faults.kvm()) };
    results.note("faults of KVM guests by", attach_kind.name());
    let vms = track(&mut faults, &guests)?;

    for ((id, guest), vm) in (1..).zip(&mut guests).zip(&vms) {
        let pattern = pattern(u64::from(id));
        let name = guest.name().to_owned();
        let pages = locate(guest.pid(), guest.ram()?, &pattern)?;
        let set: HashMap<usize, u64> = pages.into_iter().filter(|(page, _)| *page < 8 * 256).collect();
        results.check(&format!("{name}: pages located"), set.len(), "2048", set.len() == 2048);
        let swapped = page_out(guest, &set)?;
        results.check(
            &format!("{name}: pages in swap before the walk"),
            swapped,
            "at least 2000",
            swapped >= 2000,
        );
        drain(&mut faults);
        faults.take_frames(VmId(id));
        let before = faults.counters(VmId(id));
        guest.go()?;
        let phase = guest.wait_phase(1, BOOT)?;
        let samples = drain(&mut faults);
        let after = faults.counters(VmId(id));

        let page_at: HashMap<u64, usize> = set.iter().map(|(page, hva)| (*hva, *page)).collect();
        let walked = seen(&samples, id, &page_at);
        let truth: Vec<_> = phase.truth(&pattern).map(|touch| (touch.page, touch.write)).collect();
        let (pages, order) = (in_order(&walked), in_order(&truth));
        results.check(
            &format!("{name}: swapped pages touched, and seen"),
            pages.len(),
            &swapped.to_string(),
            pages.len() >= swapped,
        );
        let of_walk = pages.iter().filter(|page| order.contains(page)).count();
        results.check(&format!("{name}: of these in the walk"), of_walk, "all", of_walk == pages.len());
        let same_order = order.iter().filter(|page| pages.contains(page)).eq(pages.iter());
        results.check(&format!("{name}: in the order of the seed"), same_order, "true", same_order);
        let writes: HashMap<usize, bool> = truth.iter().copied().collect();
        let right = walked.iter().filter(|(page, write)| writes.get(page) == Some(write)).count();
        results.check(&format!("{name}: write bits right"), right, "all", right == walked.len());
        let by_kvm = samples.iter().filter(|s| s.vm == id && s.flags & SAMPLE_KVM != 0).count();
        results.check(
            &format!("{name}: samples by KVM"),
            by_kvm,
            &format!("at least {swapped}"),
            by_kvm >= swapped,
        );
        let produced = after.produced - before.produced;
        results.note(&format!("{name}: produced"), produced);

        // All of it is mapped now, and a walk would show nothing.
        rearm(&Pidfd::open(guest.pid().cast_signed())?)?;
        drain(&mut faults);
        guest.go()?;
        let phase = guest.wait_phase(2, BOOT)?;
        let shown = in_order(&seen(&drain(&mut faults), id, &page_at));
        let again: Vec<_> = phase.truth(&pattern).map(|touch| touch.page).collect();
        let found = format!("{} of {}, in their order: {}", shown.len(), again.len(), shown == again);
        results.check(&format!("{name}: re-armed pages touched, and seen"), found, "all", shown == again);

        let written: HashSet<_> =
            phase.truth(&pattern).filter(|touch| touch.write).map(|touch| touch.page).collect();
        let marked = marked_as_written(vm, &page_at)?;
        results.check(
            &format!("{name}: pages that soft-dirty bits say were written"),
            format!("{}, of {} that were", marked.len(), written.len()),
            "the same",
            marked == written,
        );

        let (agreed, compared) = frames_at_their_place(&mut faults, VmId(id), vm)?;
        // One may have moved since.
        let proved = compared > 4 && agreed + 1 >= compared;
        results.check(
            &format!("{name}: frames where the layout says"),
            format!("{agreed} of {compared}"),
            "all, or all but one",
            proved,
        );
    }
    for guest in &mut guests {
        let right = guest.finish()?.checksum_ok;
        results.check(&format!("{}: memory right", guest.name()), right, "true", right);
    }
    Ok(())
}

/// With the kernel locked down as far as it can be, and without its BTF: the classic tracepoints are left.
fn every_sample_in_lockdown_without_btf(results: &mut Results) -> Result<()> {
    shell("echo confidentiality > /sys/kernel/security/lockdown && mount -t tmpfs none /sys/kernel/btf")?;
    every_sample_is_what_the_seed_says(results)
}

fn in_order(touches: &[(usize, bool)]) -> Vec<usize> {
    touches.iter().map(|(page, _)| *page).collect()
}

/// The pages of the pattern that were written since the guest was armed.
fn marked_as_written(vm: &Vm, page_at: &HashMap<u64, usize>) -> Result<HashSet<usize>> {
    let layout = Layout::new(&vm.ram);
    let pages: Vec<PageRun> = written(&Pidfd::open(vm.key.pid)?, &layout)?;
    let hvas = pages.iter().flat_map(|run| run.pages()).filter_map(|page| layout.locate(page));
    Ok(hvas.filter_map(|(hva, _)| page_at.get(&hva.0).copied()).collect())
}

/// Of the frames that KVM mapped lately, how many are where the layout says, and how many could be compared.
fn frames_at_their_place(faults: &mut Faults, id: VmId, vm: &Vm) -> Result<(usize, usize)> {
    let (mut agreed, mut compared) = (0, 0);
    for frame in faults.take_frames(id) {
        let hva = vm.guest_ranges.iter().find_map(|range| range.hva(Gpa(frame.gfn * PAGE)));
        let hva = hva.with_context(|| format!("no RAM at guest frame {:#x}", frame.gfn))?;
        if let [At::Memory { pfn }] = pagemap(vm.key.pid.cast_unsigned(), hva.0, 1)?[..] {
            compared += 1;
            agreed += usize::from((frame.spte / PAGE) & ((1 << 35) - 1) == pfn);
        }
    }
    Ok((agreed, compared))
}

#[test]
fn every_sample_of_a_kvm_guest_is_what_its_seed_says() {
    Scenario::default().run(
        "samples::every_sample_of_a_kvm_guest_is_what_its_seed_says",
        every_sample_is_what_the_seed_says,
    );
}

#[test]
#[ignore = "long: the same by other tracepoints"]
fn every_sample_is_seen_in_lockdown_without_btf() {
    Scenario::default()
        .run("samples::every_sample_is_seen_in_lockdown_without_btf", every_sample_in_lockdown_without_btf);
}
