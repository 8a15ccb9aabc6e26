//! All metrics: each is declared here and nowhere else.
//!
//! In: parts of the status. Out: their samples. Units are base units: bytes, seconds, ratios from 0 to 1; and pages, of
//! 4 KiB. A counter never falls while the agent runs and what it is about is there.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Of::{Agent, Image, Source, Tier, Vm};
use super::{Kind, Metric, Number, Of, Samples};
use crate::telemetry::latency::Latency;
use crate::telemetry::prefetch::{PrefetchByMatch, PrefetchMatch, PrefetchOrigin};
use crate::telemetry::profile::{AheadStatus, ProfileStatus};
use crate::telemetry::savings::CanFreeStatus;
use crate::telemetry::status::{KernelMovesStatus, SourceState, Status, VmStatus};

const BYTES: Option<&str> = Some("bytes");
const PAGES: Option<&str> = Some("pages");
const SECONDS: Option<&str> = Some("seconds");
const RATIO: Option<&str> = Some("ratio");
const PER_SECOND: Option<&str> = Some("per_second");

// Two lines each, so that it reads as the table that it is.
#[rustfmt::skip]
pub(super) const METRICS: &[Metric] = &[
    gauge("build_info", None, "Version of the agent; always 1",
        Agent(|s| by("version", [(s.version.as_str(), 1_u64)]))),
    gauge("uptime", SECONDS, "Time since the agent's start",
        Agent(|s| one(s.uptime_s))),
    gauge("dry_run", None, "1 if plans are only reported",
        Agent(|s| one(s.dry_run))),
    gauge("warnings", None, "What keeps the agent from a part of its work, or stands in the ladder's way: see the status",
        Agent(|s| one(count(&s.warnings)))),
    gauge("agent_cpu", RATIO, "CPU time of watching and planning in the last seconds, of one core",
        Agent(|s| one(s.cpu_percent / 100.0))),
    gauge("agent_memory", BYTES, "Memory that the agent itself takes",
        Agent(|s| one(s.agent.memory_bytes))),
    gauge("agent_memory_limit", BYTES, "Memory above which the agent forgets what it learned",
        Agent(|s| one(s.agent.memory_limit_bytes))),
    counter("agent_forgotten", None, "Tapes, orders of images and others that the agent forgot for lack of memory",
        Agent(|s| one(s.agent.forgotten_total))),
    counter("agent_left_out", PAGES, "Pages that were not taken in, since the agent's memory limit left no room",
        Agent(|s| one(s.agent.left_out_pages_total))),
    gauge("state_saved_timestamp", SECONDS, "When the agent's state was last written to disk, since 1970",
        Agent(|s| maybe(s.state_saved_unix_s))),
    gauge("swap_cached", BYTES, "In the swap cache of the host: in swap, and still in memory",
        Agent(|s| one(s.swap_cached_bytes))),
    gauge("savings_reusable", BYTES, "Memory of VMs that was free through the last 24 hours, or since the VM is known",
        Agent(|s| one(s.savings.reusable_bytes))),
    gauge("savings_opportunistic", BYTES, "Memory of VMs that is free now, and was not all that time",
        Agent(|s| one(s.savings.opportunistic_bytes))),
    gauge("savings_can_free", BYTES, "Estimate of what more can be freed, of the VMs of which it is known, and its bounds",
        Agent(|s| can_free(&s.savings.can_free))),
    gauge("savings_vms_unknown", None, "VMs of which it is not known yet what can be freed",
        Agent(|s| one(s.savings.vms_unknown))),
    gauge("blocks_shown", None, "Blocks of 2 MiB in the BPF map tier_map",
        Agent(|s| one(s.blocks.shown))),
    counter("blocks_left_out", None, "Times that a block did not fit into the BPF map tier_map",
        Agent(|s| one(s.blocks.left_out_total))),

    counter("events_seen", None, "Accesses seen in guest RAM, looked at or not",
        Agent(|s| one(s.events.seen))),
    counter("events_produced", None, "Accesses that were to be told to the agent",
        Agent(|s| one(s.events.produced))),
    counter("events_consumed", None, "Accesses that reached the agent",
        Agent(|s| one(s.events.consumed))),
    counter("events_dropped", None, "Accesses that were lost since the ring was full",
        Agent(|s| one(s.events.dropped))),
    counter("image_reads_lost", None, "Reads of base images that were lost since the ring was full",
        Agent(|s| one(s.image_reads_lost_total))),
    gauge("source_state", None, "1 for the state that a way to see accesses is in: active, idle or unavailable",
        Source(|source| source_state(source.state))),

    counter("moved_reclaimed", BYTES, "Memory of the host that reclaim took, but for page cache",
        Agent(|s| by_mover(s, |moves| moves.reclaimed_bytes_total))),
    counter("moved_migrated", BYTES, "Memory of the host that was moved within memory",
        Agent(|s| by_mover(s, |moves| moves.migrated_bytes_total))),
    counter("moved_collapsed", BYTES, "Memory of the host that was made into huge pages",
        Agent(|s| by_mover(s, |moves| moves.collapsed_bytes_total))),

    gauge("tier_size", BYTES, "Capacity of the tier",
        Tier(|tier| one(tier.capacity_bytes))),
    gauge("tier_used", BYTES, "In use in the tier, by anybody",
        Tier(|tier| one(tier.used_bytes))),
    gauge("tier_free", BYTES, "Not in use in the tier",
        Tier(|tier| one(tier.capacity_bytes.saturating_sub(tier.used_bytes)))),
    gauge("tier_vm", BYTES, "Guest RAM in the tier",
        Tier(|tier| one(tier.vm_bytes))),
    gauge("tier_in_trouble", None, "1 while nothing is sent to the tier: the status says why",
        Tier(|tier| one(tier.trouble.is_some()))),
    counter("tier_written", BYTES, "Written to the tier by the agent's moves",
        Tier(|tier| one(tier.written_bytes_total))),
    counter("tier_read", BYTES, "Guest RAM that came up from the tier, as far as it was seen",
        Tier(|tier| one(tier.read_bytes_total))),
    gauge("tier_read_latency", SECONDS, "Reading a page of the tier: of swap in the last minutes, of memory at start",
        Tier(|tier| percentiles(tier.read_latency_ns))),
    gauge("tier_write_latency", SECONDS, "Writing a page to a swap tier, at start",
        Tier(|tier| percentiles(tier.write_latency_ns))),
    gauge("tier_bandwidth", Some("bytes_per_second"), "Reading the tier in sequence, at start",
        Tier(|tier| maybe(tier.bandwidth_bytes_per_s))),
    gauge("tier_device_read_latency", SECONDS, "Mean of the last second's reads of the tier's disk, whoever asked",
        Tier(|tier| maybe_ns(tier.device_load.and_then(|load| load.read_latency_ns)))),
    gauge("tier_device_write_latency", SECONDS, "Mean of the last second's writes to the tier's disk, whoever asked",
        Tier(|tier| maybe_ns(tier.device_load.and_then(|load| load.write_latency_ns)))),
    gauge("tier_device_requests", None, "Requests that the tier's disk has not answered yet",
        Tier(|tier| maybe(tier.device_load.map(|load| load.in_flight)))),

    gauge("vm_info", None, "Tenant and class of the VM; always 1",
        Vm(vm_info)),
    gauge("vm_priority", None, "Priority of the VM, 0 to 100",
        Vm(|vm| one(u64::from(vm.priority)))),
    gauge("vm_movable", None, "1 if the VM's pages may be moved: the status says why not",
        Vm(|vm| one(vm.movable))),
    gauge("vm_held_back", None, "1 while a brake holds back the VM's demotion: limited_by in the status says which",
        Vm(|vm| one(vm.limited_by.is_some()))),
    gauge("vm_ram", BYTES, "Guest RAM of the VM",
        Vm(|vm| one(vm.ram_bytes))),
    gauge("vm_tier", BYTES, "Guest RAM by tier; swap where the device is not known",
        Vm(|vm| by("tier", pairs(&vm.tier_bytes)))),
    gauge("vm_tier_peak", BYTES, "Highest amount of guest RAM in the tier so far",
        Vm(|vm| by("tier", pairs(&vm.tier_bytes_peak)))),
    gauge("vm_untouched", BYTES, "Guest RAM that was never touched and is in no tier",
        Vm(|vm| one(vm.untouched_bytes))),
    gauge("vm_working_set", BYTES, "Guest RAM that was used lately, as far as that was seen",
        Vm(|vm| one(vm.wss_bytes))),
    gauge("vm_used_within", BYTES, "Guest RAM that was used within so many seconds, as far as that was seen",
        Vm(|vm| of_profile(vm, |profile| used_within(profile)))),
    gauge("vm_access_rate", PER_SECOND, "Accesses a second in the last minute or so, as far as they were seen",
        Vm(|vm| of_profile(vm, |profile| by("kind", [("read", profile.reads_per_s), ("write", profile.writes_per_s)])))),
    gauge("vm_walks", RATIO, "Share of accesses that go on page by page, or in steps",
        Vm(|vm| of_profile(vm, |profile| walks(profile)))),
    gauge("vm_miss", RATIO, "Share of accesses that would wait if only so many bytes, the last ones used, were in memory",
        Vm(|vm| of_profile(vm, |profile| misses(profile)))),
    counter("vm_phase_changes", None, "Times that most accesses moved to other parts of RAM",
        Vm(|vm| of_profile(vm, |profile| one(profile.phase_changes_total)))),
    gauge("vm_period", SECONDS, "After how long the rate of accesses comes and goes again",
        Vm(|vm| of_profile(vm, |profile| maybe(profile.period_ms.map(|ms| ms as f64 / 1e3))))),
    gauge("vm_expected_access_rate", PER_SECOND, "Accesses a second that are expected in so many seconds",
        Vm(|vm| of_profile(vm, |profile| expected(profile, |ahead| ahead.accesses_per_s.expected)))),
    gauge("vm_expected_used", BYTES, "Guest RAM that is expected to be in use in so many seconds",
        Vm(|vm| of_profile(vm, |profile| expected(profile, |ahead| ahead.used_bytes.expected)))),
    gauge("vm_cpus", None, "Processors that the VM's process keeps busy",
        Vm(|vm| of_profile(vm, |profile| one(profile.cpus)))),
    gauge("vm_huge", BYTES, "Guest RAM in huge pages",
        Vm(|vm| one(vm.huge_bytes))),
    gauge("vm_huge_lost", BYTES, "Guest RAM that was in huge pages and is not now",
        Vm(|vm| one(vm.huge_lost_bytes))),
    gauge("vm_huge_kept", BYTES, "Guest RAM in huge pages that are kept in memory",
        Vm(|vm| one(vm.huge_kept_bytes))),
    counter("vm_huge_split", BYTES, "Guest RAM in huge pages that was in none any more after a step",
        Vm(|vm| one(vm.huge_split_bytes_total))),
    counter("vm_collapsed", BYTES, "Made into huge pages again by the agent",
        Vm(|vm| one(vm.collapsed_bytes_total))),
    gauge("vm_ksm", BYTES, "Memory of the VM's process that KSM merged with equal pages",
        Vm(|vm| maybe(vm.ksm_bytes))),
    gauge("vm_swap_cached", BYTES, "Copies that page-outs left in the swap cache",
        Vm(|vm| maybe(vm.swap_cached_bytes))),
    gauge("vm_freed", BYTES, "Memory that is free because its pages are in swap, without those copies",
        Vm(|vm| one(vm.freed_bytes))),
    gauge("vm_reusable", BYTES, "Memory that was free through the last 24 hours, or since the VM is known",
        Vm(|vm| one(vm.savings.reusable_bytes))),
    gauge("vm_opportunistic", BYTES, "Memory that is free now, and was not all that time",
        Vm(|vm| one(vm.savings.opportunistic_bytes))),
    gauge("vm_can_free", BYTES, "Estimate of what more can be freed, and its bounds; none while nobody knows",
        Vm(|vm| can_free(&vm.savings.can_free))),
    gauge("vm_cold", RATIO, "Share of touched memory that is in swap or expected to be freed",
        Vm(|vm| maybe(vm.savings.cold_share))),
    counter("vm_reads", None, "Accesses of the VM that read, of those that were looked at",
        Vm(|vm| one(vm.reads_total))),
    counter("vm_writes", None, "Accesses of the VM that wrote, of those that were looked at",
        Vm(|vm| one(vm.writes_total))),
    counter("vm_faults", None, "Accesses of the VM that were seen",
        Vm(|vm| one(vm.faults_total))),
    counter("vm_faults_sampled", None, "Of the accesses that were seen, those that were looked at",
        Vm(|vm| one(vm.sampled_total))),
    counter("vm_rearms", None, "Rounds in which the VM's mapped pages were made to show their accesses anew",
        Vm(|vm| one(vm.rearm.rounds_total))),
    gauge("vm_rearm_pause", SECONDS, "How long the last of them held up the VM's page faults at most",
        Vm(|vm| maybe_ns(vm.rearm.pause_ns))),
    counter("vm_stall", SECONDS, "Time that the VM waited for pages",
        Vm(|vm| maybe_ns(vm.stall_ns_total))),
    counter("vm_demoted", BYTES, "Moved to a slower tier",
        Vm(|vm| one(vm.demoted_bytes_total))),
    counter("vm_promoted", BYTES, "Moved to a faster tier",
        Vm(|vm| one(vm.promoted_bytes_total))),
    counter("vm_ping_pong", PAGES, "Pages that came back soon after they went down",
        Vm(|vm| one(vm.ping_pong_pages))),

    counter("vm_prefetch_issued", PAGES, "Pages that were staged ahead of need",
        Vm(|vm| by_match(vm, |of| of.issued_pages))),
    counter("vm_prefetch_used", PAGES, "Staged pages that were touched then",
        Vm(|vm| by_match(vm, |of| of.used_pages))),
    counter("vm_prefetch_wasted", PAGES, "Staged pages that were not touched and given up",
        Vm(|vm| by_match(vm, |of| of.wasted_pages))),
    counter("vm_prefetch_late", PAGES, "Of the used pages, those that were touched before the staging was done",
        Vm(|vm| by_match(vm, |of| of.late_pages))),
    counter("vm_prefetch_mapped", PAGES, "Staged pages that were mapped before they were touched",
        Vm(|vm| by_match(vm, |of| of.mapped_pages))),
    counter("vm_prefetch_lifted", PAGES, "Staged pages that went to a faster swap tier only, being doubtful",
        Vm(|vm| by_match(vm, |of| of.lifted_pages))),
    counter("vm_prefetch_shadow_right", PAGES, "Predicted while that was not trusted, and touched",
        Vm(|vm| by_match(vm, |of| of.shadow_right_pages))),
    counter("vm_prefetch_shadow_wrong", PAGES, "Predicted while that was not trusted, and not touched",
        Vm(|vm| by_match(vm, |of| of.shadow_wrong_pages))),
    gauge("vm_prefetch_reasons", None, "Reasons to stage that are known: a leader, a way and a kind of match each",
        Vm(|vm| by_reasons(vm, |_| 1))),
    gauge("vm_prefetch_window", PAGES, "Most pages that may be staged and not yet used, of all reasons",
        Vm(|vm| by_reasons(vm, |of| of.window_pages.into()))),
    gauge("vm_prefetch_delay", SECONDS, "From another VM's touch until the kernel was asked for what was staged for it",
        Vm(|vm| percentiles(vm.prefetch.delay_ns))),
    gauge("vm_prefetch_mapping_delay", SECONDS, "From another VM's touch until what was staged for it was mapped",
        Vm(|vm| percentiles(vm.prefetch.mapping_delay_ns))),
    gauge("vm_prefetch_brier", RATIO, "Mean square of what confidence was wrong by: 0 is best",
        Vm(|vm| maybe(vm.prefetch.calibration.brier))),

    gauge("image_size", BYTES, "Length of a base image that VMs of the tenant have open",
        Image(|image| one(image.bytes))),
    gauge("image_vms", None, "VMs of the tenant that have the image open",
        Image(|image| one(count(&image.vms)))),
    gauge("image_known", BYTES, "Of the image, what is known to be read in which order",
        Image(|image| one(image.known_bytes))),
    gauge("image_confidence", RATIO, "Probability that what comes next in that order is read",
        Image(|image| one(image.confidence))),
    gauge("image_window", BYTES, "How far ahead the image is read",
        Image(|image| one(image.window_bytes))),
    counter("image_read_ahead", BYTES, "Read into the page cache ahead of need",
        Image(|image| one(image.read_ahead_bytes_total))),
];

