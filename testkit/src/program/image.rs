//! The disk with all programs: Debian, as little of it as they need, as one ext4 file system that all guests begin
//! with.
//!
//! In: Debian's package archive, over mmdebstrap. Out: a raw image below the target folder, with the recipe it was made
//! by beside it: another recipe is another image. What a build that was interrupted left is removed by the next one,
//! and is never taken for an image.

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
        remove(&work)?;
    }
    let image = work.join("image");
    let tree = work.join("tree");
    fs::create_dir(&work)?;
    let made = make(&tree, &image).and_then(|()| keep(&folder, &image));
    remove(&work)?;
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
    // It mounts this machine's devices in the tree. In namespaces of its own nobody else meets them, and both mounts
    // and processes end when we do, however that happens.
    let mut mmdebstrap = Command::new("setpriv");
    mmdebstrap.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]);
    mmdebstrap.arg(MMDEBSTRAP).args(MMDEBSTRAP_ARGS).arg(format!("--include={}", PACKAGES.join(",")));
    run(mmdebstrap.args([SUITE.as_ref(), tree.as_os_str()]))?;
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

/// Removes a folder, but nothing of what somebody has mounted in it.
fn remove(folder: &Path) -> Result<()> {
    let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let mounted = mounted_below(&mounts, &folder);
    ensure!(mounted.is_empty(), "left as it is, unmount first: {}", mounted.join(", "));
    fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))
}

/// The mount points in a folder: the fifth word of a line of mountinfo (proc(5)), where a blank is `\040`.
fn mounted_below<'a>(mounts: &'a str, folder: &Path) -> Vec<&'a str> {
    let folder = folder.to_string_lossy().replace(' ', "\\040");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(&folder)).collect()
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

    #[test]
    fn what_is_mounted_in_a_folder_is_found_and_its_neighbours_are_not() {
        let mounts = "23 1 254:0 / / rw - ext4 /dev/vda rw\n\
            80 23 0:5 / /t/a\\040b/unfinished/tree/dev rw - devtmpfs dev rw\n\
            81 23 0:6 / /t/a\\040b/unfinished-2 rw - proc proc rw\n";
        let folder = Path::new("/t/a b/unfinished");
        assert_eq!(mounted_below(mounts, folder), ["/t/a\\040b/unfinished/tree/dev"]);
        assert_eq!(mounted_below(mounts, Path::new("/t/c")), [""; 0]);
    }
}
