//! What a demo can leave behind on a machine, and whether it did.

use std::path::{Path, PathBuf};
use tiering_testkit::scratch::swap_areas_below;

/// Things of the agent that a machine has once.
const SHARED: [&str; 2] = ["/sys/fs/bpf/tiering", "/run/tiering/tiering.sock"];

/// What was there before the demo, and so is not the demo's.
pub struct Baseline(Vec<&'static str>);

impl Baseline {
    pub fn take() -> Self {
        Self(SHARED.into_iter().filter(|path| Path::new(path).exists()).collect())
    }

    /// What is there now, of these processes and below this folder, and should not be.
    pub fn left_behind(&self, folder: &Path, pids: &[u32]) -> Vec<String> {
        let mut left = Vec::new();
        match swap_areas_below(folder) {
            Ok(areas) => left.extend(areas.iter().map(|area| format!("swap area {}", area.display()))),
            Err(error) => left.push(format!("perhaps swap areas: {error:#}")),
        }
        let new = SHARED.into_iter().filter(|path| !self.0.contains(path)).map(PathBuf::from);
        let paths = new.chain([folder.to_owned()]).filter(|path| path.exists());
        left.extend(paths.map(|path| path.display().to_string()));
        let processes = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists());
        left.extend(processes.map(|pid| format!("process {pid}")));
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_a_process_that_are_still_there_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let left = Baseline(SHARED.to_vec()).left_behind(folder.path(), &[own]);
        assert_eq!(left, [folder.path().display().to_string(), format!("process {own}")]);
    }

    #[test]
    fn nothing_is_left_of_a_folder_that_is_gone() {
        let left = Baseline(SHARED.to_vec()).left_behind(Path::new("/var/tmp/tiering-never-was"), &[]);
        assert_eq!(left, [""; 0]);
    }
}
