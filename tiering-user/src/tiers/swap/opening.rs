//! How the swap tiers begin: what others have there is left alone, and what an agent before this one left is taken
//! over.
//!
//! First all that can refuse the start, which changes nothing; then what must change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::area::{self, AreaError, Memory};
use super::claim::{self, Claim, Misfit};
use super::device::Device;
use super::error::{DeviceError, SwapError};
use super::files::{self, FileId, OnArea};
use super::folder;
use super::numbers::Numbers;
use super::order::priorities;
use super::passage::Passage;
use super::proc_swaps::{self, SwapLine};
use super::read_back::Probes;
use super::segments::{Area, Areas, Place, Segment, SwapTier};
use super::tiers::SwapTiers;
use crate::store::Store;
use crate::sys::{self, PAGE_BYTES, Pagemap};
use crate::tiers::{Ladder, SwapPlace, TierKind};

/// Makes sure that a tier of this name could have its swap there, as far as can be told without making anything.
///
/// # Errors
/// [`SwapError::Foreign`], [`SwapError::Area`], [`SwapError::Device`], [`SwapError::ProcSwaps`].
pub fn check_tier(name: &str, place: &SwapPlace, capacity_bytes: u64) -> Result<(), SwapError> {
    let on = OnArea::all(proc_swaps::read().map_err(SwapError::ProcSwaps)?);
    let folder = match place {
        SwapPlace::Folder(folder) => folder,
        SwapPlace::Device { path, allow_unsafe } => {
            let claimed = Device::find(path, *allow_unsafe).and_then(|device| device.claim(&on));
            return claimed.map(drop).map_err(|error| error.of_tier(name));
        }
    };
    let real = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    folder::check(&real)?;
    claim_folder(name, &real, capacity_bytes, &on).map(drop)
}

/// The areas that are on and that no agent made.
///
/// # Errors
/// Where `/proc/swaps` cannot be read.
pub fn areas_of_others() -> std::io::Result<Vec<SwapLine>> {
    let mut all = OnArea::all(proc_swaps::read()?);
    all.retain(|area| area.made_for.is_none());
    Ok(all.into_iter().map(|area| area.line).collect())
}

/// What of the folder is the agent's. Its file system must have room for what the tier lacks.
fn claim_folder(name: &str, real: &Path, capacity_bytes: u64, on: &[OnArea]) -> Result<Claim, SwapError> {
    area::check_folder(real, 0)?;
    let found = files::look(real).map_err(AreaError::io(real, "list the folder"))?;
    let claim = claim::claim(name, real, &found, on)?;
    let held = claim.on.iter().map(|(own, _)| own).chain(&claim.stale);
    let held: u64 = held.map(|own| own.bytes).sum();
    area::check_folder(real, capacity_bytes.saturating_sub(held))?;
    Ok(claim)
}

impl SwapTiers {
    /// Takes over areas of ours that are on in the tiers' folders, removes files of ours that are not, and makes the first
    /// file of the fastest and the slowest tier.
    ///
    /// # Errors
    /// Any [`SwapError`]; areas that were on stay on.
    pub fn open(ladder: &Ladder, store: Arc<Store>) -> Result<Self, SwapError> {
        let own = Pagemap::of_self().map_err(|source| SwapError::Direct { tier: "all".into(), source })?;
        let on = OnArea::all(proc_swaps::read().map_err(SwapError::ProcSwaps)?);
        let mut tiers = Vec::new();
        let plan = Plan::new(ladder, &on, &mut tiers).inspect_err(|_| remove_folders(&tiers))?;
        let mut this = Self {
            tiers,
            areas: Areas::default(),
            numbers: Numbers(store),
            own,
            probes: Probes::default(),
            open: None,
            passage: Passage::default(),
            shed: sys::now(),
            no_growth: None,
        };
        match this.carry_out(plan) {
            Ok(()) => Ok(this),
            Err(error) => {
                // The saved numbers stay: areas that stay on may not be known yet.
                this.let_go();
                Err(error)
            }
        }
    }

