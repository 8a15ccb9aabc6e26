//! The ladder: where it comes from, what it is made of, how fast it is, and what contradicts its order.

use std::path::Path;

use bytesize::ByteSize;

use super::Check;
use crate::config::{Config, KernelDemotion};
use crate::telemetry::status::KernelDemotionStatus;
use crate::tiers::{
    Candidate, Facts, Finding, KernelMoves, Ladder, Measurement, NodeFacts, Proposal, Tier, measure, verify,
};

pub(super) fn checks(config: &Config, proposal: Option<&Proposal>) -> Vec<Check> {
    let ladder = Ladder::new(config);
    let facts = Facts::gather(Path::new("/sys"), Path::new("/proc"), &ladder);
    let measured = measure(ladder.tiers(), &facts.nodes);
    let mut checks = Vec::new();
    if let Some(proposal) = proposal {
        checks.push(proposed(proposal));
        checks.extend(proposal.candidates.iter().map(candidate));
    }
    checks.extend(facts.nodes.iter().map(node));
    if facts.nodes.len() > 1 {
        checks.push(kernel_moves(facts.kernel_moves, config.policy.kernel_demotion));
    }
    checks.extend(ladder.tiers().iter().zip(&measured).map(|(tier, measured)| speed(tier, measured, &facts)));
    let p50_ns: Vec<_> = measured.iter().map(Measurement::p50_ns).collect();
    let findings = verify(&ladder, &facts, &p50_ns);
    let about_the_ladder: Vec<_> = findings.iter().filter(|finding| !finding.is_about_the_kernel()).collect();
    checks.extend(about_the_ladder.iter().map(|finding| contradiction(finding)));
    if about_the_ladder.is_empty() && ladder.tiers().len() > 1 {
        checks.push(Check::ok("order of the tiers", "nothing contradicts it"));
    }
    checks
}

fn proposed(proposal: &Proposal) -> Check {
    const NAME: &str = "ladder";
    let names: Vec<_> = proposal.tiers.iter().map(|tier| tier.name.as_str()).collect();
    let detail = format!("{}: proposed, the configuration names no tier", names.join(", "));
    if proposal.left_out.is_empty() {
        return Check::ok(NAME, detail);
    }
    Check::degraded(NAME, detail, format!("left out: {}", proposal.left_out.join("; ")))
}

fn candidate(candidate: &Candidate) -> Check {
    let disks: Vec<_> = candidate.disks.iter().map(ToString::to_string).collect();
    let (free, place) = (ByteSize(candidate.free_bytes).display().iec(), candidate.mount_point.display());
    let detail = format!("{place} on {}: {free} free; not used unless a [[tier]] names it", disks.join(", "));
    Check::ok("another disk", detail)
}

fn node(facts: &NodeFacts) -> Check {
    let mut told = vec![format!("{} MiB", facts.total_bytes >> 20)];
    told.push(match facts.cpus.len() {
        0 => "no CPUs".to_owned(),
        cpus => format!("{cpus} CPUs"),
    });
    told.extend(facts.device.as_deref().map(|device| match device.starts_with("region") {
        true => format!("CXL {device}"),
        false => device.to_owned(),
    }));
    told.extend(facts.kernel_tier.map(|tier| format!("kernel tier {tier}")));
    told.extend(facts.nearest_cpus.map(|near| format!("distance {} from node {}", near.distance, near.node)));
    told.extend(facts.hmat.read_latency_ns.map(|ns| format!("HMAT {ns} ns")));
    told.extend(facts.hmat.read_bandwidth_mib_per_s.map(|rate| format!("HMAT {rate} MiB/s")));
    Check::ok(&format!("node {}", facts.node), told.join(", "))
}

/// What the kernel moves by itself is seen and said, and not fought.
fn kernel_moves(moves: KernelMoves, wanted: KernelDemotion) -> Check {
    const NAME: &str = "kernel's own moves";
    let balancing = moves.balancing.unwrap_or(0);
    let demotion = moves.demotion == Some(true);
    let on_off = |on| if on { "on" } else { "off" };
    let detail = format!("demotion {}, NUMA balancing {balancing}", on_off(demotion));
    let wanted = wanted == KernelDemotion::On;
    if wanted && moves.demotion.is_none() {
        return Check::degraded(
            NAME,
            detail,
            "this kernel cannot demote: policy.kernel_demotion does nothing",
        );
    }
    if demotion && !wanted || balancing > 0 {
        let consequence = "pages change nodes without a plan: the next sweep notices; off: \
            /sys/kernel/mm/numa/demotion_enabled, kernel.numa_balancing";
        Check::degraded(NAME, detail, consequence)
    } else {
        Check::ok(NAME, detail)
    }
}

