//! A memory control group for one guest, of either version of control groups: what version 2 calls reclaim is done in
//! version 1 by a limit that is set and lifted again.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tiering_testkit::stop;
const LIMIT: Duration = Duration::from_secs(60);
/// So much of the group may stay in the swap cache.
const LEFT_BYTES: u64 = 256 << 10;
const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";

/// Removed when dropped, if nobody is in it any more.
pub struct Group {
    folder: PathBuf,
    version: u32,
}

impl Group {
    /// Puts a process that has just been started into a group of its own.
    pub fn of(name: &str, pid: u32) -> Result<Self> {
        let version = if Path::new(V1).join("memory.limit_in_bytes").exists() { 1 } else { 2 };
        let root = Path::new(if version == 1 { V1 } else { V2 });
        if version == 2 {
            std::fs::write(root.join("cgroup.subtree_control"), "+memory")
                .context("switching the memory controller on")?;
        }
        let folder = root.join(name);
        // One that a run before this one left behind is as good.
        if !folder.exists() {
            std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let group = Self { folder, version };
        group.write("cgroup.procs", &pid.to_string())?;
        Ok(group)
    }

    /// Has the kernel take what is least used, until hardly anything is in the swap cache. What was paged out last is
    /// at the end of the list, so it goes first.
    pub fn free_swap_cache(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let cached = self.swap_cached()?;
            if cached < LEFT_BYTES {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                bail!("{} MiB are still in the swap cache after {LIMIT:?}", cached >> 20);
            }
            self.reclaim(cached)?;
            stop::sleep(Duration::from_millis(20))?;
        }
    }

    /// What is charged to it.
    pub fn used_bytes(&self) -> Result<u64> {
        let file = if self.version == 1 { "memory.usage_in_bytes" } else { "memory.current" };
        Ok(self.read(file)?.trim().parse()?)
    }

    /// Has the kernel take so much of it, whatever is least used; less where it does not find that much.
    pub fn reclaim(&self, bytes: u64) -> Result<()> {
        match self.version {
            1 => {
                let limit = self.used_bytes()?.saturating_sub(bytes);
                // Refused where it cannot be reached: then some of it was freed.
                self.write("memory.limit_in_bytes", &limit.to_string()).ok();
                self.write("memory.limit_in_bytes", "-1")
            }
            _ => {
                self.write("memory.reclaim", &bytes.to_string()).ok();
                Ok(())
            }
        }
    }

    /// Copies of what is in swap: its anonymous and shared pages that are in memory and mapped nowhere.
    pub fn copies_bytes(&self) -> Result<u64> {
        let anonymous = if self.version == 1 { "rss" } else { "anon" };
        let listed = self.stat("active_anon")? + self.stat("inactive_anon")?;
        let copies = listed.saturating_sub(self.stat(anonymous)? + self.stat("shmem")?);
        Ok(copies.min(self.swap_cached()?))
    }

    fn swap_cached(&self) -> Result<u64> {
        self.stat("swapcached")
    }

    fn stat(&self, field: &str) -> Result<u64> {
        let stat = self.read("memory.stat")?;
        let value = stat.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("memory.stat has no {field}"))?.parse()?)
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.folder.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.folder.join(file);
        std::fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.folder).ok();
    }
}
