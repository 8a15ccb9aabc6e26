//! The disk with all programs: Debian, as little of it as they need, as one ext4 file system that all guests begin with.
//!
//! In: Debian's package archive, over mmdebstrap. Out: a raw image below the target folder, with the recipe it was made by beside
//! it: another recipe is another image. What a build that was interrupted left is removed by the next one, and is never taken
//! for an image.

use crate::paths;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What makes a file tree of packages.
pub const MMDEBSTRAP: &str = "mmdebstrap";
/// What makes a file system of a tree.
pub const MKFS: &str = "mkfs.ext4";

/// `essential` has a shell and what Debian's packages need to be installed, and no apt.
const MMDEBSTRAP_ARGS: [&str; 7] = [
    "--quiet",
    "--mode=root",
    "--variant=essential",
    "--architectures=amd64",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
];
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 8] = [
    "gcc-12",
    "libmemcached-tools",
    "memcached",
    "nginx-light",
    "postgresql-15",
    "redis-server",
    "sqlite3",
    "wrk",
];
/// The file is sparse: what is not written takes no room. Nothing has to be zeroed in it, by us or by a guest.
const MKFS_ARGS: [&str; 4] = ["-q", "-F", "-E", "assume_storage_prezeroed=1"];
const SIZE: &str = "8G";

/// The image of this recipe.
///
/// # Errors
/// Where there is none, or one of another recipe.
pub fn find() -> Result<PathBuf> {
    find_in(&folder())
}

/// Builds the image, if that of this recipe is not there yet. Takes a minute or two, and what apt downloads.
///
/// # Errors
/// Where a program is missing or fails.
pub fn build() -> Result<PathBuf> {
    ensure!(nix::unistd::geteuid().is_root(), "the image has files of several users: build it as root");
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // One builder at a time; the lock ends with the process.
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("waiting for another build of the image")?;
    if let Ok(image) = find_in(&folder) {
        return Ok(image);
    }
    let work = folder.join("unfinished");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    let image = work.join("image");
    let tree = work.join("tree");
    fs::create_dir(&work)?;
    let made = make(&tree, &image).and_then(|()| keep(&folder, &image));
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    made?;
    find_in(&folder)
}

fn folder() -> PathBuf {
    paths::target_dir().join("guest-programs")
}

fn find_in(folder: &Path) -> Result<PathBuf> {
    let image = folder.join("image");
    let made_by = fs::read_to_string(folder.join("recipe")).unwrap_or_default();
    ensure!(
        image.is_file() && made_by == recipe(),
        "no image with today's programs in {}: run `cargo xtask setup programs`",
        folder.display()
    );
    Ok(image)
}

/// All that decides what is in the image, but for the versions that Debian has at the time.
fn recipe() -> String {
    format!("{MMDEBSTRAP_ARGS:?}\n{SUITE} {PACKAGES:?}\n{MKFS_ARGS:?} {SIZE}\n")
}

fn make(tree: &Path, image: &Path) -> Result<()> {
    // It mounts what packages need in a mount namespace of its own, which ends with it.
    let include = format!("--include={}", PACKAGES.join(","));
    run(Command::new(MMDEBSTRAP)
        .args(MMDEBSTRAP_ARGS)
        .arg(include)
        .args([SUITE.as_ref(), tree.as_os_str()]))?;
    run(Command::new(MKFS).args(MKFS_ARGS).arg("-d").args([tree, image]).arg(SIZE))
}

/// Puts a finished image into its place. The recipe comes last: it says that the image is there.
fn keep(folder: &Path, image: &Path) -> Result<()> {
    let recipe_file = folder.join("recipe");
    if recipe_file.exists() {
        fs::remove_file(&recipe_file)?;
    }
    fs::rename(image, folder.join("image")).context("moving the image to its place")?;
    let written = folder.join("recipe.new");
    fs::write(&written, recipe())?;
    fs::rename(&written, &recipe_file).context("moving the image's recipe to its place")
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_counts_with_its_own_recipe_only() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("new");
        fs::write(&new, "ext4").unwrap();
        keep(folder.path(), &new).unwrap();
        assert_eq!(find_in(folder.path()).unwrap(), folder.path().join("image"));

        fs::write(folder.path().join("recipe"), "older").unwrap();
        let error = find_in(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cargo xtask setup programs"), "{error}");
        fs::write(&new, "ext4").unwrap();
        keep(folder.path(), &new).unwrap();
        find_in(folder.path()).unwrap();
    }
}
