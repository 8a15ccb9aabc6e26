//! What is thought of one VM, and on whose word.

use std::collections::BTreeMap;

use super::Guess;
use crate::config::Class;

/// What is left of a guess after each epoch: half after three.
const KEPT: f32 = 0.8;
/// Of all guesses, what has to be of one class.
const AGREED: f32 = 0.5;
/// Guesses are acted on from so many epochs on.
const FIRM: u32 = 3;

/// On whose word a class is believed, the weightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The configuration.
    Operator,
    /// Whoever runs the VM: its labels.
    Label,
    /// Its profile is like those of VMs of the class.
    Profile,
}

impl Source {
    /// As the status writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Label => "label",
            Self::Profile => "profile",
        }
    }
}

/// What one VM is thought to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Belief {
    by_operator: Option<Class>,
    by_label: Option<Class>,
    /// Of each answer, unknown too, the weight.
    guesses: BTreeMap<Option<Class>, f32>,
    epochs: u32,
}

impl Belief {
    /// What the operator says.
    pub fn of_operator(class: Option<Class>) -> Self {
        Self { by_operator: class, ..Self::default() }
    }

    /// What labels say now.
    pub fn label(&mut self, class: Option<Class>) {
        self.by_label = class;
    }

    /// What its profile says at the end of another epoch.
    pub fn guess(&mut self, guess: Guess) {
        self.guesses.values_mut().for_each(|weight| *weight *= KEPT);
        *self.guesses.entry(guess.class).or_default() +=
            if guess.class.is_some() { guess.confidence } else { 1.0 };
        self.epochs = self.epochs.saturating_add(1);
    }

    /// What its profile says by now, and how surely, once it is acted on.
    pub fn seems(&self) -> Option<(Class, f32)> {
        self.by_profile().filter(|_| self.epochs >= FIRM)
    }

    /// What its profile said the last time it was there: until it says something else.
    pub fn seemed(&mut self, class: Class, share: f32) {
        // As much as if it had said so all the time.
        self.guesses = BTreeMap::from([(Some(class), share / (1.0 - KEPT))]);
        self.epochs = FIRM;
    }

    /// What somebody said it is.
    pub fn told(&self) -> Option<(Class, Source)> {
        let by_operator = self.by_operator.map(|class| (class, Source::Operator));
        by_operator.or(self.by_label.map(|class| (class, Source::Label)))
    }

    /// What it is thought to be, how surely (0 to 1), and on whose word.
    pub fn class(&self) -> Option<(Class, f32, Source)> {
        if let Some((class, source)) = self.told() {
            return Some((class, 1.0, source));
        }
        self.by_profile().map(|(class, share)| (class, share, Source::Profile))
    }

    fn by_profile(&self) -> Option<(Class, f32)> {
        let all: f32 = self.guesses.values().sum();
        let (most, weight) = self.guesses.iter().max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        Some(((*most)?, weight / all)).filter(|(_, share)| *share >= AGREED)
    }

    /// The class to treat it as: one that it was said to be, or `with_guesses` seems to be for long enough.
    pub fn to_act_on(&self, with_guesses: bool) -> Option<Class> {
        let (class, _, source) = self.class()?;
        (source != Source::Profile || with_guesses && self.epochs >= FIRM).then_some(class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(class: Option<Class>) -> Guess {
        Guess { class, confidence: if class.is_some() { 0.9 } else { 0.0 } }
    }

    #[test]
    fn the_operator_comes_before_labels_and_both_before_the_profile() {
        let mut belief = Belief::default();
        assert_eq!(belief.class(), None);
        belief.guess(guess(Some(Class::Web)));
        assert_eq!(belief.class(), Some((Class::Web, 1.0, Source::Profile)));
        belief.label(Some(Class::Cache));
        assert_eq!(belief.class(), Some((Class::Cache, 1.0, Source::Label)));
        assert_eq!(belief.to_act_on(false), Some(Class::Cache));
        belief.label(None);
        assert_eq!(belief.class().map(|(class, ..)| class), Some(Class::Web), "the label is gone");

        let mut belief = Belief::of_operator(Some(Class::Other));
        belief.label(Some(Class::Cache));
        belief.guess(guess(Some(Class::Web)));
        assert_eq!(belief.class(), Some((Class::Other, 1.0, Source::Operator)));
    }

    #[test]
    fn one_epoch_of_another_kind_changes_nothing_and_many_do() {
        let mut belief = Belief::default();
        (0..5).for_each(|_| belief.guess(guess(Some(Class::Database))));
        belief.guess(guess(Some(Class::Build)));
        assert!(matches!(belief.class(), Some((Class::Database, share, _)) if share < 0.9));
        (0..3).for_each(|_| belief.guess(guess(None)));
        assert_eq!(belief.class(), None, "it is like nothing any more");
        (0..5).for_each(|_| belief.guess(guess(Some(Class::Build))));
        assert_eq!(belief.class().map(|(class, ..)| class), Some(Class::Build));
    }

    #[test]
    fn guesses_are_acted_on_only_if_wanted_and_not_at_once() {
        let mut belief = Belief::default();
        for _ in 1..FIRM {
            belief.guess(guess(Some(Class::Idle)));
            assert_eq!(belief.to_act_on(true), None);
        }
        belief.guess(guess(Some(Class::Idle)));
        assert_eq!((belief.to_act_on(true), belief.to_act_on(false)), (Some(Class::Idle), None));
    }
    #[test]
    fn what_it_seemed_to_be_before_is_believed_until_it_seems_to_be_something_else() {
        let mut earlier = Belief::default();
        (1..FIRM).for_each(|_| earlier.guess(guess(Some(Class::Web))));
        assert_eq!(earlier.seems(), None, "not firm yet");
        earlier.guess(guess(Some(Class::Web)));
        let (class, share) = earlier.seems().unwrap();

        let mut again = Belief::default();
        again.seemed(class, share);
        assert_eq!(again.to_act_on(true), Some(Class::Web));
        again.guess(guess(Some(Class::Build)));
        again.guess(guess(None));
        assert_eq!(again.to_act_on(true), Some(Class::Web), "a boot is not what it does");
        (0..5).for_each(|_| again.guess(guess(Some(Class::Build))));
        assert_eq!(again.to_act_on(true), Some(Class::Build));
    }
}
