//! Facts as text for people.
//!
//! In: the same types that `--json` prints. Out: text with aligned tables; sizes in KiB, MiB, GiB. Not here:
//! anything a script should read.

use super::profile;
use super::savings;
use super::table::{Table, printable};
use super::units::{location, nanoseconds, or_none, size};
use crate::config::Config;
use crate::host::{Check, State};
use crate::telemetry::latency::Latency;
use crate::telemetry::prefetch::{PrefetchLastDay, PrefetchMatch, PrefetchOrigin, PrefetchWay};
use crate::telemetry::request::{DrainOutcome, MapRun, MoveOutcome, VmMap};
use crate::telemetry::status::{ClassStatus, RearmStatus, SourceState, Status, TierKind, VmStatus};

const SHARING_OFF: &str =
    "every VM is its own tenant: set `tenant` in [[vm]] to let alike VMs learn from each other\n";

pub fn status(status: &Status) -> String {
    let dry_run = if status.dry_run { ", dry run: plans are made, nothing is moved" } else { "" };
    let mut text = format!("tiering {}, up {:.0} s{dry_run}\n\n", status.version, status.uptime_s);
    text += &tiers(status);
    for warning in &status.warnings {
        text += &format!("warning: {}\n", printable(warning));
    }
    text += &format!("in memory all the same, in the swap cache: {}\n", size(status.swap_cached_bytes));
    let saved: u64 = status.vms.iter().map(|vm| vm.freed_bytes).sum();
    let copies = status.vms.iter().filter_map(|vm| vm.swap_cached_bytes).sum();
    text += &format!(
        "saved: {} of the VMs' memory are free, {} more as soon as somebody wants them\n",
        size(saved),
        size(copies)
    );
    text += &savings::lines(status);
    let others = &status.moved_by_others;
    text += &format!(
        "moved by the kernel itself, of all of the host: {} reclaimed, {} migrated, {} made huge\n\n",
        size(others.reclaimed_bytes_total),
        size(others.migrated_bytes_total),
        size(others.collapsed_bytes_total)
    );
    text += &vms(status);
    for vm in &status.vms {
        if let Some(limit) = &vm.limited_by {
            text += &format!("{} is held back: {limit}\n", full_name(vm));
        }
    }
    if status.sharing_is_off() {
        text += SHARING_OFF;
    }
    text += &images(status);
    let events = &status.events;
    text += &format!(
        "\nevents: {} produced, {} consumed, {} dropped{}\n\n",
        events.produced,
        events.consumed,
        events.dropped,
        match events.seen.saturating_sub(events.produced) {
            0 => String::new(),
            left => format!("; {left} more were seen and left out, as `tracking` allows"),
        }
    );
    let mut sources = Table::new(["SOURCE", "STATE", "DETAIL"]);
    for source in &status.sources {
        let state = match source.state {
            SourceState::Active => "active",
            SourceState::Idle => "idle",
            SourceState::Unavailable => "unavailable",
        };
        sources.row([source.name.clone(), state.to_owned(), source.detail.clone()]);
    }
    text + &sources.to_string()
}

fn images(status: &Status) -> String {
    if status.images.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(["IMAGE", ">SIZE", ">ORDER KNOWN OF", ">READ AHEAD", ">CONFIDENCE", ">WINDOW", "READ BY"]);
    for image in &status.images {
        table.row([
            printable(&image.name),
            size(image.bytes),
            size(image.known_bytes),
            size(image.read_ahead_bytes_total),
            format!("{:.2}", image.confidence),
            size(image.window_bytes),
            printable(&image.vms.join(", ")),
        ]);
    }
    format!("\n{table}")
}

fn tiers(status: &Status) -> String {
    let mut table = Table::new([
        "TIER",
        ">LEVEL",
        "KIND",
        ">CAPACITY",
        ">USED",
        ">BY VMS",
        ">READ P50",
        ">READ P99",
        ">WRITTEN",
        ">CAME UP",
        "DEVICE",
    ]);
    for tier in &status.tiers {
        let kind = match tier.kind {
            TierKind::Node => {
                let nodes: Vec<_> = tier.nodes.iter().map(u32::to_string).collect();
                format!("node {}", nodes.join(","))
            }
            TierKind::Swap => "swap".to_owned(),
        };
        table.row([
            tier.name.clone(),
            tier.level.to_string(),
            kind,
            size(tier.capacity_bytes),
            size(tier.used_bytes),
            size(tier.vm_bytes),
            or_none(tier.read_latency_ns.map(|latency| nanoseconds(latency.p50))),
            or_none(tier.read_latency_ns.map(|latency| nanoseconds(latency.p99))),
            size(tier.written_bytes_total),
            size(tier.read_bytes_total),
            or_none(tier.device.clone()),
        ]);
    }
    let troubles = status.tiers.iter().filter_map(|tier| {
        let trouble = tier.trouble.as_ref()?;
        Some(format!("tier {} takes nothing for a while: {trouble}\n", tier.name))
    });
    table.to_string() + &troubles.collect::<String>()
}

