//! Whether the ladder is in the order that the host and the measurement say.
//!
//! In: the ladder, [`Facts`], and the measured median of each tier. Out: [`Finding`]s, each a contradiction with what
//! to do about it. Pure. What cannot work at all is not found here but refused where it is tried.
//!
//! For each way to tell tiers apart, those tiers of which it tells something are compared in their order, each with the
//! next. A tier of several nodes counts as its slowest against what is below it, and as its fastest against what is
//! above.

use std::fmt;
use std::path::PathBuf;

use super::{Disk, Facts, Ladder, NodeFacts, Tier, TierKind};

/// A median must be this many times as long before it counts against the order: less is noise.
const NOISE: f64 = 1.5;
/// A disk that answers sooner does not turn, whatever is said of it: half a turn at 15,000 a minute takes 2 ms.
const TURNING_NS: u64 = 1_000_000;

/// By what one tier is slower than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Measurement,
    Hmat,
    Distance,
    KernelTier,
}

/// A tier, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub tier: String,
    pub value: u64,
}

/// Something that contradicts the order of the ladder, or stands in its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The upper of two tiers is the slower one.
    Slower { by: By, upper: Told, lower: Told },
    /// Two swap tiers are on one disk.
    OneDisk { upper: String, lower: String, disk: String },
    /// A swap tier on a turning disk stands above one that is not.
    TurningAbove { upper: String, lower: String, disk: String },
    /// A swap tier is on a turning disk.
    Turning { tier: String, disk: String },
    /// zswap is on.
    Zswap,
    /// A swap area is compressed memory.
    Zram { path: PathBuf },
}

impl Finding {
    /// What it is about, in a word or two.
    pub fn subject(&self) -> &'static str {
        match self {
            Self::Slower { by: By::Measurement, .. } => "order, as measured",
            Self::Slower { by: By::Hmat, .. } => "order, by HMAT",
            Self::Slower { by: By::Distance, .. } => "order, by distance",
            Self::Slower { by: By::KernelTier, .. } => "order, by the kernel",
            Self::OneDisk { .. } | Self::TurningAbove { .. } | Self::Turning { .. } => "disks of the tiers",
            Self::Zswap => "zswap",
            Self::Zram { .. } => "zram",
        }
    }

    /// What follows from it, and what to do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Slower { .. } | Self::TurningAbove { .. } => {
                "idle pages go to the faster tier last: exchange the two in the configuration"
            }
            Self::OneDisk { .. } => {
                "moving between them costs reads and writes and gains nothing: put one on another disk, or leave it out"
            }
            Self::Turning { .. } => "a page that is needed again waits for milliseconds: use flash",
            Self::Zswap | Self::Zram { .. } => {
                "demoted pages may stay in memory, compressed: a tier's used bytes are not what left memory"
            }
        }
    }

    /// Whether `tiering doctor` has a check of its own for it.
    pub fn is_about_the_kernel(&self) -> bool {
        matches!(self, Self::Zswap | Self::Zram { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slower { by, upper, lower } => {
                let (kind, unit) = match by {
                    By::Measurement => ("a measured read latency of", " ns"),
                    By::Hmat => ("by HMAT a read latency of", " ns"),
                    By::Distance => ("a distance of", ""),
                    By::KernelTier => ("the kernel's memory tier", ""),
                };
                write!(
                    f,
                    "tier `{}` has {kind} {}{unit} and stands above tier `{}` with {}{unit}",
                    upper.tier, upper.value, lower.tier, lower.value
                )
            }
            Self::OneDisk { upper, lower, disk } => {
                write!(f, "tiers `{upper}` and `{lower}` are on one disk, {disk}")
            }
            Self::TurningAbove { upper, lower, disk } => {
                write!(
                    f,
                    "tier `{upper}` is on a turning disk, {disk}, and stands above tier `{lower}`, which is not"
                )
            }
            Self::Turning { tier, disk } => write!(f, "tier `{tier}` is on a turning disk, {disk}"),
            Self::Zswap => write!(f, "zswap is on"),
            Self::Zram { path } => write!(f, "{} is a swap area of compressed memory", path.display()),
        }
    }
}

