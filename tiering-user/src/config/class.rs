//! Kinds of work, as an operator can name them, and what each changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::DEFAULT_PRIORITY;

/// Kind of work that a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Database,
    Web,
    Cache,
    /// Analytics, and other work that nobody waits for.
    Batch,
    Build,
    Idle,
    Desktop,
    /// None of these. An operator can say it, so that nothing is guessed.
    Other,
}

impl Class {
    pub const ALL: [Self; 8] = [
        Self::Database,
        Self::Web,
        Self::Cache,
        Self::Batch,
        Self::Build,
        Self::Idle,
        Self::Desktop,
        Self::Other,
    ];

    /// As the configuration and the status write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Web => "web",
            Self::Cache => "cache",
            Self::Batch => "batch",
            Self::Build => "build",
            Self::Idle => "idle",
            Self::Desktop => "desktop",
            Self::Other => "other",
        }
    }

    /// The class of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// What the agent begins with for a VM of a class, and what of the general settings is otherwise for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Priors {
    /// 0 to 100, where no rule gives the VM one of its own.
    pub priority: u8,
    /// Times `policy.demote_after`.
    pub idle_age: f64,
    /// Times `policy.floor`.
    pub floor: f64,
    /// Times the first window of whatever predicts what it touches.
    pub first_window: f64,
    /// How probably that is right before anything is known of it, 0 to 1.
    pub first_confidence: f64,
}

impl Priors {
    /// Of VMs of which nothing is known.
    pub const NEUTRAL: Self = Self {
        priority: DEFAULT_PRIORITY,
        idle_age: 1.0,
        floor: 1.0,
        first_window: 1.0,
        first_confidence: 0.67,
    };

    /// docs/policy.md tells why.
    fn of(class: Class) -> Self {
        let neutral = Self::NEUTRAL;
        match class {
            Class::Database => Self { priority: 65, idle_age: 2.0, floor: 2.0, ..neutral },
            Class::Web => Self { floor: 1.5, first_window: 2.0, first_confidence: 0.75, ..neutral },
            Class::Cache => Self { priority: 65, idle_age: 1.5, floor: 2.0, ..neutral },
            Class::Batch => {
                Self { priority: 40, idle_age: 0.75, first_window: 2.0, first_confidence: 0.75, ..neutral }
            }
            Class::Build => Self { priority: 40, first_window: 0.5, first_confidence: 0.6, ..neutral },
            Class::Idle => {
                Self { priority: 10, idle_age: 0.5, floor: 0.5, first_window: 0.5, first_confidence: 0.6 }
            }
            Class::Desktop => Self { priority: 60, idle_age: 2.0, floor: 2.0, ..neutral },
            Class::Other => neutral,
        }
    }
}

impl Default for Priors {
    fn default() -> Self {
        Self::NEUTRAL
    }
}

/// The priors of each class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Class, PriorKeys>", into = "BTreeMap<Class, Priors>")]
pub struct ClassPriors(pub(super) BTreeMap<Class, Priors>);

impl ClassPriors {
    /// Of a class, or of VMs whose class is not known.
    #[must_use]
    pub fn of(&self, class: Option<Class>) -> Priors {
        class.and_then(|class| self.0.get(&class)).copied().unwrap_or(Priors::NEUTRAL)
    }
}

impl Default for ClassPriors {
    fn default() -> Self {
        BTreeMap::new().into()
    }
}

/// What a file says of a class: what is left out is as it is by default.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PriorKeys {
    priority: Option<u8>,
    idle_age: Option<f64>,
    floor: Option<f64>,
    first_window: Option<f64>,
    first_confidence: Option<f64>,
}

impl From<BTreeMap<Class, PriorKeys>> for ClassPriors {
    fn from(mut said: BTreeMap<Class, PriorKeys>) -> Self {
        let mut priors = |class| {
            let (keys, usual) = (said.remove(&class).unwrap_or_default(), Priors::of(class));
            Priors {
                priority: keys.priority.unwrap_or(usual.priority),
                idle_age: keys.idle_age.unwrap_or(usual.idle_age),
                floor: keys.floor.unwrap_or(usual.floor),
                first_window: keys.first_window.unwrap_or(usual.first_window),
                first_confidence: keys.first_confidence.unwrap_or(usual.first_confidence),
            }
        };
        Self(Class::ALL.map(|class| (class, priors(class))).into())
    }
}

impl From<ClassPriors> for BTreeMap<Class, Priors> {
    fn from(priors: ClassPriors) -> Self {
        priors.0
    }
}
