//! The kernel's demotion between memory nodes (`/sys/kernel/mm/numa/demotion_enabled`): switched on for as long as it
//! may be, and put back.
//!
//! In: the root of sysfs, whether it may be on. Out: whether it is on, and why the agent has it off. Not here: what
//! keeps it off (`agent`).
//!
//! With it reclaim moves pages to the next slower node in place of swap. It asks neither cpusets nor memory policies
//! (mm/vmscan.c, `demote_folio_list`, Linux 5.15 to 6.18).
//!
//! Before the first change the value that was there goes into a file below `/run`. At the agent's end the value is put
//! back. After a `kill -9` the file is still there, and the next agent puts the value back at its start, whatever its
//! configuration. What somebody else has written meanwhile stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Ladder, NodeFacts, TierKind};

/// The setting.
#[derive(Debug, Default)]
pub struct Demotion {
    file: PathBuf,
    /// Holds the value from before, and the one that was written, while they differ.
    mark: PathBuf,
    /// Why the kernel would not demote as the ladder has it.
    mismatch: Option<String>,
    is_on: bool,
    /// As last written.
    written: Option<bool>,
    refused: Option<String>,
}

/// What to do with the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Write(bool),
    /// Somebody else has changed it.
    LetGo,
}

/// `wanted` by the agent; as it `is`; as the agent has `written` it.
fn step(wanted: bool, is: bool, written: Option<bool>) -> Step {
    match written {
        Some(written) if written != is => Step::LetGo,
        _ if wanted != is => Step::Write(wanted),
        _ => Step::Nothing,
    }
}

impl Demotion {
    /// Puts back what an agent left that was killed.
    pub fn open(sys_root: &Path, mark: &Path, ladder: &Ladder, nodes: &[NodeFacts]) -> Self {
        let file = sys_root.join("kernel/mm/numa/demotion_enabled");
        let mut this = Self {
            file,
            mark: mark.to_owned(),
            mismatch: mismatch(ladder, nodes),
            is_on: false,
            written: None,
            refused: None,
        };
        this.put_back();
        this.is_on = this.read() == Some(true);
        this
    }

    /// Reclaim demotes, whoever has switched it on.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Why the agent does not have it on, though its configuration wants that.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Looks at the setting, and has it on where it may be: `may` says why not. None: leaves it as it is.
    pub fn keep(&mut self, may: Option<Result<(), String>>) {
        let is = self.read();
        self.is_on = is == Some(true);
        let Some(may) = may else { return };
        let before = self.refused.take();
        self.refused = match (may, is) {
            (_, None) => Some(format!("this kernel does not tell ({})", self.file.display())),
            (Ok(()), Some(is)) => self.change(self.mismatch.is_none(), is).or_else(|| self.mismatch.clone()),
            (Err(why), Some(is)) => self.change(false, is).or(Some(why)),
        };
        if self.refused != before {
            match &self.refused {
                Some(reason) => tracing::info!(reason, "the kernel's demotion is not used"),
                None => tracing::info!("the kernel demotes pages to slower memory nodes"),
            }
        }
    }

    /// Returns what went wrong.
    fn change(&mut self, wanted: bool, is: bool) -> Option<String> {
        match step(wanted, is, self.written) {
            Step::Nothing => None,
            Step::LetGo => {
                fs::remove_file(&self.mark).ok();
                Some(format!("somebody else has set {} to {is}", self.file.display()))
            }
            Step::Write(value) => {
                let written = self.write(value, is);
                self.is_on = self.read() == Some(true);
                written.err().map(|error| format!("{}: {error}", self.file.display()))
            }
        }
    }

    fn write(&mut self, value: bool, is: bool) -> io::Result<()> {
        let before = self.marked().map_or(is, |(before, _)| before);
        // First: an agent that is killed in between has changed nothing that is not told there.
        fs::write(&self.mark, format!("{before} {value}\n"))?;
        fs::write(&self.file, value.to_string())?;
        self.written = Some(value);
        Ok(())
    }

    /// The value from before, and the one that was written.
    fn marked(&self) -> Option<(bool, bool)> {
        let text = fs::read_to_string(&self.mark).ok()?;
        let (before, written) = text.trim().split_once(' ')?;
        before.parse().ok().zip(written.parse().ok())
    }

    fn put_back(&self) {
        let Some((before, written)) = self.marked() else { return };
        if self.read() == Some(written)
            && let Err(error) = fs::write(&self.file, before.to_string())
        {
            tracing::warn!(file = %self.file.display(), %error, before, "cannot be put back");
            return;
        }
        fs::remove_file(&self.mark).ok();
    }

    fn read(&self) -> Option<bool> {
        fs::read_to_string(&self.file).ok()?.trim().parse().ok()
    }
}

impl Drop for Demotion {
    fn drop(&mut self) {
        self.put_back();
    }
}

