//! Swap without any agent: what the kernel does alone is measured with it.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use tiering_testkit::scratch::swap_areas_below;

/// A swap file in a folder of its own. Switched off, which brings back what is in it, and removed when dropped.
pub struct PlainSwap(PathBuf);

impl PlainSwap {
    pub fn on(folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
        let this = Self(folder.to_owned());
        let file = folder.join("swap");
        let path = file.display();
        let script =
            format!("fallocate -l 2G {path} && chmod 600 {path} && mkswap -q {path} && swapon {path}");
        let status = Command::new("sh").args(["-c", &script]).status().context("running sh")?;
        ensure!(status.success(), "no swap file in {}", folder.display());
        Ok(this)
    }
}

impl Drop for PlainSwap {
    fn drop(&mut self) {
        for area in swap_areas_below(&self.0).unwrap_or_default() {
            // Nobody to return an error to; the area stays in /proc/swaps, where whoever cares looks.
            let _ = Command::new("swapoff").arg(&area).status();
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
