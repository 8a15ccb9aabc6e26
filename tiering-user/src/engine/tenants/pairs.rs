//! What is told of two VMs of a tenant: how alike they are, and why one is of use to the other or is not.

use super::Tenant;
use crate::config::Prefetch;
use crate::engine::Engine;
use crate::engine::managed::ManagedVm;
use crate::predict::{Foreseen, OriginCounts, PROOF_ENDS};
use crate::similarity::Parts;
use crate::telemetry::request::ApiError;
use crate::telemetry::similar::{Similar, SimilarPair, SimilarParts};
use crate::track::VmId;

impl Engine {
    /// How alike VMs are: all that were compared, or one and those it may learn from.
    pub(in crate::engine) fn similar(&self, id: Option<&str>) -> Result<Similar, ApiError> {
        let only = id.map(|id| self.vm(id).map(|vm| vm.info.id)).transpose()?;
        let mut pairs = Vec::new();
        for tenant in self.tenants.all() {
            for (follower, neighbour) in tenant.likeness.pairs() {
                if only.is_some_and(|only| only != follower) {
                    continue;
                }
                let (Some(one), Some(leader)) = (self.vms.get(&follower), self.vms.get(&neighbour.vm)) else {
                    continue;
                };
                let counts = one.prefetch.stages.counts_of(neighbour.vm);
                let Parts { content, placed, files, behaviour, lagged } = neighbour.parts;
                pairs.push(SimilarPair {
                    follower: one.id.clone(),
                    leader: leader.id.clone(),
                    score: neighbour.score,
                    parts: SimilarParts { content, placed, files, behaviour, lagged },
                    issued_pages: counts.issued,
                    used_pages: counts.used,
                    wasted_pages: counts.wasted,
                    why: self.why(one, neighbour.vm, tenant),
                });
            }
        }
        pairs.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(Similar { pairs })
    }

    /// Whether pages of `follower` are staged because of `leader`, and why so.
    fn why(&self, follower: &ManagedVm, leader: VmId, tenant: &Tenant) -> String {
        let Prefetch { enabled, push, pull, by_content, by_address, threshold, .. } = self.config.prefetch;
        if !enabled || !(push || pull) || !(by_content || by_address) {
            return "not used: the configuration (prefetch) has it so".to_owned();
        }
        if let Some(why) = follower.never_to_swap() {
            return format!("not used: nothing of the follower goes to swap: {why}");
        }
        if !tenant.likeness.leaders(follower.info.id).contains(&leader) {
            return "not used: others are more alike".to_owned();
        }
        let stages = &follower.prefetch.stages;
        let origins = || stages.origins().filter(|(origin, _)| origin.leader() == Some(leader));
        if origins().any(|(origin, _)| stages.is_trusted(origin, threshold)) {
            return "used".to_owned();
        }
        told(origins().map(|(_, known)| known), threshold)
    }
}

/// Why no origin of the leader is trusted: of the best of them.
fn told(origins: impl Iterator<Item = OriginCounts>, threshold: f64) -> String {
    let predictions = |known: &OriginCounts| {
        let Foreseen { right, wrong } = known.foreseen;
        (right + known.counts.used, right + wrong + known.counts.used + known.counts.wasted)
    };
    let best = origins.max_by(|a, b| a.confidence.total_cmp(&b.confidence));
    match best.map(|best| (predictions(&best), best.confidence)) {
        None => "not used yet: none of its touches predicted a page that is in swap".to_owned(),
        Some(((right, all), _)) if all < u64::from(PROOF_ENDS) => {
            format!("being tried: {right} of {all} predictions were right, {PROOF_ENDS} are needed")
        }
        Some(((right, all), confidence)) => format!(
            "not used now: {right} of {all} predictions were right; confidence is {confidence:.2}, \
             {threshold:.2} is needed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::StageCounts;

    #[test]
    fn why_a_pair_is_not_used_is_told_of_its_best_origin() {
        let origin = |right, wrong, confidence| OriginCounts {
            counts: StageCounts::default(),
            confidence,
            window: 64,
            foreseen: Foreseen { right, wrong },
        };
        let told = |origins: &[OriginCounts]| told(origins.iter().copied(), 0.5);
        assert!(told(&[]).starts_with("not used yet"));
        assert_eq!(told(&[origin(3, 1, 0.7)]), "being tried: 3 of 4 predictions were right, 16 are needed");
        assert_eq!(
            told(&[origin(0, 90, 0.02), origin(30, 70, 0.31)]),
            "not used now: 30 of 100 predictions were right; confidence is 0.31, 0.50 is needed"
        );
    }
}