/// One line a VM, with a column for each tier in the order of the ladder.
pub fn vms(status: &Status) -> String {
    if status.vms.is_empty() {
        return "no VM is seen\n".to_owned();
    }
    let mut places: Vec<&str> = status.tiers.iter().map(|tier| tier.name.as_str()).collect();
    for place in status.vms.iter().flat_map(|vm| vm.tier_bytes.keys()) {
        if !places.contains(&place.as_str()) {
            places.push(place);
        }
    }
    let place_titles: Vec<String> = places.iter().map(|place| format!(">{}", place.to_uppercase())).collect();
    let header = ["NAME", ">PID", ">RAM"].into_iter().chain(place_titles.iter().map(String::as_str)).chain([
        ">WSS",
        ">FAULTS",
        ">DEMOTED",
        ">PROMOTED",
        ">PREFETCHED",
        ">USED",
        ">WASTED",
        "MOVABLE",
    ]);
    let mut table = Table::new(header);
    for vm in &status.vms {
        let in_places = places.iter().map(|place| size(vm.tier_bytes.get(*place).copied().unwrap_or(0)));
        table.row(
            [full_name(vm), vm.pid.to_string(), size(vm.ram_bytes)].into_iter().chain(in_places).chain([
                size(vm.wss_bytes),
                vm.faults_total.to_string(),
                size(vm.demoted_bytes_total),
                size(vm.promoted_bytes_total),
                vm.prefetch.issued_pages.to_string(),
                vm.prefetch.used_pages.to_string(),
                vm.prefetch.wasted_pages.to_string(),
                movable(vm),
            ]),
        );
    }
    table.to_string()
}

fn class(class: &ClassStatus) -> String {
    let ClassStatus { name, confidence, source } = class;
    match source.as_deref() {
        None => name.clone(),
        Some("profile") => format!("{name}, a guess by its profile ({:.0} % sure)", confidence * 100.0),
        Some(source) => format!("{name}, by {source}"),
    }
}

