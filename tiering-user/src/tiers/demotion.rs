//! The kernel's demotion between memory nodes (`/sys/kernel/mm/numa/demotion_enabled`): switched on for as long as it
//! may be, and put back.
//!
//! In: the root of sysfs, whether it may be on. Out: whether it is on, and why the agent has it off. Not here: what
//! keeps it off (`agent`).
//!
//! With it reclaim moves pages to the next slower node in place of swap. It never asks memory policies (mm/vmscan.c,
//! `demote_folio_list`, Linux 5.15 to 6.18). Cpusets it did not ask at first; newer kernels ask them of a control
//! group, for the next node only ("vmscan,cgroup: apply mems_effective to reclaim").
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
    /// As it was, and as last written.
    before: Option<bool>,
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
            before: None,
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

    /// Why reclaim does not demote as the ladder has it.
    pub fn is_of_no_use(&self) -> Option<&str> {
        if !self.is_on {
            return Some(self.refused().unwrap_or("its demotion is off"));
        }
        self.mismatch.as_deref()
    }

    /// Looks at the setting and leaves it as it is, and why, if the configuration wants something else.
    pub fn leave(&mut self, why: Option<&str>) {
        self.is_on = self.read() == Some(true);
        self.tell(why.map(str::to_owned));
    }

    /// Looks at the setting, and has it on unless something speaks against it.
    pub fn keep(&mut self, why_not: Option<String>) {
        let is = self.read();
        self.is_on = is == Some(true);
        let why_not = why_not.or_else(|| self.mismatch.clone());
        let refused = match is {
            None => Some(format!("this kernel does not tell ({})", self.file.display())),
            Some(is) => self.change(why_not.is_none(), is).or(why_not),
        };
        self.tell(refused);
    }

    fn tell(&mut self, refused: Option<String>) {
        if self.refused != refused {
            match &refused {
                Some(reason) => tracing::info!(reason, "the kernel's demotion is not used"),
                None => tracing::info!("the kernel demotes pages to slower memory nodes"),
            }
        }
        self.refused = refused;
    }

    /// Returns what went wrong.
    fn change(&mut self, wanted: bool, is: bool) -> Option<String> {
        match step(wanted, is, self.written) {
            Step::Nothing => None,
            Step::LetGo => {
                fs::remove_file(&self.mark).ok();
                self.before = None;
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
        let before = *self.before.get_or_insert(is);
        // Before the setting, so that the next agent knows of it if this one is killed in between.
        let marked = self.set_mark(before, value);
        if value {
            marked?;
        }
        fs::write(&self.file, value.to_string())?;
        self.written = Some(value);
        Ok(())
    }

    fn set_mark(&self, before: bool, written: bool) -> io::Result<()> {
        let new = self.mark.with_extension("new");
        fs::write(&new, format!("{before} {written}\n"))?;
        fs::rename(&new, &self.mark)
    }

    /// The value from before, and the one that was written.
    fn marked(&self) -> Option<(bool, bool)> {
        let text = fs::read_to_string(&self.mark).ok()?;
        let (before, written) = text.trim().split_once(' ')?;
        before.parse().ok().zip(written.parse().ok())
    }

    fn put_back(&self) {
        let Some((before, written)) = self.before.zip(self.written).or_else(|| self.marked()) else { return };
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
    let fastest = tiers.first().and_then(|(_, of_first)| of_first.map(|(fastest, _)| fastest));
    let is_named = |node: u32| {
        ladder
            .tiers()
            .iter()
            .any(|tier| matches!(&tier.kind, TierKind::Node { nodes } if nodes.contains(&node)))
    };
    let slower =
        |facts: &&NodeFacts| fastest.zip(facts.kernel_tier).is_some_and(|(fastest, tier)| tier > fastest);
    if let Some(other) = facts.iter().filter(slower).find(|facts| !is_named(facts.node)) {
        return Some(format!("the kernel would demote to node {} too, which is in no tier", other.node));
    }
    tiers.windows(2).find_map(|pair| {
        let [(upper, above), (lower, below)] = pair else { return None };
        let slower = above.zip(*below).is_some_and(|((_, above), (below, _))| above < below);
        (!slower).then(|| {
            format!(
                "the kernel has the nodes of tier `{lower}` for no slower than those of `{upper}`, and would not \
                 demote to them"
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
        demotion.leave(None);
        assert_eq!((tree.value().as_str(), demotion.is_on()), ("false", false), "left as it is");
        demotion.keep(None);
        assert_eq!((tree.value().as_str(), demotion.is_on(), demotion.refused()), ("true", true, None));
        demotion.keep(Some("web-1 is bound".to_owned()));
        assert_eq!((tree.value().as_str(), demotion.is_on()), ("false", false));
        assert_eq!(demotion.refused(), Some("web-1 is bound"));
        demotion.keep(None);
        drop(demotion);
        assert_eq!(tree.value(), "false");
        assert!(!tree.0.path().join("mark").exists());
    }

    #[test]
    fn what_was_on_before_is_off_while_it_must_be_and_on_again_at_the_end() {
        let tree = Tree::new("true");
        let mut demotion = tree.open();
        demotion.keep(Some("web-1 is bound".to_owned()));
        assert_eq!(tree.value(), "false");
        drop(demotion);
        assert_eq!(tree.value(), "true");
    }

    #[test]
    fn a_dry_run_leaves_what_is_on() {
        let tree = Tree::new("true");
        let mut demotion = tree.open();
        demotion.leave(Some("dry run"));
        assert_eq!(
            (tree.value().as_str(), demotion.is_on(), demotion.refused()),
            ("true", true, Some("dry run"))
        );
        drop(demotion);
        assert_eq!(tree.value(), "true");
    }

    #[test]
    fn without_a_mark_it_goes_off_and_is_put_back_and_does_not_go_on() {
        let tree = Tree::new("true");
        fs::create_dir(tree.0.path().join("mark")).unwrap();
        let mut demotion = tree.open();
        demotion.keep(Some("web-1 is bound".to_owned()));
        assert_eq!(tree.value(), "false", "the VM comes first");
        demotion.keep(None);
        assert_eq!(tree.value(), "false");
        assert!(demotion.refused().unwrap().contains("demotion_enabled"), "{:?}", demotion.refused());
        drop(demotion);
        assert_eq!(tree.value(), "true");
    }

    #[test]
    fn after_a_kill_the_next_agent_puts_it_back() {
        let tree = Tree::new("false");
        let mut killed = tree.open();
        killed.keep(None);
        std::mem::forget(killed);
        assert_eq!(tree.value(), "true");
        let next = tree.open();
        assert_eq!((tree.value().as_str(), next.is_on()), ("false", false));
    }

    #[test]
    fn what_somebody_else_sets_stays() {
        let tree = Tree::new("false");
        let mut demotion = tree.open();
        demotion.keep(None);
        tree.set("false");
        demotion.keep(None);
        demotion.keep(None);
        assert!(demotion.refused().unwrap().starts_with("somebody else has set"));
        tree.set("true");
        demotion.leave(None);
        drop(demotion);
        assert_eq!(tree.value(), "true", "theirs");
    }

    #[test]
    fn nodes_that_the_kernel_has_for_equally_fast_are_told() {
        let ladder = Ladder::new(&Config::parse(LADDER, "test.toml").unwrap());
        let node = |node, kernel_tier| NodeFacts { node, kernel_tier, ..NodeFacts::default() };
        let mismatch = |upper, lower| mismatch(&ladder, &[node(0, upper), node(1, lower)]);
        assert_eq!(mismatch(Some(4), Some(562)), None);
        let unnamed = super::mismatch(&ladder, &[node(0, Some(4)), node(1, Some(562)), node(2, Some(600))]);
        assert!(unnamed.unwrap().contains("node 2"));
        for (upper, lower) in [(Some(4), Some(4)), (Some(562), Some(4)), (None, None)] {
            assert!(mismatch(upper, lower).unwrap().contains("tier `cxl`"), "{upper:?} {lower:?}");
        }
    }
}