    fn carry_out(&mut self, plan: Plan) -> Result<(), SwapError> {
        for misfit in &plan.misfits {
            tracing::warn!("{misfit}: it comes up to memory, and the area is switched off");
            misfit.own.switch_off()?;
            if let Err(error) = misfit.own.remove() {
                tracing::warn!(%error, "a swap file that is off stays");
            }
            let is_left = !misfit.has_tier() && !misfit.own.id.is_device();
            if let Some(folder) = misfit.own.path.parent().filter(|_| is_left) {
                folder::remove(folder);
            }
        }
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let numbers = self.numbers.load(&on);
        for (index, claim) in plan.claims.into_iter().enumerate() {
            for own in claim.stale {
                tracing::info!(path = %own.path.display(), "removing a swap file that is not on");
                if let Err(error) = own.remove() {
                    tracing::warn!(%error, "cannot remove it");
                }
            }
            for (own, line) in claim.on {
                let Some(number) = on.iter().zip(&numbers).find(|(now, _)| now.path == line.path) else {
                    continue;
                };
                let used_mib = line.used_bytes >> 20;
                tracing::info!(path = %own.path.display(), used_mib, "taking over a swap file");
                let area = Area {
                    path: line.path,
                    tier: self.tiers[index].id,
                    number: *number.1,
                    priority: line.priority,
                    // The header's page is not counted there.
                    bytes: line.size_bytes + PAGE_BYTES,
                    covered_pages: 0,
                };
                self.tiers[index].segments.push(Segment { area, own });
            }
            let SwapTier { name, capacity_bytes, .. } = &self.tiers[index];
            let (made_mib, capacity_mib) = (self.tiers[index].made_bytes() >> 20, capacity_bytes >> 20);
            if made_mib > capacity_mib {
                tracing::warn!(
                    "the swap files of tier `{name}` take {made_mib} MiB, and its size is {capacity_mib} MiB now: it takes no \
                     more than that; to make the files smaller, drain it and start the agent anew"
                );
            }
        }
        self.publish();
        for tier in [0, self.tiers.len().saturating_sub(1)] {
            if self.tiers.get(tier).is_some_and(|tier| tier.segments.is_empty()) {
                self.grow(tier, &on)?;
            }
        }
        Ok(())
    }
}

/// What is to be done with what is there.
#[derive(Debug)]
struct Plan {
    /// Of each swap tier.
    claims: Vec<Claim>,
    misfits: Vec<Misfit>,
}

impl Plan {
    /// Makes the tiers' folders and looks into them; nothing else is changed. `tiers` are those whose folder is there.
    fn new(ladder: &Ladder, on: &[OnArea], tiers: &mut Vec<SwapTier>) -> Result<Self, SwapError> {
        let count = ladder.swap_tiers().count();
        let mut folders: Vec<(FileId, String, PathBuf)> = Vec::new();
        let mut claims = Vec::new();
        for (place_of_tier, tier) in ladder.swap_tiers().enumerate() {
            let TierKind::Swap { place: at, capacity_bytes, .. } = &tier.kind else { continue };
            let mut keep = |place: Place| {
                let (id, name, rank) = (tier.id, tier.name.clone(), (place_of_tier, count));
                tiers.push(SwapTier::new(id, name, place, *capacity_bytes, rank));
            };
            let folder = match at {
                SwapPlace::Folder(folder) => folder,
                SwapPlace::Device { path, allow_unsafe } => {
                    let of_tier = |error: DeviceError| error.of_tier(&tier.name);
                    let device = Device::find(path, *allow_unsafe).map_err(of_tier)?;
                    let claim = device.claim(on).map_err(of_tier)?;
                    keep(Place::Device(device));
                    claims.push((tier.name.clone(), claim));
                    continue;
                }
            };
            area::check_folder(folder, 0)?;
            let (real, id) = folder::make(folder)?;
            keep(Place::Folder(real.clone()));
            if let Some((_, other, at)) = folders.iter().find(|(other, ..)| *other == id) {
                return Err(SwapError::OneFolder {
                    first: other.clone(),
                    second: tier.name.clone(),
                    paths: [at.clone(), folder.clone()],
                });
            }
            folders.push((id, tier.name.clone(), folder.clone()));
            claims.push((tier.name.clone(), claim_folder(&tier.name, &real, *capacity_bytes, on)?));
        }
        let misfits = claim::misfits(&mut claims, on);
        // One that does not fit is gone before any page is sent.
        let others = on.iter().filter(|area| area.made_for.is_none());
        let lowest = priorities(count.saturating_sub(1)).start;
        if let Some(OnArea { line, .. }) = others.into_iter().find(|area| area.line.priority >= lowest) {
            return Err(SwapError::above(line));
        }
        claim::can_come_up(&misfits, Memory::now())?;
        Ok(Self { claims: claims.into_iter().map(|(_, claim)| claim).collect(), misfits })
    }
}

/// Removes folders that are empty.
fn remove_folders(tiers: &[SwapTier]) {
    for tier in tiers {
        tier.place.tidy();
    }
}
