//! What each VM gives of the first tier while that is short of room.
//!
//! In: what each VM has there and what of that is on its way down already, and how much is missing. Out: for each VM
//! its share, and what it has beyond that. Pure.
//!
//! What is missing is asked for once: pages that are queued or with the mover are as good as gone, from whichever VM.
//! Pages that are down, and whose copies are still in the swap cache, are available ([`FreeSpace`](super::FreeSpace))
//! and missing no more.
//!
//! # Limits
//! What is on its way may be left out by the last look before its batch, or be touched: then it is missing again a
//! second later.

use super::{Claim, shares};

/// What a VM has of the first tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holding {
    /// All that it has there and that stays.
    pub claim: Claim,
    /// Pages that it has there too, and that are queued for a lower tier, or with the mover.
    pub leaving: u64,
}

/// What a VM may keep and what it gives, pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relief {
    pub share_pages: u64,
    /// Beyond its share: what is on its way too. Nothing while nothing is missing.
    pub excess_pages: u64,
}

/// For each holding, in their order.
pub fn relief(holdings: &[Holding], missing_pages: u64) -> Vec<Relief> {
    if missing_pages == 0 {
        let all = |holding: &Holding| Relief {
            share_pages: holding.claim.wants + holding.leaving,
            excess_pages: 0,
        };
        return holdings.iter().map(all).collect();
    }
    let missing = missing_pages.saturating_sub(holdings.iter().map(|holding| holding.leaving).sum());
    let claims: Vec<Claim> = holdings.iter().map(|holding| holding.claim).collect();
    let there: u64 = claims.iter().map(|claim| claim.wants).sum();
    let shares = shares(&claims, there.saturating_sub(missing));
    let beyond = |(holding, share_pages): (&Holding, u64)| Relief {
        share_pages,
        excess_pages: holding.claim.wants + holding.leaving - share_pages,
    };
    holdings.iter().zip(shares).map(beyond).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::FreeSpace;
    use crate::track::VmId;
    use proptest::prelude::*;

    /// Of so many pages, so many are leaving.
    fn holding(has: u64, leaving: u64) -> Holding {
        let wants = has - leaving;
        Holding { claim: Claim { vm: VmId(1), wants, floor: 0, weight: 1.0, waits: None }, leaving }
    }

    fn excess(holdings: &[Holding], missing: u64) -> Vec<u64> {
        relief(holdings, missing).iter().map(|relief| relief.excess_pages).collect()
    }

    #[test]
    fn what_one_gives_already_is_not_asked_of_another() {
        assert_eq!(excess(&[holding(1000, 0), holding(1000, 0)], 400), [200, 200]);
        assert_eq!(
            excess(&[holding(1000, 200), holding(1000, 0)], 400),
            [200, 200],
            "both end at the same share"
        );
        assert_eq!(excess(&[holding(1000, 700), holding(1000, 0)], 400), [700, 0], "more than is missing");
        assert_eq!(excess(&[holding(1000, 700), holding(1000, 0)], 0), [0, 0], "nothing is missing");
    }

    /// Pages of 4 KiB in the kernel's hands for so many seconds: queued, then copies in the swap cache, then free.
    struct Host {
        free: u64,
        copies: u64,
        /// What each VM has, and what is queued of it, by how many seconds it still takes.
        vms: Vec<(u64, Vec<(u64, u64)>)>,
        demoted: u64,
    }

    impl Host {
        fn holdings(&self) -> Vec<Holding> {
            let leaving = |queue: &[(u64, u64)]| queue.iter().map(|(_, pages)| pages).sum();
            self.vms.iter().map(|(has, queue)| holding(*has, leaving(queue))).collect()
        }

        /// A VM that has nothing queued plans what it has in excess, `most` pages at most.
        fn second(&mut self, missing: u64, most: u64, takes: u64, freed_one_in: u64) {
            let gives = excess(&self.holdings(), missing);
            for ((has, queue), gives) in self.vms.iter_mut().zip(gives) {
                if queue.is_empty() && gives > 0 {
                    queue.push((takes, gives.min(most)));
                }
                for (seconds, pages) in queue.iter_mut() {
                    *seconds = seconds.saturating_sub(1);
                    if *seconds == 0 {
                        *has -= *pages;
                        self.copies += *pages;
                        self.demoted += *pages;
                    }
                }
                queue.retain(|(seconds, _)| *seconds > 0);
            }
            let freed = self.copies / freed_one_in;
            self.copies -= freed;
            self.free += freed;
        }
    }

    proptest! {
        #[test]
        fn what_is_missing_goes_down_once_however_long_it_takes_and_whenever_the_copies_are_freed(
            vms in proptest::collection::vec(1000..50_000_u64, 1..6), missing_percent in 1..80_u64,
            most in 1000..20_000_u64, takes in 1..20_u64, freed_one_in in 2..1000_u64,
        ) {
            let all: u64 = vms.iter().sum();
            let missing = all * missing_percent / 100;
            let mut host = Host {
                free: 100_000, copies: 0, demoted: 0,
                vms: vms.into_iter().map(|has| (has, Vec::new())).collect(),
            };
            let target = host.free + missing;
            let mut free = FreeSpace::default();
            for _ in 0..5000 {
                let missing = free.missing(host.free + host.copies, target, 0);
                host.second(missing, most, takes, freed_one_in);
                prop_assert!(host.demoted <= missing_once(all, target), "{} of {}", host.demoted, missing);
            }
            prop_assert_eq!(host.demoted, missing);
        }
    }

    /// What was missing when nothing was down yet; shares are whole pages, so each VM may give one too much.
    fn missing_once(all: u64, target: u64) -> u64 {
        (target - 100_000).min(all) + 6
    }
}
