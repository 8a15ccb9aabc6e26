//! The kernels that test guests and the lab boot.
//!
//! In: `TIERING_GUEST_KERNEL`, the cache below the target folder, or Debian's package archive. Out: a bzImage that has
//! serial console and devtmpfs built in, as Debian's cloud kernels do, and for the lab the folder of its modules.
//! Nothing is installed; /boot and /lib/modules stay as they are.

use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The lines of Debian 12's cloud kernel, the lab's default first: 6.12 is there as a backport, 6.1 is its own.
pub const LINES: [&str; 2] = ["6.12", "6.1"];
/// Packages that depend on the newest kernel of their line, best first: the plain one is 6.1 in Debian 12 and 6.12 in
/// Debian 13.
const META_PACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];
const PREFIX: &str = "vmlinuz-";
const MODULES: &str = "lib/modules";
/// The program that indexes and loads modules; of Debian's busybox-static, since it also has to run without libraries.
pub const BUSYBOX: &str = "/bin/busybox";

/// A kernel with its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// What `uname -r` says.
    pub release: String,
    /// The folder with `modules.dep`; none where the image came without modules and must have all built in.
    pub modules: Option<PathBuf>,
}

fn cache() -> PathBuf {
    paths::target_dir().join("guest-kernel")
}

/// The image for guests: `TIERING_GUEST_KERNEL`, else the newest one fetched before.
///
/// # Errors
/// Where there is none.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("TIERING_GUEST_KERNEL").map(PathBuf::from) {
        ensure!(named.is_file(), "TIERING_GUEST_KERNEL names {}, which is no file", named.display());
        return Ok(named);
    }
    let cache = cache();
    image_in(&cache, "").with_context(|| {
        format!(
            "no guest kernel in {}: run `cargo xtask setup`, or name one in TIERING_GUEST_KERNEL",
            cache.display()
        )
    })
}

/// The kernel of one of [`LINES`] that was fetched before, with its modules.
///
/// # Errors
/// Where there is none.
pub fn of_line(line: &str) -> Result<Kernel> {
    let cache = cache();
    let kernel = image_in(&cache, line).map(|image| at(&image)).transpose()?;
    kernel.filter(|kernel| kernel.modules.is_some()).with_context(|| {
        format!("no kernel {line} with modules in {}: run `cargo xtask setup`", cache.display())
    })
}

/// The kernel of an image named `vmlinuz-RELEASE`, with the modules in `lib/modules/RELEASE` beside it or one folder
/// up, as in an unpacked package and in /boot.
///
/// # Errors
/// Where there is no such file.
pub fn at(image: &Path) -> Result<Kernel> {
    ensure!(image.is_file(), "{} is no file: name a bzImage", image.display());
    let image = image.canonicalize()?;
    let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let release = name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let modules = image.ancestors().skip(1).take(2).map(|folder| folder.join(MODULES).join(&release));
    let modules = modules.into_iter().find(|folder| folder.is_dir());
    Ok(Kernel { image, release, modules })
}

/// Which package [`fetch`] would take, of this line or of any.
///
/// # Errors
/// Where apt knows no such cloud kernel.
pub fn package(line: Option<&str>) -> Result<String> {
    let prefix = line.map_or("linux-image-".to_owned(), |line| format!("linux-image-{line}."));
    for meta in META_PACKAGES {
        // apt-cache fails on a name it does not know: then the next one counts.
        let Ok(shown) = output(Command::new("apt-cache").args(["--no-all-versions", "show", meta])) else {
            continue;
        };
        if let Some(package) = dependency(&shown, &prefix) {
            return Ok(package.to_owned());
        }
    }
    bail!(
        "apt knows no cloud kernel {}(looked at {META_PACKAGES:?})",
        line.map_or(String::new(), |l| format!("{l} "))
    )
}

/// Downloads Debian's newest cloud kernel, of this line or of any, and keeps image and modules in the cache.
///
/// # Errors
/// Where apt or dpkg fail.
pub fn fetch(line: Option<&str>) -> Result<PathBuf> {
    let package = package(line)?;
    let cache = cache();
    let kept_modules = cache.join(MODULES);
    std::fs::create_dir_all(&kept_modules).with_context(|| format!("creating {}", kept_modules.display()))?;
    // Below the cache, so that things can be renamed into their place: an interrupted fetch leaves no half kernel.
    let work = tempfile::tempdir_in(&cache)?;
    // apt's own download user cannot write here.
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", &package];
    output(Command::new("apt-get").args(download).current_dir(work.path()))?;
    let archive =
        file_with(work.path(), |name| name.ends_with(".deb")).context("apt-get download left no package")?;
    output(Command::new("dpkg").arg("-x").arg(&archive).arg(work.path()))?;
    let image = image_in(&work.path().join("boot"), "").with_context(|| format!("{package} has no image"))?;
    let Kernel { image, release, modules } = at(&image)?;
    let modules = modules.with_context(|| format!("{package} has no modules"))?;
    // The image last: it says that the rest is there.
    let kept = kept_modules.join(&release);
    if kept.exists() {
        std::fs::remove_dir_all(&kept).with_context(|| format!("removing {}", kept.display()))?;
    }
    std::fs::rename(&modules, &kept).with_context(|| format!("moving the modules to {}", kept.display()))?;
    let kept = cache.join(image.file_name().context("an image has a name")?);
    std::fs::rename(&image, &kept).with_context(|| format!("moving the image to {}", kept.display()))?;
    Ok(kept)
}