/// What an agent says of the kernel's demotion, where the configuration wants it.
pub fn demotion(config: &Config, agent: &KernelDemotionStatus) -> Option<Check> {
    const NAME: &str = "kernel demotion";
    if config.policy.kernel_demotion == KernelDemotion::Leave {
        return None;
    }
    let on_off = if agent.enabled { "on" } else { "off" };
    Some(match &agent.refused {
        None => Check::ok(NAME, on_off),
        Some(why) => {
            let lost = "the agent chooses what goes to lower memory tiers";
            Check::degraded(NAME, format!("{on_off}: {why}"), lost)
        }
    })
}

fn speed(tier: &Tier, measured: &Measurement, facts: &Facts) -> Check {
    let name = format!("speed of {}", tier.name);
    let device = facts.device_of(tier).map(|device| format!("; {device}")).unwrap_or_default();
    match &measured.outcome {
        Err(error) => {
            Check::degraded(&name, format!("{error}{device}"), "its place in the ladder is not verified")
        }
        Ok(measured) => {
            let times = measured.latencies.quantiles();
            let (p50, p99) = times.map_or((0, 0), |times| (times.p50_ns, times.p99_ns));
            let rate = measured.bandwidth_bytes_per_s >> 20;
            Check::ok(&name, format!("p50 {p50} ns, p99 {p99} ns, {rate} MiB/s{device}"))
        }
    }
}

fn contradiction(finding: &Finding) -> Check {
    Check::degraded(finding.subject(), finding.to_string(), finding.advice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::State;
    use crate::tiers::{Hmat, Nearest};

    #[test]
    fn a_cxl_node_is_told_with_all_that_is_known() {
        let facts = NodeFacts {
            node: 1,
            total_bytes: 512 << 20,
            kernel_tier: Some(22),
            nearest_cpus: Some(Nearest { node: 0, distance: 30 }),
            hmat: Hmat { read_latency_ns: Some(250), ..Hmat::default() },
            device: Some("region0".to_owned()),
            ..NodeFacts::default()
        };
        let told = "512 MiB, no CPUs, CXL region0, kernel tier 22, distance 30 from node 0, HMAT 250 ns";
        assert_eq!(node(&facts), Check::ok("node 1", told));
    }

    #[test]
    fn a_kernel_that_moves_pages_by_itself_is_told_with_how_to_stop_it() {
        let of = |demotion, balancing, wanted| kernel_moves(KernelMoves { demotion, balancing }, wanted);
        let state = |demotion, balancing| of(demotion, balancing, KernelDemotion::Leave).state;
        assert_eq!(state(Some(false), Some(0)), State::Ok);
        assert_eq!(state(None, None), State::Ok);
        assert_eq!(state(Some(true), Some(0)), State::Degraded);
        assert_eq!(state(None, Some(2)), State::Degraded);
        let wanted = |demotion, balancing| of(demotion, balancing, KernelDemotion::On).state;
        assert_eq!(wanted(Some(true), Some(0)), State::Ok);
        assert_eq!(wanted(None, Some(0)), State::Degraded);
        assert_eq!(wanted(Some(true), Some(1)), State::Degraded);
        let check = of(Some(true), Some(1), KernelDemotion::Leave);
        assert_eq!(check.detail, "demotion on, NUMA balancing 1");
        assert!(check.consequence.unwrap().contains("kernel.numa_balancing"));
    }

    #[test]
    fn what_keeps_an_agent_from_the_kernels_demotion_is_told_where_it_is_wanted() {
        let mut config = Config::default();
        let refused = KernelDemotionStatus { enabled: false, refused: Some("web-1 is bound".to_owned()) };
        assert_eq!(demotion(&config, &refused), None);
        config.policy.kernel_demotion = KernelDemotion::On;
        let check = demotion(&config, &refused).unwrap();
        assert_eq!((check.state, check.detail.as_str()), (State::Degraded, "off: web-1 is bound"));
        let on = KernelDemotionStatus { enabled: true, refused: None };
        assert_eq!(demotion(&config, &on), Some(Check::ok("kernel demotion", "on")));
    }

    #[test]
    fn a_proposal_without_swap_says_why() {
        let proposal = Proposal { left_out: vec!["swap: /s: too small".to_owned()], ..Proposal::default() };
        let check = proposed(&proposal);
        assert_eq!(check.state, State::Degraded);
        assert!(check.consequence.unwrap().contains("/s: too small"));
        assert_eq!(proposed(&Proposal::default()).state, State::Ok);
    }
}