/// Finds what contradicts the ladder. `p50_ns` is the measured median of each tier, none where it could not be
/// measured.
pub fn verify(ladder: &Ladder, facts: &Facts, p50_ns: &[Option<u64>]) -> Vec<Finding> {
    let tiers = ladder.tiers();
    let mut findings = measured_order(tiers, p50_ns);
    let figures: [(By, Figure); 3] = [
        (By::Hmat, |node| node.hmat.read_latency_ns),
        (By::Distance, |node| node.nearest_cpus.map(|near| near.distance.into())),
        (By::KernelTier, |node| node.kernel_tier.map(u64::from)),
    ];
    for (by, figure) in figures {
        findings.extend(node_order(tiers, facts, by, figure));
    }
    findings.extend(disks(tiers, facts, p50_ns));
    findings.extend(facts.zswap.then_some(Finding::Zswap));
    findings.extend(facts.zram.iter().map(|path| Finding::Zram { path: path.clone() }));
    findings
}

/// Whether these medians of the tiers contradict no order; what is not known is skipped.
pub(super) fn in_order(p50_ns: &[Option<u64>]) -> bool {
    let told: Vec<u64> = p50_ns.iter().copied().flatten().collect();
    !told.windows(2).any(|pair| is_slower(pair[0], pair[1]))
}

fn is_slower(upper_ns: u64, lower_ns: u64) -> bool {
    upper_ns as f64 > lower_ns as f64 * NOISE
}

fn measured_order(tiers: &[Tier], p50_ns: &[Option<u64>]) -> Vec<Finding> {
    let told: Vec<_> = tiers
        .iter()
        .zip(p50_ns)
        .filter_map(|(tier, p50)| Some(Told { tier: tier.name.clone(), value: (*p50)? }))
        .collect();
    let reversed = told.windows(2).filter_map(|pair| {
        let [upper, lower] = pair else { return None };
        let slower = is_slower(upper.value, lower.value);
        slower.then(|| Finding::Slower { by: By::Measurement, upper: upper.clone(), lower: lower.clone() })
    });
    reversed.collect()
}

/// One figure of a node, by which nodes are told apart.
type Figure = fn(&NodeFacts) -> Option<u64>;

fn node_order(tiers: &[Tier], facts: &Facts, by: By, figure: Figure) -> Vec<Finding> {
    // Of each tier its name, its fastest and its slowest node.
    let told: Vec<_> = tiers
        .iter()
        .filter_map(|tier| {
            let TierKind::Node { nodes } = &tier.kind else { return None };
            let values = || nodes.iter().filter_map(|node| figure(facts.node(*node)?));
            Some((&tier.name, values().min()?, values().max()?))
        })
        .collect();
    let reversed = told.windows(2).filter_map(|pair| {
        let [(upper, _, slowest), (lower, fastest, _)] = pair else { return None };
        (slowest > fastest).then(|| Finding::Slower {
            by,
            upper: Told { tier: (*upper).clone(), value: *slowest },
            lower: Told { tier: (*lower).clone(), value: *fastest },
        })
    });
    reversed.collect()
}

