//! What a follower saves when a leader of its tenant has walked the same pages a little earlier.
//!
//! Two emulated guests on this machine. Before each walk all of both is in the nvme tier's swap file and nowhere else,
//! the swap cache being empty. The leader starts to walk, and after the lag the follower. By turns in each repeat: an
//! agent that stages nothing, with the kernel's swap readahead at page-cluster 0, 3 and 5, and an agent that does, with
//! page-cluster 3, the kernel's default, newly started and without state on disk, so that it knows nothing of earlier
//! walks; or, where that is said, one that saw both walk twice, each time in another order. The best of the three is
//! what it is compared with.
//!
//! *Stall* is what the first accesses of the walk took beyond what they take in DRAM.

use crate::host::Host;
use crate::walk::{
    DEFAULT_PAGE_CLUSTER, Member, PAGE_CLUSTERS, Round, SET_MIB, Staged, Walk, follow, send_down, show,
};
use anyhow::Result;
use std::time::Duration;
use tiering_testkit::guest::Snapshot;
use tiering_testkit::pattern::Access;
use tiering_testkit::readahead::Readahead;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

pub const LEADER: &str = "tt-leader";
pub const FOLLOWER: &str = "tt-follower";
/// Of the walks that the agent saw before.
const KNOWN_LAG: Duration = Duration::from_millis(500);

/// What both walk, and the lags after which the follower begins, ms.
struct Case {
    name: &'static str,
    access: Access,
    follower: Access,
    lags_ms: &'static [u64],
    /// Walks that the agent saw before.
    seen: u32,
}

fn cases(quick: bool) -> Vec<Case> {
    let same = |name, access| Case { name, access, follower: access, lags_ms: &[1000], seen: 0 };
    let overlap = |name, percent| Case { follower: follow(percent), ..same(name, follow(100)) };
    let lags_ms: &[u64] = if quick { &[250] } else { &[0, 50, 250, 1000, 5000] };
    let mut cases = vec![
        Case { lags_ms, ..same("random", follow(100)) },
        Case { lags_ms, seen: 2, ..same("random, known pair", follow(100)) },
        same("stride", Access::Stride { set_mib: SET_MIB, stride_pages: 16 }),
        same("sequential", Access::Sequential { set_mib: SET_MIB }),
        overlap("random, 50 % overlap", 50),
    ];
    if !quick {
        cases.push(overlap("random, 90 % overlap", 90));
        cases.push(overlap("random, 70 % overlap", 70));
    }
    cases
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let repeats = if quick { 2 } else { 5 };
    for case in cases(quick) {
        let mut pair = Pair::start(case.access, case.follower, case.seen > 0)?;
        let in_dram = pair.walk(Duration::from_secs(1))?.phase;
        for lag_ms in case.lags_ms {
            let lag = Duration::from_millis(*lag_ms);
            let mut rounds = Vec::new();
            for _ in 0..repeats {
                let kernel = pair.by_kernel(&host, &readahead, lag)?;
                let (ours, staged) = pair.by_agent(&host, "", case.seen, lag)?;
                rounds.push(Round { kernel, ours, staged });
            }
            show(results, &format!("{}, lag {lag_ms} ms", case.name), &in_dram, &rounds);
        }
        pair.finish(results)?;
    }
    Ok(())
}

/// The two guests, each in a memory control group.
pub struct Pair {
    leader: Member,
    follower: Member,
}

impl Pair {
    /// Their walks; in another order each time if `reorder`.
    pub fn start(leader: Access, follower: Access, reorder: bool) -> Result<Self> {
        // Where a walk follows from the seed, equal seeds make equal pages; where it has a seed of its own, the set's
        // do.
        let own = matches!(leader, Access::Follow { .. });
        let leader = Member::start(LEADER, 1, leader, reorder)?;
        let follower = Member::start(FOLLOWER, if own { 2 } else { 1 }, follower, reorder)?;
        Ok(Self { leader, follower })
    }

    /// Two clones.
    pub fn of(snapshot: &Snapshot) -> Result<Self> {
        // One by one: each is in its control group before it reads its memory.
        let leader = Member::of(snapshot.start(LEADER)?)?;
        Ok(Self { leader, follower: Member::of(snapshot.start(FOLLOWER)?)? })
    }

    pub fn members(&self) -> [&Member; 2] {
        [&self.leader, &self.follower]
    }

    /// The leader's begins, and after the lag the follower's, which is told of.
    pub fn walk(&mut self, lag: Duration) -> Result<Walk> {
        self.leader.begin()?;
        stop::sleep(lag)?;
        let follower = self.follower.walk()?;
        self.leader.end()?;
        Ok(follower)
    }

    /// Its walks by an agent that stages nothing, at each page-cluster; afterwards it is the kernel's default again.
    pub fn by_kernel(&mut self, host: &Host, readahead: &Readahead, lag: Duration) -> Result<Vec<Walk>> {
        let agent = host.agent(false)?;
        let mut walks = Vec::new();
        for cluster in PAGE_CLUSTERS {
            readahead.set(cluster)?;
            send_down(&agent, &self.members())?;
            walks.push(self.walk(lag)?);
        }
        agent.interrupt()?;
        readahead.set(DEFAULT_PAGE_CLUSTER)?;
        Ok(walks)
    }

    /// Its walk by an agent with these rules, which knows nothing but what it `seen`, so many walks before.
    pub fn by_agent(&mut self, host: &Host, rules: &str, seen: u32, lag: Duration) -> Result<(Walk, Staged)> {
        host.forget_state()?;
        let agent = host.agent_that(rules)?;
        for _ in 0..seen {
            send_down(&agent, &self.members())?;
            self.walk(KNOWN_LAG)?;
        }
        send_down(&agent, &self.members())?;
        let before = Staged::of(&agent, FOLLOWER)?;
        let ours = self.walk(lag)?;
        let staged = Staged::of(&agent, FOLLOWER)?.since(&before);
        agent.interrupt()?;
        Ok((ours, staged))
    }

    pub fn finish(mut self, results: &mut Results) -> Result<()> {
        [&mut self.leader, &mut self.follower].into_iter().try_for_each(|member| member.finish(results))
    }
}