const fn counter(name: &'static str, unit: Option<&'static str>, help: &'static str, of: Of) -> Metric {
    Metric { name, unit, kind: Kind::Counter, help, of }
}

const fn gauge(name: &'static str, unit: Option<&'static str>, help: &'static str, of: Of) -> Metric {
    Metric { name, unit, kind: Kind::Gauge, help, of }
}

fn one<'a>(number: impl Into<Number>) -> Samples<'a> {
    vec![(Vec::new(), number.into())]
}

/// No sample where it is not known.
fn maybe<'a>(number: Option<impl Into<Number>>) -> Samples<'a> {
    number.into_iter().flat_map(one).collect()
}

fn maybe_ns<'a>(ns: Option<u64>) -> Samples<'a> {
    maybe(ns.map(seconds))
}

fn can_free(of: &CanFreeStatus) -> Samples<'_> {
    let source = of.source.map_or("", |source| source.name());
    let values = [("expected", of.expected_bytes), ("lower", of.lower_bytes), ("upper", of.upper_bytes)];
    let known = values.into_iter().filter_map(|(bound, bytes)| Some((bound, bytes?)));
    known
        .map(|(bound, bytes)| (vec![("bound", bound.into()), ("source", source.into())], bytes.into()))
        .collect()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// One sample for each value of a label.
