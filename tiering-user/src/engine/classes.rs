//! What kind of work VMs do, and what that changes for each.
//!
//! In: the profiles of VMs, at the end of each epoch; what operators and labels say of them. Out: each VM's
//! belief and priors. What VMs that somebody has named are like is learned, for those that nobody has; it outlives
//! the agent.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::command::Command;
use super::managed::ManagedVm;
use crate::class::{Labels, Model, of_labels};
use crate::config::{Class, Config};
use crate::profile::{COMPONENTS, Vector};
use crate::store::Record;
use crate::sys::Monotonic;
use crate::track::VmId;
use crate::vm::libvirt;

const RECORD: &str = "classes";
/// Vectors of each class that are kept: the latest.
const LEARNED_MOST: usize = 60;
/// One VM teaches something once in so many epochs, a minute: neighbouring ones are alike.
const LESSON_EPOCHS: u64 = 6;

/// What is new is written down so often: all of it, some 100 KiB.
const WRITE_EVERY: Duration = Duration::from_mins(10);

/// What was learned on this host, as it is written down.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Learned {
    /// Of the vectors. Those of other components say nothing.
    components: Vec<String>,
    vectors: BTreeMap<Class, VecDeque<Vector>>,
}

/// Judges what VMs are.
#[derive(Debug)]
pub(super) struct Classes {
    /// None where the one that is built in cannot be used.
    built_in: Option<Model>,
    /// The same with what was learned.
    model: Option<Model>,
    learned: Learned,
    changed: bool,
    written: Monotonic,
}

impl Classes {
    /// Begins with what the last agent wrote down.
    pub(super) fn load(read: impl Fn(&str) -> Option<Vec<u8>>, now: Monotonic) -> Self {
        let built_in =
            Model::built_in().inspect_err(|error| tracing::warn!(%error, "no class is guessed")).ok();
        let components = COMPONENTS.map(str::to_owned).to_vec();
        let mut learned: Learned =
            read(RECORD).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        if learned.components != components {
            learned = Learned { components, ..Learned::default() };
        }
        let finite = |vector: &Vector| vector.iter().all(|value| value.is_finite());
        learned.vectors.values_mut().for_each(|vectors| vectors.retain(finite));
        let mut classes = Self { model: built_in.clone(), built_in, learned, changed: false, written: now };
        classes.renew();
        classes
    }

    /// What the profile of a VM says at the end of an epoch.
    fn judge(&mut self, vm: &mut ManagedVm, config: &Config) {
        // The first one began before the VM was watched.
        let whole = vm.profile.epochs().saturating_sub(1);
        if let Some(vector) = vm.profile.vector().filter(|_| whole > 0) {
            if let Some(model) = &self.model {
                vm.class.guess(model.classify(vector, whole));
            }
            if vm.profile.epochs().is_multiple_of(LESSON_EPOCHS)
                && let Some((class, _)) = vm.class.told()
            {
                self.learn(class, vector);
            }
        }
        vm.take_priors(config);
    }

    /// A VM of this class, as somebody says who knows, is like this.
    fn learn(&mut self, class: Class, vector: &Vector) {
        // "Other" is no kind; and a database at night is like any VM that does nothing, more than like anything
        // else.
        let nearest = self.built_in.as_ref().and_then(|model| model.nearest(vector));
        let at_rest = nearest.is_some_and(|nearest| nearest.class == Class::Idle);
        if class == Class::Other || at_rest && class != Class::Idle {
            return;
        }
        let vectors = self.learned.vectors.entry(class).or_default();
        vectors.push_back(*vector);
        while vectors.len() > LEARNED_MOST {
            vectors.pop_front();
        }
        self.changed = true;
        self.renew();
    }

    fn renew(&mut self) {
        let learned = &self.learned.vectors;
        let known =
            || learned.iter().flat_map(|(class, vectors)| vectors.iter().map(|vector| (*class, vector)));
        self.model = self.built_in.as_ref().map(|model| model.with(known()));
    }

