//! A tier as it stands in the file, where keys exclude each other.
//!
//! In: the keys of `[[tier]]` and of its `swap`. Out: a [`Tier`] and a [`Swap`] of exactly one kind, or what is wrong
//! and what is allowed. And back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Backing, Rate, Size, Swap, SwapPlace, Tier};

/// A tier as it stands in the file, before it is known to have exactly one backing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TierKeys {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    swap: Option<Swap>,
}

impl TryFrom<TierKeys> for Tier {
    type Error = String;

    fn try_from(keys: TierKeys) -> Result<Self, String> {
        let backing = match (keys.nodes, keys.swap) {
            (Some(nodes), None) => Backing::Nodes(nodes),
            (None, Some(swap)) => Backing::Swap(swap),
            (None, None) => {
                return Err(format!("tier `{}` needs `nodes` or `swap`", keys.name));
            }
            (Some(_), Some(_)) => {
                return Err(format!("tier `{}` has both `nodes` and `swap`: leave one out", keys.name));
            }
        };
        Ok(Self { name: keys.name, backing })
    }
}

impl From<Tier> for TierKeys {
    fn from(tier: Tier) -> Self {
        let (nodes, swap) = match tier.backing {
            Backing::Nodes(nodes) => (Some(nodes), None),
            Backing::Swap(swap) => (None, Some(swap)),
        };
        Self { name: tier.name, nodes, swap }
    }
}

/// The swap of a tier as it stands in the file, before it is known to be in exactly one place.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SwapKeys {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<Size>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow_unsafe_device: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write_limit: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    daily_writes: Option<Size>,
}

impl TryFrom<SwapKeys> for Swap {
    type Error = &'static str;

    fn try_from(keys: SwapKeys) -> Result<Self, &'static str> {
        let place = match (keys.path, keys.device) {
            (Some(_), Some(_)) => return Err("`swap` has both `path` and `device`: leave one out"),
            (None, None) => {
                return Err("`swap` needs `path`, a folder for swap files, or `device`, a block device");
            }
            (Some(_), None) if keys.allow_unsafe_device.is_some() => {
                return Err("`allow_unsafe_device` belongs to `device`: leave it out");
            }
            (Some(path), None) => match keys.size {
                Some(size) => SwapPlace::Folder { path, size },
                None => return Err("missing field `size`: how much of the disk the swap files may take"),
            },
            (None, Some(_)) if keys.size.is_some() => {
                return Err("`size` does not go with `device`, which is taken as a whole: leave it out");
            }
            (None, Some(path)) => {
                SwapPlace::Device { path, allow_unsafe: keys.allow_unsafe_device.unwrap_or(false) }
            }
        };
        Ok(Self { place, write_limit: keys.write_limit, daily_writes: keys.daily_writes })
    }
}

impl From<Swap> for SwapKeys {
    fn from(Swap { place, write_limit, daily_writes }: Swap) -> Self {
        let (path, size, device, allow_unsafe_device) = match place {
            SwapPlace::Folder { path, size } => (Some(path), Some(size), None, None),
            SwapPlace::Device { path, allow_unsafe } => {
                (None, None, Some(path), allow_unsafe.then_some(true))
            }
        };
        Self { path, size, device, allow_unsafe_device, write_limit, daily_writes }
    }
}