impl Kernel {
    /// The files of these modules and of all they depend on, in the order in which they must be loaded. What is built
    /// in is left out. Modules that are not indexed yet (a package does that when it is installed) are first
    /// uncompressed and indexed, once: an emulated processor takes a second to uncompress KVM at each boot.
    ///
    /// # Errors
    /// Where the modules cannot be indexed or read.
    pub fn modules_for(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let Some(modules) = &self.modules else { return Ok(Vec::new()) };
        let index = modules.join("modules.dep");
        if !index.is_file() {
            let uncompress = ["-name", "*.ko.xz", "-exec", BUSYBOX, "unxz", "-f", "{}", "+"];
            output(Command::new("find").arg(modules).args(uncompress))?;
            let base = modules.ancestors().nth(3).context("modules are in lib/modules")?;
            output(Command::new(BUSYBOX).args(["depmod", "-b"]).arg(base).arg(&self.release))?;
        }
        let dep = std::fs::read_to_string(&index).with_context(|| format!("reading {}", index.display()))?;
        Ok(load_order(&dep, names).into_iter().map(|file| modules.join(file)).collect())
    }
}

/// Lines of `modules.dep` are `FILE: DEPENDENCIES`, each of which has to be loaded before those left of it
/// (depmod.d(5): listed so that they are loaded from the last to the first).
fn load_order<'a>(dep: &'a str, names: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for name in names {
        let named = |file: &str| {
            let stem = file.rsplit('/').next().and_then(|file| file.split(".ko").next());
            stem.is_some_and(|stem| stem.replace('-', "_") == name.replace('-', "_"))
        };
        let line = dep.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| named(file));
        let Some((file, needs)) = line else { continue };
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

/// The versioned kernel package in the `Depends:` line of a meta package.
fn dependency<'a>(shown: &'a str, prefix: &str) -> Option<&'a str> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
    names.into_iter().find(|name| name.starts_with(prefix))
}

/// The image of a line (`6.1`), or of any where the line is empty.
fn image_in(folder: &Path, line: &str) -> Option<PathBuf> {
    let prefix = if line.is_empty() { PREFIX.to_owned() } else { format!("{PREFIX}{line}.") };
    file_with(folder, |name| name.starts_with(&prefix))
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
    use super::*;

    #[test]
    fn the_versioned_package_is_found_among_the_dependencies() {
        let shown = "Package: linux-image-cloud-amd64\nDepends: base, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSize: 1\n";
        assert_eq!(dependency(shown, "linux-image-"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency(shown, "linux-image-6.12."), None);
        assert_eq!(dependency("Package: x\nDepends: libc6 (>= 2.3)\n", "linux-image-"), None);
    }

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dep = "kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n\
            kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n\
            kernel/arch/x86/kvm/kvm-amd.ko:\n";
        let files = load_order(dep, &["virtio_pci", "virtiofs", "built_in", "kvm_amd"]);
        let names: Vec<_> = files.iter().map(|file| file.rsplit('/').next().unwrap()).collect();
        assert_eq!(
            names,
            ["virtio_ring.ko", "virtio.ko", "virtio_pci.ko.xz", "fuse.ko", "virtiofs.ko", "kvm-amd.ko"]
        );
    }

    #[test]
    fn an_image_finds_its_modules_beside_it_and_one_folder_up() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["boot", "lib/modules/6.1.0-56"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for (image, modules) in
            [("boot/vmlinuz-6.1.0-56", true), ("vmlinuz-6.1.0-56", true), ("bzImage", false)]
        {
            let image = root.path().join(image);
            std::fs::write(&image, "").unwrap();
            assert_eq!(at(&image).unwrap().modules.is_some(), modules, "{}", image.display());
        }
        assert_eq!(image_in(root.path(), "6.1"), Some(root.path().join("vmlinuz-6.1.0-56")));
        assert_eq!(image_in(root.path(), "6.12"), None);
    }
}