fn disks(tiers: &[Tier], facts: &Facts, p50_ns: &[Option<u64>]) -> Vec<Finding> {
    let below = |level: usize| facts.disks.get(level).into_iter().flatten().flat_map(|facts| &facts.disks);
    let turning = |level: usize| -> Option<&Disk> {
        let quick = p50_ns.get(level).copied().flatten().is_some_and(|ns| ns < TURNING_NS);
        below(level).find(|disk| disk.rotational == Some(true)).filter(|_| !quick)
    };
    let mut findings = Vec::new();
    for (level, tier) in tiers.iter().enumerate() {
        let lower = tiers.iter().enumerate().skip(level + 1);
        let upper = || tier.name.clone();
        for (lower_level, lower) in lower.clone() {
            let shared = below(level).find(|disk| below(lower_level).any(|other| other.name == disk.name));
            findings.extend(shared.map(|disk| Finding::OneDisk {
                upper: upper(),
                lower: lower.name.clone(),
                disk: disk.to_string(),
            }));
        }
        let Some(disk) = turning(level) else { continue };
        // Where nothing is known of a disk, nothing is said of it.
        let still = lower.clone().find(|(lower, _)| below(*lower).count() > 0 && turning(*lower).is_none());
        findings.push(match still {
            Some((_, lower)) => {
                Finding::TurningAbove { upper: upper(), lower: lower.name.clone(), disk: disk.to_string() }
            }
            None => Finding::Turning { tier: upper(), disk: disk.to_string() },
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::tiers::{DiskFacts, Hmat, Nearest};

    /// dram of nodes 0 and 1, cxl of node 2, nvme, qlc.
    fn ladder() -> Ladder {
        let text = r#"
[[tier]]
name = "dram"
nodes = [0, 1]
[[tier]]
name = "cxl"
nodes = [2]
[[tier]]
name = "nvme"
swap = { path = "/n", size = "1GiB" }
[[tier]]
name = "qlc"
swap = { path = "/q", size = "1GiB" }
"#;
        Ladder::new(&Config::parse(text, "test.toml").unwrap())
    }

    fn node(node: u32, latency_ns: u64, distance: u32, kernel_tier: u32) -> NodeFacts {
        NodeFacts {
            node,
            kernel_tier: Some(kernel_tier),
            nearest_cpus: Some(Nearest { node: 0, distance }),
            hmat: Hmat { read_latency_ns: Some(latency_ns), ..Hmat::default() },
            ..NodeFacts::default()
        }
    }

    fn disk(name: &str, rotational: bool) -> Option<DiskFacts> {
        let disk = Disk { name: name.into(), rotational: Some(rotational), ..Disk::default() };
        Some(DiskFacts { disks: vec![disk], ..DiskFacts::default() })
    }

    fn facts() -> Facts {
        Facts {
            nodes: vec![node(0, 90, 10, 4), node(1, 95, 10, 4), node(2, 250, 24, 22)],
            disks: vec![None, None, disk("nvme0n1", false), disk("nvme1n1", false)],
            ..Facts::default()
        }
    }

    const SOUND: [Option<u64>; 4] = [Some(100), Some(240), Some(80_000), Some(200_000)];

    /// The findings, as they are read.
    fn found(facts: &Facts, p50_ns: &[Option<u64>]) -> Vec<String> {
        verify(&ladder(), facts, p50_ns).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_ladder_in_order_has_no_findings_and_so_has_one_of_which_nothing_is_known() {
        assert_eq!(found(&facts(), &SOUND), [""; 0]);
        assert_eq!(found(&Facts::default(), &[None; 4]), [""; 0]);
    }

    #[test]
    fn a_measured_order_is_reversed_beyond_noise_only() {
        let noisy = [Some(149), Some(100), Some(80_000), Some(60_000)];
        assert_eq!(found(&facts(), &noisy), [""; 0]);
        let reversed = [Some(100), Some(240), Some(200_000), Some(80_000)];
        let expected =
            "tier `nvme` has a measured read latency of 200000 ns and stands above tier `qlc` with 80000 ns";
        assert_eq!(found(&facts(), &reversed), [expected]);
        assert_eq!([noisy, reversed].map(|p50_ns| in_order(&p50_ns)), [true, false]);
        let with_a_gap = [Some(300), None, None, Some(100)];
        assert!(!in_order(&with_a_gap));
        assert!(
            found(&facts(), &with_a_gap)[0].starts_with("tier `dram` has"),
            "what is not known is skipped"
        );
    }

    #[test]
    fn what_firmware_and_kernel_say_of_nodes_counts_node_by_node() {
        let mut facts = facts();
        facts.nodes[2] = node(2, 93, 10, 4);
        let expected =
            ["tier `dram` has by HMAT a read latency of 95 ns and stands above tier `cxl` with 93 ns"];
        assert_eq!(found(&facts, &SOUND), expected);
        facts.nodes[2] = node(2, 250, 9, 3);
        let expected = [
            "tier `dram` has a distance of 10 and stands above tier `cxl` with 9",
            "tier `dram` has the kernel's memory tier 4 and stands above tier `cxl` with 3",
        ];
        assert_eq!(found(&facts, &SOUND), expected);
    }

    #[test]
    fn two_swap_tiers_on_one_disk_are_told() {
        let mut facts = facts();
        facts.disks[3] = disk("nvme0n1", false);
        assert_eq!(found(&facts, &SOUND), ["tiers `nvme` and `qlc` are on one disk, nvme0n1"]);
    }

    #[test]
    fn a_turning_disk_is_told_unless_it_answers_too_soon_to_be_one() {
        let mut facts = facts();
        facts.disks[3] = disk("sda", true);
        let slow = [SOUND[0], SOUND[1], SOUND[2], Some(8_000_000)];
        assert_eq!(found(&facts, &slow), ["tier `qlc` is on a turning disk, sda"]);
        assert_eq!(found(&facts, &SOUND), [""; 0], "a virtual disk that is said to turn");
        facts.disks.swap(2, 3);
        let above = "tier `nvme` is on a turning disk, sda, and stands above tier `qlc`, which is not";
        assert_eq!(found(&facts, &[None; 4]), [above]);
    }

    #[test]
    fn compressed_memory_is_told() {
        let facts = Facts { zswap: true, zram: vec!["/dev/zram0".into()], ..facts() };
        let expected = ["zswap is on", "/dev/zram0 is a swap area of compressed memory"];
        assert_eq!(found(&facts, &SOUND), expected);
    }
}