    /// What must be written down now, or is new at all if it is the `last` chance.
    pub(super) fn record(&mut self, last: bool, now: Monotonic) -> Option<Record> {
        let due = last || now.since(self.written) >= WRITE_EVERY;
        if !due || !std::mem::take(&mut self.changed) {
            return None;
        }
        self.written = now;
        Some((RECORD.to_owned(), serde_json::to_vec(&self.learned).ok()))
    }
}

impl Engine {
    /// An epoch of a VM's profile is over.
    pub(super) fn look_at_class(&mut self, id: VmId) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        self.classes.judge(vm, &self.config);
        if vm.profile.epochs().is_multiple_of(LESSON_EPOCHS) {
            self.ask_labels(id);
        }
    }

    /// Has the labels of a VM read: they may be changed while it runs.
    pub(super) fn ask_labels(&mut self, id: VmId) {
        // One look at a time: what hangs is not asked again.
        let Some(vm) = self.vms.get_mut(&id).filter(|vm| !vm.labels_asked) else {
            return;
        };
        vm.labels_asked = true;
        self.commands.push(Command::ReadLabels(vm.info.clone()));
    }

    pub(super) fn on_labels(&mut self, id: VmId, labels: Result<Labels, libvirt::LabelError>) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        vm.labels_asked = false;
        match labels {
            Ok(labels) => vm.label(&labels, &self.config),
            Err(error) => tracing::warn!(vm = vm.info.vm.name, %error, "its labels are not known"),
        }
    }
}

impl ManagedVm {
    /// Its labels say this now.
    fn label(&mut self, labels: &Labels, config: &Config) {
        self.class.label(of_labels(labels));
        self.take_priors(config);
    }

