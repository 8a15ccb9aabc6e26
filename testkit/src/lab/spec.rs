//! What a lab is made of, read from the words of its command line: memory nodes and disks.
//!
//! In: `dram:1G,cxl:2G` and `4G@iops=2000`. Out: [`Nodes`] and [`Disk`], or an error that says how it is written.
//! Sizes are binary, as in QEMU: `1G` is 1024 MiB.

use anyhow::{Context, Error, Result, bail, ensure};
use std::str::FromStr;

/// The kernel, and the files that are written in the lab, live in the first node.
const LEAST_FIRST_NODE: u64 = 256 << 20;

/// What a memory node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Main memory.
    Dram,
    /// Memory behind a CXL link: slower and farther, without processors.
    Cxl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub kind: NodeKind,
    pub bytes: u64,
}

/// The memory nodes in their order; the first is DRAM and has all processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes(pub Vec<Node>);

/// An NVMe disk, throttled where a rate is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// 0 leaves the disk out.
    pub bytes: u64,
    /// Requests a second.
    pub iops: Option<u64>,
    /// Bytes a second.
    pub bps: Option<u64>,
}

impl FromStr for Nodes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let nodes = text.split(',').map(node).collect::<Result<Vec<_>>>()?;
        ensure!(nodes[0].kind == NodeKind::Dram, "the first node has the processors: make it dram");
        ensure!(nodes[0].bytes >= LEAST_FIRST_NODE, "the first node holds the kernel: give it 256M or more");
        Ok(Self(nodes))
    }
}

fn node(text: &str) -> Result<Node> {
    let (kind, size) =
        text.split_once(':').with_context(|| format!("`{text}`: write a node as dram:SIZE or cxl:SIZE"))?;
    let kind = match kind {
        "dram" => NodeKind::Dram,
        "cxl" => NodeKind::Cxl,
        _ => bail!("`{kind}` is no kind of memory: write dram or cxl"),
    };
    let bytes = size_bytes(size)?;
    ensure!(bytes > 0 && bytes.is_multiple_of(1 << 20), "`{text}`: a node has whole MiB");
    Ok(Node { kind, bytes })
}

impl FromStr for Disk {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (size, limits) = text.split_once('@').map_or((text, None), |(size, rest)| (size, Some(rest)));
        let mut disk = Self { bytes: size_bytes(size)?, iops: None, bps: None };
        for limit in limits.into_iter().flat_map(|limits| limits.split(',')) {
            match limit.split_once('=') {
                Some(("iops", rate)) => disk.iops = Some(size_bytes(rate)?),
                Some(("bps", rate)) => disk.bps = Some(size_bytes(rate)?),
                _ => bail!(
                    "`{limit}`: write a disk as SIZE, SIZE@iops=N, SIZE@bps=SIZE or SIZE@iops=N,bps=SIZE"
                ),
            }
        }
        Ok(disk)
    }
}

fn size_bytes(text: &str) -> Result<u64> {
    let (digits, shift) = match text.char_indices().last() {
        Some((end, 'K')) => (&text[..end], 10),
        Some((end, 'M')) => (&text[..end], 20),
        Some((end, 'G')) => (&text[..end], 30),
        Some((end, 'T')) => (&text[..end], 40),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.with_context(|| format!("`{text}` is no size: write a whole number, with K, M, G or T behind it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: FromStr<Err = Error> + std::fmt::Debug>(text: &str) -> String {
        format!("{:#}", text.parse::<T>().unwrap_err())
    }

    #[test]
    fn nodes_are_kinds_with_sizes() {
        let Nodes(nodes) = "dram:1G,cxl:512M".parse().unwrap();
        let expected = [(NodeKind::Dram, 1 << 30), (NodeKind::Cxl, 512 << 20)];
        assert_eq!(nodes, expected.map(|(kind, bytes)| Node { kind, bytes }));
    }

    #[test]
    fn nodes_that_cannot_be_are_refused_with_what_to_write() {
        assert!(refused::<Nodes>("cxl:1G,dram:1G").contains("make it dram"));
        assert!(refused::<Nodes>("dram:64M").contains("256M"));
        assert!(refused::<Nodes>("dram").contains("dram:SIZE"));
        assert!(refused::<Nodes>("hbm:1G").contains("dram or cxl"));
        assert!(refused::<Nodes>("dram:1G,cxl:0").contains("whole MiB"));
        assert!(refused::<Nodes>("dram:1Q").contains("`1Q` is no size"));
        assert!(refused::<Nodes>("dram:99999999999T").contains("no size"));
    }

    #[test]
    fn disks_may_be_throttled() {
        assert_eq!("2G".parse::<Disk>().unwrap(), Disk { bytes: 2 << 30, iops: None, bps: None });
        let slow = Disk { bytes: 4 << 30, iops: Some(2000), bps: Some(50 << 20) };
        assert_eq!("4G@iops=2000,bps=50M".parse::<Disk>().unwrap(), slow);
        assert!(refused::<Disk>("4G@speed=1").contains("SIZE@iops=N"));
        assert!(refused::<Disk>("").contains("no size"));
    }
}