fn by<'a, V: Into<Cow<'a, str>>, T: Into<Number>>(
    label: &'static str,
    values: impl IntoIterator<Item = (V, T)>,
) -> Samples<'a> {
    values.into_iter().map(|(value, number)| (vec![(label, value.into())], number.into())).collect()
}

fn pairs(by_name: &BTreeMap<String, u64>) -> impl Iterator<Item = (&str, u64)> {
    by_name.iter().map(|(name, bytes)| (name.as_str(), *bytes))
}

fn percentiles<'a>(latency: Option<Latency>) -> Samples<'a> {
    let values = latency.map(|Latency { p50, p99 }| [("50", seconds(p50)), ("99", seconds(p99))]);
    by("percentile", values.into_iter().flatten())
}

fn count<T>(items: &[T]) -> u64 {
    items.len() as u64
}

/// Whether the agent itself had it moved.
fn by_mover(status: &Status, bytes: fn(&KernelMovesStatus) -> u64) -> Samples<'_> {
    by("mover", [("agent", bytes(&status.moved_by_agent)), ("others", bytes(&status.moved_by_others))])
}

fn vm_info(vm: &VmStatus) -> Samples<'_> {
    let labels = vec![("tenant", vm.tenant.as_str().into()), ("class", vm.class.name.as_str().into())];
    vec![(labels, Number::Whole(1))]
}