/// The kernel demotes from its faster memory tiers to slower ones: those of the ladder must be such.
fn mismatch(ladder: &Ladder, facts: &[NodeFacts]) -> Option<String> {
    let kernel_tiers = ladder.tiers().iter().filter_map(|tier| match &tier.kind {
        TierKind::Node { nodes } => {
            let of = |node: &u32| facts.iter().find(|facts| facts.node == *node)?.kernel_tier;
            Some((&tier.name, nodes.iter().filter_map(of).min().zip(nodes.iter().filter_map(of).max())))
        }
        TierKind::Swap { .. } => None,
    });
    let tiers: Vec<_> = kernel_tiers.collect();
    tiers.windows(2).find_map(|pair| {
        let [(upper, above), (lower, below)] = pair else { return None };
        let slower = above.zip(*below).is_some_and(|((_, above), (below, _))| above < below);
        (!slower).then(|| {
            format!(
                "the kernel has the nodes of tier `{lower}` for no slower than those of `{upper}`, and would not demote to \
                 them"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const LADDER: &str = "[[tier]]\nname = \"dram\"\nnodes = [0]\n[[tier]]\nname = \"cxl\"\nnodes = [1]\n";

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(value: &str) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.file().parent().unwrap()).unwrap();
            tree.set(value);
            tree
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("kernel/mm/numa/demotion_enabled")
        }

        fn set(&self, value: &str) {
            fs::write(self.file(), format!("{value}\n")).unwrap();
        }

        fn value(&self) -> String {
            fs::read_to_string(self.file()).unwrap().trim().to_owned()
        }

        fn open(&self) -> Demotion {
            let ladder = Ladder::new(&Config::parse(LADDER, "test.toml").unwrap());
            let node = |node, tier| NodeFacts { node, kernel_tier: Some(tier), ..NodeFacts::default() };
            Demotion::open(self.0.path(), &self.0.path().join("mark"), &ladder, &[node(0, 4), node(1, 562)])
        }
    }

    #[test]
    fn the_setting_is_changed_where_it_differs_and_left_where_somebody_else_has_changed_it() {
        assert_eq!(step(true, false, None), Step::Write(true));
        assert_eq!(step(true, true, None), Step::Nothing);
        assert_eq!(step(false, true, Some(true)), Step::Write(false));
        assert_eq!(step(true, false, Some(false)), Step::Write(true));
        assert_eq!(step(true, false, Some(true)), Step::LetGo);
        assert_eq!(step(false, true, Some(false)), Step::LetGo);
    }

    #[test]
    fn it_is_on_while_it_may_be_and_as_before_at_the_end() {
        let tree = Tree::new("false");
        let mut demotion = tree.open();
        demotion.keep(None);
        assert_eq!((tree.value().as_str(), demotion.is_on()), ("false", false), "left as it is");
        demotion.keep(Some(Ok(())));
        assert_eq!((tree.value().as_str(), demotion.is_on(), demotion.refused()), ("true", true, None));
        demotion.keep(Some(Err("web-1 is bound".to_owned())));
        assert_eq!((tree.value().as_str(), demotion.is_on()), ("false", false));
        assert_eq!(demotion.refused(), Some("web-1 is bound"));
        demotion.keep(Some(Ok(())));
        drop(demotion);
        assert_eq!(tree.value(), "false");
        assert!(!tree.0.path().join("mark").exists());
    }

    #[test]
    fn what_was_on_before_is_off_while_it_must_be_and_on_again_at_the_end() {
        let tree = Tree::new("true");
        let mut demotion = tree.open();
        demotion.keep(Some(Err("web-1 is bound".to_owned())));
        assert_eq!(tree.value(), "false");
        drop(demotion);
        assert_eq!(tree.value(), "true");
    }

    #[test]
    fn after_a_kill_the_next_agent_puts_it_back() {
        let tree = Tree::new("false");
        let mut killed = tree.open();
        killed.keep(Some(Ok(())));
        std::mem::forget(killed);
        assert_eq!(tree.value(), "true");
        let next = tree.open();
        assert_eq!((tree.value().as_str(), next.is_on()), ("false", false));
    }

    #[test]
    fn what_somebody_else_sets_stays() {
        let tree = Tree::new("false");
        let mut demotion = tree.open();
        demotion.keep(Some(Ok(())));
        tree.set("false");
        demotion.keep(Some(Ok(())));
        demotion.keep(Some(Ok(())));
        assert!(demotion.refused().unwrap().starts_with("somebody else has set"));
        tree.set("true");
        demotion.keep(None);
        drop(demotion);
        assert_eq!(tree.value(), "true", "theirs");
    }

    #[test]
    fn nodes_that_the_kernel_has_for_equally_fast_are_told() {
        let ladder = Ladder::new(&Config::parse(LADDER, "test.toml").unwrap());
        let node = |node, kernel_tier| NodeFacts { node, kernel_tier, ..NodeFacts::default() };
        let mismatch = |upper, lower| mismatch(&ladder, &[node(0, upper), node(1, lower)]);
        assert_eq!(mismatch(Some(4), Some(562)), None);
        for (upper, lower) in [(Some(4), Some(4)), (Some(562), Some(4)), (None, None)] {
            assert!(mismatch(upper, lower).unwrap().contains("tier `cxl`"), "{upper:?} {lower:?}");
        }
    }
}