pub fn vm(vm: &VmStatus) -> String {
    let mut table = Table::new(["VM".to_owned(), full_name(vm)].iter().map(String::as_str));
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("id", vm.id.clone());
    row("pid", vm.pid.to_string());
    row("tenant", vm.tenant.clone());
    row("priority", vm.priority.to_string());
    row("class", class(&vm.class));
    row("movable", movable(vm));
    row("held back", vm.limited_by.clone().unwrap_or_else(|| "no".to_owned()));
    row("ram", size(vm.ram_bytes));
    for part in &vm.left_alone {
        row("left alone", format!("{}: {}", size(part.bytes), part.reason));
    }
    for (tier, bytes) in &vm.tier_bytes {
        let peak = vm.tier_bytes_peak.get(tier).copied().unwrap_or(*bytes);
        row(&format!("in {tier}"), format!("{} (peak {})", size(*bytes), size(peak)));
    }
    row("untouched", size(vm.untouched_bytes));
    if !vm.page_tables_read {
        let why = "not read yet: this is what its process has in memory (`tiering map` reads them)";
        row("page tables", why.to_owned());
    }
    row(
        "in huge pages",
        format!(
            "{} ({} were and are not; {} split by moves, {} made again)",
            size(vm.huge_bytes),
            size(vm.huge_lost_bytes),
            size(vm.huge_split_bytes_total),
            size(vm.collapsed_bytes_total)
        ),
    );
    if vm.huge_kept_bytes > 0 {
        row("  of these kept", format!("{}: they do not go to swap", size(vm.huge_kept_bytes)));
    }
    row("merged by KSM", vm.ksm_bytes.map_or_else(|| "the kernel does not tell".to_owned(), size));
    row("freed", format!("{}: in swap, and not in the swap cache", size(vm.freed_bytes)));
    for (name, value) in savings::rows(&vm.savings) {
        row(name, value);
    }
    row("in the swap cache", vm.swap_cached_bytes.map_or_else(|| "the agent does not tell".to_owned(), size));
    let reporting = match vm.free_page_reporting {
        None => "the agent does not tell",
        Some(true) => "yes: what the guest has free is given back, and not moved",
        Some(false) => {
            "no: pages that the guest has freed look like any other and go to swap; give it a balloon with \
             `free-page-reporting=on`"
        }
    };
    row("free page reporting", reporting.to_owned());
    row("working set", size(vm.wss_bytes));
    row("accesses seen", format!("{} reads, {} writes", vm.reads_total, vm.writes_total));
    let sampled = match vm.sampled_one_in {
        0 | 1 => String::new(),
        one_in => format!(" (one of {one_in} is looked at now)"),
    };
    for (name, value) in vm.profile.iter().flat_map(profile::rows) {
        row(name, value);
    }
    row("faults", format!("{}{sampled}", vm.faults_total));
    row("watched in rounds", rounds(&vm.rearm));
    row("stalled", vm.stall_ns_total.map_or_else(|| "no source can tell".to_owned(), nanoseconds));
    row("demoted", size(vm.demoted_bytes_total));
    row("promoted", size(vm.promoted_bytes_total));
    row("went down in vain", format!("{} pages came back soon", vm.ping_pong_pages));
    let prefetch = &vm.prefetch;
    row(
        "prefetched pages",
        format!(
            "{} issued, {} used, {} wasted, {} late",
            prefetch.issued_pages, prefetch.used_pages, prefetch.wasted_pages, prefetch.late_pages
        ),
    );
    row("  in the last 24 h", last_day(&prefetch.last_day, &vm.id));
    if prefetch.lifted_pages > 0 {
        row("  of these to a faster swap tier", format!("{} pages", prefetch.lifted_pages));
    }
    let delay = |delay: Option<Latency>| {
        delay.map(|Latency { p50, p99 }| format!("p50 {}, p99 {}", nanoseconds(p50), nanoseconds(p99)))
    };
    if let Some(delay) = delay(prefetch.delay_ns) {
        row("  asked for after another's touch", delay);
    }
    if let Some(delay) = delay(prefetch.mapping_delay_ns) {
        row("  mapped after another's touch", delay);
    }
    for origin in &prefetch.origins {
        let what = match (origin.by, origin.way) {
            (_, PrefetchWay::Season) => "  touched a period ago".to_owned(),
            (_, PrefetchWay::Readahead) => "  next by address".to_owned(),
            (PrefetchMatch::Own, _) => "  after its own past".to_owned(),
            (by, PrefetchWay::Touched) => format!("  touched by {} ({})", origin.leader, match_name(by)),
            (by, PrefetchWay::Followed) => {
                format!("  touched next by {} ({})", origin.leader, match_name(by))
            }
            (by, PrefetchWay::Earlier) => format!("  touched next by its earlier self ({})", match_name(by)),
        };
        row(&what, outcomes(origin));
    }
    table.to_string()
}

/// What staging was worth to this VM in the last day, and who predicted it.
fn last_day(day: &PrefetchLastDay, vm: &str) -> String {
    let by = day.by.iter().filter(|by| by.avoided_pages > 0).map(|by| {
        let who = match by.leader.as_deref() {
            Some(leader) if leader == vm => "itself",
            Some(leader) => leader,
            None => "VMs that have gone",
        };
        format!("{} by {who}", by.avoided_pages)
    });
    let by: Vec<_> = by.collect();
    let by = if by.is_empty() { String::new() } else { format!(" ({})", by.join(", ")) };
    format!("{} waits for a read avoided{by}, {} pages read in vain", day.avoided_pages, day.wasted_pages)
}

/// What became of what one origin predicted.
fn outcomes(origin: &PrefetchOrigin) -> String {
    let PrefetchOrigin { issued_pages, used_pages, wasted_pages, late_pages, confidence, .. } = origin;
    let shadow = match (origin.shadow_right_pages, origin.shadow_wrong_pages) {
        (0, 0) => String::new(),
        (right, wrong) => format!("; in the shadow {right} right, {wrong} wrong"),
    };
    format!(
        "{issued_pages} issued, {used_pages} used, {wasted_pages} wasted, {late_pages} late{shadow}; \
         confidence {confidence:.2}, window {}",
        origin.window_pages
    )
}