fn of_profile<'a>(vm: &'a VmStatus, samples: fn(&'a ProfileStatus) -> Samples<'a>) -> Samples<'a> {
    vm.profile.as_ref().map(samples).unwrap_or_default()
}

fn used_within(profile: &ProfileStatus) -> Samples<'_> {
    let sets = profile.working_sets.iter();
    by("seconds", sets.map(|set| ((set.within_ms / 1000).to_string(), set.bytes)))
}

fn expected(profile: &ProfileStatus, value: fn(&AheadStatus) -> f64) -> Samples<'_> {
    by("seconds", profile.ahead.iter().map(|ahead| ((ahead.after_ms / 1000).to_string(), value(ahead))))
}

fn misses(profile: &ProfileStatus) -> Samples<'_> {
    by("bytes", profile.miss_ratios.iter().map(|of| (of.bytes.to_string(), of.ratio)))
}

fn walks(profile: &ProfileStatus) -> Samples<'_> {
    let kinds = [("sequential", profile.sequential), ("strided", profile.strided)];
    by("kind", kinds.into_iter().filter_map(|(kind, share)| Some((kind, share?))))
}

fn source_state<'a>(now: SourceState) -> Samples<'a> {
    let states = [
        ("active", SourceState::Active),
        ("idle", SourceState::Idle),
        ("unavailable", SourceState::Unavailable),
    ];
    by("state", states.map(|(name, state)| (name, state == now)))
}

/// As the status writes it.
fn word(kind: PrefetchMatch) -> &'static str {
    match kind {
        PrefetchMatch::Own => "self",
        PrefetchMatch::Gfn => "gfn",
        PrefetchMatch::GfnOnly => "gfn_only",
        PrefetchMatch::Tag => "tag",
    }
}

/// What became of stages, in all since the VM was found.
fn by_match(vm: &VmStatus, pages: fn(&PrefetchByMatch) -> u64) -> Samples<'_> {
    by("match", vm.prefetch.by_match.iter().map(|of| (word(of.by), pages(of))))
}

/// The sum over the reasons of each kind of match that are known now.
fn by_reasons(vm: &VmStatus, number: fn(&PrefetchOrigin) -> u64) -> Samples<'_> {
    let sum = |kind| vm.prefetch.origins.iter().filter(|of| of.by == kind).map(number).sum::<u64>();
    by("match", vm.prefetch.by_match.iter().map(|of| (word(of.by), sum(of.by))))
}
