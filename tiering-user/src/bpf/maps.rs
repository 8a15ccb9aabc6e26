//! Maps of the loaded object: taken out by name, with the name in each error.

use aya::Ebpf;
use aya::maps::MapError;

use super::error::BpfError;

/// Tells of which map an error is.
pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { map, source }
}

/// Takes a map out of the loaded object by its name.
pub(super) fn typed<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, BpfError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    T::try_from(map).map_err(map_error(name))
}