fn match_name(by: PrefetchMatch) -> &'static str {
    match by {
        PrefetchMatch::Own => "the same VM",
        PrefetchMatch::Gfn => "same address",
        PrefetchMatch::GfnOnly => "same address, other content",
        PrefetchMatch::Tag => "same content",
    }
}

pub fn map(map: &VmMap) -> String {
    let mut table = Table::new([
        ">HVA",
        ">GPA",
        ">PAGES",
        ">SIZE",
        "TIER",
        "FIRST FRAME OR SLOT",
        ">HEAT",
        ">IDLE",
        "STATE",
    ]);
    for run in &map.runs {
        table.row([
            format!("{:#x}", run.hva),
            or_none(run.gpa.map(|gpa| format!("{gpa:#x}"))),
            run.pages.to_string(),
            size(run.pages.saturating_mul(map.page_bytes)),
            run.tier.clone(),
            or_none(run.frame_or_slot.map(location)),
            run.heat.to_string(),
            or_none(run.idle_ms.map(|ms| nanoseconds(ms.saturating_mul(1_000_000)))),
            page_state(run),
        ]);
    }
    table.to_string()
}

pub fn moved(outcome: &MoveOutcome, to: &str) -> String {
    let mut text = format!(
        "moved {} of {} pages ({}) towards {to} in {} ms; read back there: {}\n",
        outcome.moved_pages,
        outcome.asked_pages,
        size(outcome.moved_bytes),
        outcome.elapsed_ms,
        outcome.in_tier_pages
    );
    if outcome.huge_split_bytes > 0 {
        text += &format!("huge pages: {} of them are split\n", size(outcome.huge_split_bytes));
    }
    for (reason, pages) in &outcome.skipped {
        text += &format!("left alone: {pages} pages, {reason}\n");
    }
    text
}

pub fn drained(outcome: &DrainOutcome) -> String {
    format!(
        "{} is empty and off: {} pages were brought up in {} ms\n",
        outcome.tier, outcome.brought_up_pages, outcome.elapsed_ms
    )
}

/// `proposed`: the ladder in `config` does not come from the operator.
pub fn doctor(checks: &[Check], config: &Config, proposed: bool) -> String {
    let mut table = Table::new(["CHECK", "STATE", "DETAIL", "WHAT IS LOST"]);
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Missing => "missing",
        };
        let consequence = check.consequence.clone().unwrap_or_default();
        table.row([check.name.clone(), state.to_owned(), check.detail.clone(), consequence]);
    }
    let mut text = table.to_string();
    if proposed {
        text += "\nthe configuration names no tiers; this ladder is used, and can be put there:\n\n";
        text += &config.ladder_toml();
    }
    if config.vms.iter().all(|rule| rule.tenant.is_none()) {
        text.push('\n');
        text += SHARING_OFF;
    }
    text
}

fn full_name(vm: &VmStatus) -> String {
    match &vm.namespace {
        Some(namespace) => format!("{namespace}/{}", vm.name),
        None => vm.name.clone(),
    }
}

fn movable(vm: &VmStatus) -> String {
    match (&vm.reason, vm.movable) {
        (None, true) => "yes".to_owned(),
        (Some(reason), true) => format!("between memory tiers only: {reason}"),
        (Some(reason), false) => format!("no: {reason}"),
        (None, false) => "no".to_owned(),
    }
}

fn page_state(run: &MapRun) -> String {
    match (run.staged, run.written) {
        (false, false) => String::new(),
        (true, false) => "staged".to_owned(),
        (false, true) => "written".to_owned(),
        (true, true) => "staged, written".to_owned(),
    }
}

/// How often mapped pages show their accesses anew, or why they do not.
fn rounds(rearm: &RearmStatus) -> String {
    if let Some(why_not) = &rearm.why_not {
        return format!("no: {why_not}");
    }
    let every = nanoseconds(rearm.every_ns);
    match rearm.pause_ns {
        None => format!("every {every}; none yet"),
        Some(pause) => format!(
            "every {every}; {} so far, the last held up its faults for {} and showed {} in use",
            rearm.rounds_total,
            nanoseconds(pause),
            size(rearm.used_bytes)
        ),
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