    /// Goes by what its class changes.
    pub(super) fn take_priors(&mut self, config: &Config) {
        let class = self.class.to_act_on(config.policy.act_on_guesses);
        self.priors = config.classes.of(class);
        self.prefetch.stages.priors = self.priors;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Source;
    use crate::profile::{EPOCH, HORIZONS, Observed};
    use crate::tiers::NodeTiers;
    use crate::vm::{Hva, ProcessKey, testing};

    fn vm(config: &Config, name: &str) -> ManagedVm {
        let pid = 7;
        let vm = testing::vm(ProcessKey { pid, start_time_ticks: 5 }, Hva(0x10_0000), 4096 * 1000);
        let settings = config.vm_settings(name);
        let mut vm = ManagedVm::new(VmId(1), "u".into(), vm, settings, NodeTiers(1), None, Monotonic(0));
        vm.take_priors(config);
        vm
    }

    /// Walks through a hundred pages and writes to each, as nothing does that the built-in model knows.
    fn work(vm: &mut ManagedVm, classes: &mut Classes, config: &Config, epochs: u64) {
        let began = vm.profile.epochs();
        for epoch in began + 1..=began + epochs {
            let now = Monotonic(EPOCH.as_nanos() as u64 * epoch);
            (0..100).for_each(|page| vm.profile.access(page * 9, true, now, 50));
            let observed = Observed { working_sets: [900; HORIZONS.len()], ..Observed::default() };
            vm.profile.end_epoch(now, observed);
            classes.judge(vm, config);
        }
    }

    #[test]
    fn what_somebody_has_named_teaches_what_others_like_it_are() {
        let config = Config::parse(
            "[[vm]]\nmatch = { name = \"render-1\" }\nclass = \"batch\"\n[policy]\nact_on_guesses = true",
            "",
        )
        .unwrap();
        let mut classes = Classes::load(|_| None, Monotonic(0));
        let mut stranger = vm(&config, "stranger");
        work(&mut stranger, &mut classes, &config, 12);
        assert_eq!(
            (stranger.class.class(), stranger.priority()),
            (None, 50),
            "like nothing that is built in"
        );

        let mut named = vm(&config, "render-1");
        assert_eq!(named.class.class(), Some((Class::Batch, 1.0, Source::Operator)));
        work(&mut named, &mut classes, &config, 6 * LESSON_EPOCHS);
        work(&mut stranger, &mut classes, &config, 12);
        let (class, _, source) = stranger.class.class().unwrap();
        assert_eq!((class, source), (Class::Batch, Source::Profile));
        assert_eq!((stranger.priority(), stranger.prefetch.stages.priors.first_window), (40, 2.0));

        // The next agent knows it at once.
        assert_eq!(classes.record(false, Monotonic(0)), None, "it is too soon");
        let (name, bytes) = classes.record(true, Monotonic(0)).unwrap();
        assert_eq!((name.as_str(), classes.record(true, Monotonic(0))), (RECORD, None));
        let mut next = Classes::load(|wanted| bytes.clone().filter(|_| wanted == RECORD), Monotonic(0));
        let mut stranger = vm(&config, "stranger");
        work(&mut stranger, &mut next, &config, 5);
        assert_eq!(stranger.class.class().map(|(class, ..)| class), Some(Class::Batch));
        let mut broken =
            Classes::load(|_| Some(b"{\"components\":[\"x\"],\"vectors\":{}}".to_vec()), Monotonic(0));
        let mut stranger = vm(&config, "stranger");
        work(&mut stranger, &mut broken, &config, 5);
        assert_eq!(stranger.class.class(), None, "other components say nothing");
    }

    #[test]
    fn little_is_kept_of_each_class_and_nothing_of_other_kinds() {
        let mut classes = Classes::load(|_| None, Monotonic(0));
        (0..2 * LEARNED_MOST).for_each(|_| classes.learn(Class::Web, &[0.5; COMPONENTS.len()]));
        classes.learn(Class::Other, &[0.5; COMPONENTS.len()]);
        let kept: Vec<_> =
            classes.learned.vectors.iter().map(|(class, vectors)| (*class, vectors.len())).collect();
        assert_eq!(kept, [(Class::Web, LEARNED_MOST)]);
    }

    #[test]
    fn a_vm_at_rest_teaches_nothing_but_what_idle_ones_are_like() {
        let mut classes = Classes::load(|_| None, Monotonic(0));
        let model = Model::built_in().unwrap();
        let idle = model.kinds.iter().find(|kind| kind.class == Class::Idle).unwrap();
        // Hardly at rest: too far for it to be said.
        let mut vector: Vector = idle.mean.clone().try_into().unwrap();
        while model.classify(&vector, 2).class.is_some() {
            vector[0] += 0.01;
        }
        classes.learn(Class::Database, &vector);
        assert_eq!(classes.learned.vectors.len(), 0);
        classes.learn(Class::Idle, &vector);
        assert_eq!(classes.learned.vectors[&Class::Idle].len(), 1);
    }

    #[test]
    fn a_class_changes_what_is_done_with_a_vm_and_a_rule_of_its_own_comes_first() {
        let config = Config::parse(
            "[[vm]]\nmatch = { name = \"a\" }\nclass = \"idle\"\n[[vm]]\nmatch = { name = \"b\" }\nclass = \"idle\"\npriority = 70",
            "",
        )
        .unwrap();
        let [a, b, none] = ["a", "b", "none"].map(|name| vm(&config, name));
        assert_eq!([a.priority(), b.priority(), none.priority()], [10, 70, 50]);
        let after = |vm: &ManagedVm| vm.rules(Duration::from_secs(120)).demote_after.as_secs();
        assert_eq!([after(&a), after(&b), after(&none)], [60, 60, 120]);

        let mut labelled = vm(&config, "none");
        labelled.label(&[("app.kubernetes.io/name".to_owned(), "mysql".to_owned())].into(), &config);
        assert_eq!((labelled.priority(), after(&labelled)), (65, 240));
        labelled.label(&Labels::new(), &config);
        assert_eq!((labelled.priority(), after(&labelled)), (50, 120));
    }
}
