//! Builds the eBPF object and puts it where `include_bytes_aligned!` finds it.
//!
//! Two toolchains can do that (README, "Building"): a rustup `nightly` with `rust-src`, from which `core` is
//! built, or the toolchain linked as `bpf`, which brings a prebuilt `core` for `bpfel-unknown-none`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, anyhow};
use aya_build::{Package, Toolchain};

/// The toolchain that `cargo xtask setup` links to a compiler with a prebuilt BPF `core`.
const LINKED: &str = "bpf";

fn main() -> anyhow::Result<()> {
    let toolchain = if has("nightly", "lib/rustlib/src/rust/library/core") {
        Toolchain::Nightly
    } else if has(LINKED, "lib/rustlib/bpfel-unknown-none") {
        Toolchain::Custom(LINKED)
    } else {
        return Err(anyhow!(
            "no Rust toolchain here can build for eBPF: run `cargo xtask setup`, which installs one"
        ));
    };
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tiering-ebpf");
    println!("cargo:rerun-if-changed={}", concat!(env!("CARGO_MANIFEST_DIR"), "/../tiering-common/src"));
    aya_build::build_ebpf([Package { name: "tiering-ebpf", root_dir: root, ..Default::default() }], toolchain)
        .context("building the eBPF programs")
}

/// Whether rustup has this toolchain and its system root holds `path`.
fn has(toolchain: &str, path: &str) -> bool {
    let sysroot = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output();
    let Ok(output) = sysroot else { return false };
    output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(path).exists()
}
