//! The kernel that test guests boot.
//!
//! In: `TIERING_GUEST_KERNEL`, the cache below the target folder, or Debian's package archive. Out: the path of a bzImage
//! that has serial console and devtmpfs built in, as Debian's cloud kernels do. Nothing is installed and /boot stays as it is.

use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages that depend on the newest kernel of their line, best first: 6.12 is there for Debian 12 as a backport,
/// the plain one is 6.1 in Debian 12 and 6.12 in Debian 13.
const META_PACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];
const PREFIX: &str = "vmlinuz-";

fn cache() -> PathBuf {
    paths::target_dir().join("guest-kernel")
}

/// The image: `TIERING_GUEST_KERNEL`, else the one fetched before.
///
/// # Errors
/// Where there is none.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("TIERING_GUEST_KERNEL").map(PathBuf::from) {
        ensure!(named.is_file(), "TIERING_GUEST_KERNEL names {}, which is no file", named.display());
        return Ok(named);
    }
    let cache = cache();
    image_in(&cache).with_context(|| {
        format!(
            "no guest kernel in {}: run `cargo xtask setup`, or name one in TIERING_GUEST_KERNEL",
            cache.display()
        )
    })
}

/// Which package [`fetch`] would take.
///
/// # Errors
/// Where apt knows no cloud kernel.
pub fn package() -> Result<String> {
    for meta in META_PACKAGES {
        // apt-cache fails on a name it does not know: then the next one counts.
        let Ok(shown) = output(Command::new("apt-cache").args(["--no-all-versions", "show", meta])) else {
            continue;
        };
        if let Some(package) = dependency(&shown) {
            return Ok(package.to_owned());
        }
    }
    bail!("apt knows none of {META_PACKAGES:?}: name a bzImage in TIERING_GUEST_KERNEL")
}

/// Downloads Debian's newest cloud kernel and keeps its image in the cache.
///
/// # Errors
/// Where apt or dpkg fail.
pub fn fetch() -> Result<PathBuf> {
    let package = package()?;
    let cache = cache();
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    // Below the cache, so that the image can be renamed into its place: an interrupted fetch leaves no half image.
    let work = tempfile::tempdir_in(&cache)?;
    // apt's own download user cannot write here.
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", &package];
    output(Command::new("apt-get").args(download).current_dir(work.path()))?;
    let archive =
        file_with(work.path(), |name| name.ends_with(".deb")).context("apt-get download left no package")?;
    output(Command::new("dpkg").arg("-x").arg(&archive).arg(work.path()))?;
    let image = image_in(&work.path().join("boot")).with_context(|| format!("{package} has no image"))?;
    let kept = cache.join(image.file_name().context("an image has a name")?);
    std::fs::rename(&image, &kept).with_context(|| format!("moving the image to {}", kept.display()))?;
    Ok(kept)
}

/// The versioned kernel package in the `Depends:` line of a meta package.
fn dependency(shown: &str) -> Option<&str> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
    names.into_iter().find(|name| name.starts_with("linux-image-"))
}

fn image_in(folder: &Path) -> Option<PathBuf> {
    file_with(folder, |name| name.starts_with(PREFIX))
}

/// The last file by name that fits: with kernel images about the newest.
fn file_with(folder: &Path, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let fitting = entries.flatten().map(|entry| entry.path());
    fitting.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&fits)).max()
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::dependency;

    #[test]
    fn the_versioned_package_is_found_among_the_dependencies() {
        let shown = "Package: linux-image-cloud-amd64\nDepends: base, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSize: 1\n";
        assert_eq!(dependency(shown), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("Package: x\nDepends: libc6 (>= 2.3)\n"), None);
    }
}
