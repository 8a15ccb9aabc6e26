//! What vectors of profiles are like whose class is known, and what that says of another one.
//!
//! The [`Model`] is a file: of each kind of VM that it was learned from the mean of its vectors and how they
//! scatter around it (regularized discriminant analysis; J. H. Friedman, Journal of the American Statistical
//! Association 84, 1989). A vector is of the kind that makes it likeliest; where it is too far even from that, or two
//! classes are as likely, the answer is "unknown".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Class;
use crate::profile::{COMPONENTS, Vector};

/// Version of the model's file.
pub const VERSION: u32 = 3;
/// How likely a class has to be, beside the others.
const AGREED: f32 = 0.5;

/// The model that is part of this program.
const BUILT_IN: &str = include_str!("../../classes/model.json");

/// What a VM seems to be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guess {
    /// None where it is like nothing that is known.
    pub class: Option<Class>,
    /// How likely it is of this class, if it is of any that is known, 0 to 1; 0 where it is too far from all.
    pub confidence: f32,
}

/// A model that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("this is no model of classes: {0}")]
    Json(#[from] serde_json::Error),
    #[error("this model has version {0}, and this program reads version {VERSION}: train it anew")]
    Version(u32),
    #[error("this model goes by other components of profiles than this program: train it anew")]
    Components,
    #[error("this model contradicts itself: {0}")]
    Broken(&'static str),
}

/// Kinds of VMs that are known, and how others are compared with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub version: u32,
    /// [`COMPONENTS`] as they were when it was learned.
    pub components: Vec<String>,
    pub kinds: Vec<Kind>,
    /// How vectors of one kind scatter, whichever it is.
    pub scatter: Scatter,
    /// More vectors whose class is known, by where [`Self::scatter`] takes them.
    #[serde(skip)]
    more: Vec<(Class, Vec<f32>)>,
}

/// What is at a greater [distance](Nearest::distance) from all kinds of its likeliest class is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// At the end of the first whole epoch: of all kinds some have done little until then.
    pub at_first: f32,
    pub later: f32,
}

/// What VMs of one kind are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    pub class: Class,
    /// The mean of its vectors.
    pub mean: Vec<f32>,
    pub scatter: Scatter,
}

/// How vectors scatter: what takes their differences from the mean to where they scatter alike in all directions, by 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scatter {
    /// A lower triangle: row n has n + 1 numbers.
    pub rows: Vec<Vec<f32>>,
    /// Natural logarithm of the determinant of the covariance.
    pub log_volume: f32,
    pub reach: Reach,
}

/// What a vector is likeliest to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    pub class: Class,
    /// Which one of [`Model::kinds`]; None for a vector that the host added.
    pub kind: Option<usize>,
    /// From the mean of its kind, squared, as vectors of that kind scatter (P. C. Mahalanobis, 1936): at most about the
    /// number of components on average, for one of this kind.
    pub distance: f32,
    /// Twice the logarithm of how likely it is, negated, up to a constant.
    unlikely: f32,
}

impl Reach {
    fn after(self, epochs: u64) -> f32 {
        if epochs > 1 { self.later } else { self.at_first }
    }
}

impl Scatter {
    fn take(&self, difference: &[f32]) -> Vec<f32> {
        let along = |row: &Vec<f32>| row.iter().zip(difference).map(|(weight, value)| weight * value).sum();
        self.rows.iter().map(along).collect()
    }

    fn check(&self) -> Result<(), ModelError> {
        let triangle = self.rows.iter().zip(1..).all(|(row, length)| row.len() == length);
        if self.rows.len() != COMPONENTS.len() || !triangle {
            return Err(ModelError::Broken("how vectors scatter is no triangle of all components"));
        }
        let Reach { at_first, later } = &self.reach;
        if *at_first <= 0.0 || *later <= 0.0 {
            return Err(ModelError::Broken("a kind reaches nothing"));
        }
        let numbers = self.rows.iter().flatten().chain([&self.log_volume, at_first, later]);
        if !numbers.copied().all(f32::is_finite) {
            return Err(ModelError::Broken("a number of it is none"));
        }
        Ok(())
    }
}

impl Model {
    pub fn new(kinds: Vec<Kind>, scatter: Scatter) -> Self {
        let components = COMPONENTS.map(str::to_owned).to_vec();
        Self { version: VERSION, components, kinds, scatter, more: Vec::new() }
    }

    /// # Errors
    /// [`ModelError`]: not a model, or not one for this program.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(ModelError::Version(version));
        }
        let model: Self = serde_json::from_str(text)?;
        model.check()?;
        Ok(model)
    }

    /// The one that is part of this program.
    ///
    /// # Errors
    /// [`ModelError`] where it was learned for other components.
    pub fn built_in() -> Result<Self, ModelError> {
        Self::from_json(BUILT_IN)
    }

    /// The same with more vectors of which the class is known.
    pub fn with<'a>(&self, known: impl Iterator<Item = (Class, &'a Vector)>) -> Self {
        let mut model = self.clone();
        model.more.extend(known.map(|(class, vector)| (class, self.scatter.take(vector))));
        model
    }

    /// What a VM with this vector seems to be, after so many whole epochs.
    pub fn classify(&self, vector: &Vector, epochs: u64) -> Guess {
        let candidates: Vec<Nearest> = self.candidates(vector).collect();
        let Some(nearest) = likeliest(candidates.iter().copied()) else { return Guess::default() };
        // Of its class one kind may be likelier and another one reach farther.
        let scatter = |kind: Option<usize>| kind.map_or(&self.scatter, |kind| &self.kinds[kind].scatter);
        let reaches = |other: &Nearest| {
            other.class == nearest.class && other.distance <= scatter(other.kind).reach.after(epochs)
        };
        if !candidates.iter().any(reaches) {
            return Guess::default();
        }
        let mut likely: BTreeMap<Class, f32> = BTreeMap::new();
        for Nearest { class, unlikely, .. } in candidates {
            let share = ((nearest.unlikely - unlikely) / 2.0).exp();
            likely.entry(class).and_modify(|most| *most = most.max(share)).or_insert(share);
        }
        // The likeliest has 1.
        let confidence = 1.0 / likely.values().sum::<f32>();
        Guess { class: Some(nearest.class).filter(|_| confidence >= AGREED), confidence }
    }

    /// What a vector is likeliest to be, however far it is from that. None where nothing is known.
    pub fn nearest(&self, vector: &Vector) -> Option<Nearest> {
        likeliest(self.candidates(vector))
    }

    fn candidates(&self, vector: &Vector) -> impl Iterator<Item = Nearest> {
        let of_kind = |(number, kind): (usize, &Kind)| {
            let difference: Vec<f32> =
                vector.iter().zip(&kind.mean).map(|(value, mean)| value - mean).collect();
            let distance = kind.scatter.take(&difference).iter().map(|along| along * along).sum::<f32>();
            let unlikely = distance + kind.scatter.log_volume;
            Nearest { class: kind.class, kind: Some(number), distance, unlikely }
        };
        let at = self.scatter.take(vector);
        // Two vectors of one kind are twice as far from each other as from their mean, squared.
        let log_volume = self.scatter.log_volume + COMPONENTS.len() as f32 * std::f32::consts::LN_2;
        let of_one = move |(class, other): &(Class, Vec<f32>)| {
            let distance = at.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / 2.0;
            Nearest { class: *class, kind: None, distance, unlikely: distance + log_volume }
        };
        self.kinds.iter().enumerate().map(of_kind).chain(self.more.iter().map(of_one))
    }

    fn check(&self) -> Result<(), ModelError> {
        if self.components != COMPONENTS {
            return Err(ModelError::Components);
        }
        self.kinds.iter().map(|kind| &kind.scatter).chain([&self.scatter]).try_for_each(Scatter::check)?;
        if !self.kinds.iter().all(|kind| kind.mean.len() == COMPONENTS.len()) {
            return Err(ModelError::Broken("a mean has too many or too few components"));
        }
        if !self.kinds.iter().flat_map(|kind| &kind.mean).copied().all(f32::is_finite) {
            return Err(ModelError::Broken("a number of it is none"));
        }
        Ok(())
    }
}

fn likeliest(candidates: impl Iterator<Item = Nearest>) -> Option<Nearest> {
    candidates.min_by(|one, other| one.unlikely.total_cmp(&other.unlikely))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: Reach = Reach { at_first: 64.0, later: 25.0 };

    /// What scatters by as much in each direction.
    fn scatter(by: f32) -> Scatter {
        let row = |row: usize| (0..=row).map(|column| if column == row { 1.0 / by } else { 0.0 }).collect();
        let log_volume = COMPONENTS.len() as f32 * 2.0 * by.ln();
        Scatter { rows: (0..COMPONENTS.len()).map(row).collect(), log_volume, reach: REACH }
    }

    fn kind(class: Class, writes: f32, by: f32) -> Kind {
        Kind { class, mean: vector(writes).to_vec(), scatter: scatter(by) }
    }

    /// Web VMs write nothing and databases write all the time.
    fn model() -> Model {
        Model::new(vec![kind(Class::Web, -1.0, 0.1), kind(Class::Database, 0.5, 0.1)], scatter(0.1))
    }

    fn vector(writes: f32) -> Vector {
        let mut vector = [0.0; COMPONENTS.len()];
        vector[1] = writes;
        vector
    }

    #[test]
    fn what_is_likeliest_is_said_and_what_is_far_from_all_is_unknown() {
        let model = model();
        let guess = model.classify(&vector(-0.9), 2);
        assert!(guess.class == Some(Class::Web) && guess.confidence > 0.99, "{guess:?}");
        assert_eq!(model.classify(&vector(0.9), 2).class, Some(Class::Database));
        assert_eq!(model.classify(&vector(-0.25), 2), Guess::default(), "as far as 7 from both");
        assert_eq!(model.classify(&vector(-1.6), 2), Guess::default());
        assert_eq!(model.classify(&vector(-1.6), 1).class, Some(Class::Web), "it has done little yet");
        let mut far = model;
        far.kinds.iter_mut().for_each(|kind| kind.scatter.reach.later = 100.0);
        let guess = far.classify(&vector(-0.25), 2);
        assert!((guess.confidence - 0.5).abs() < 0.01, "as likely: {guess:?}");
    }

    #[test]
    fn a_kind_that_scatters_more_reaches_farther() {
        let model = Model::new(vec![kind(Class::Web, -1.0, 0.1), kind(Class::Build, 0.5, 0.3)], scatter(0.2));
        let nearest = model.nearest(&vector(-0.1)).unwrap();
        assert!(nearest.class == Class::Build && (nearest.distance - 4.0).abs() < 0.01, "{nearest:?}");
        assert_eq!(model.nearest(&vector(-0.9)).unwrap().class, Class::Web, "it fits a narrow one better");
    }

    #[test]
    fn each_kind_has_a_reach_of_its_own() {
        let mut model = model();
        model.kinds[0].scatter.reach = Reach { at_first: 16.0, later: 4.0 };
        assert_eq!(model.classify(&vector(-0.7), 2), Guess::default());
        assert_eq!(model.classify(&vector(-0.7), 1).class, Some(Class::Web));
        assert_eq!(model.classify(&vector(-0.55), 1), Guess::default());
        assert_eq!(model.classify(&vector(0.2), 2).class, Some(Class::Database));
        // Another kind of the same class that reaches farther is as good.
        model.kinds.push(kind(Class::Web, -1.0, 0.11));
        assert_eq!(model.classify(&vector(-0.7), 2).class, Some(Class::Web));
    }

    #[test]
    fn a_model_that_knows_nothing_says_nothing() {
        let nothing = Model { kinds: Vec::new(), ..model() };
        assert_eq!(nothing.classify(&vector(-1.0), 2), Guess::default());
    }

    #[test]
    fn what_it_is_told_of_more_vectors_it_says_of_others_like_them() {
        let mut told = model().with([(Class::Desktop, &vector(3.0))].into_iter());
        assert_eq!(told.classify(&vector(3.1), 2).class, Some(Class::Desktop));
        assert_eq!(told.classify(&vector(3.8), 2).class, None);
        assert_eq!(told.classify(&vector(-0.9), 2).class, Some(Class::Web));
        told.scatter.reach.later = 1.0;
        assert_eq!(told.classify(&vector(3.2), 2).class, None, "the reach of all kinds is theirs");
    }

    #[test]
    fn what_it_is_told_makes_nothing_unknown_that_was_known() {
        let mut model = model();
        model.kinds[0].scatter.reach.later = 100.0;
        model.scatter.reach.later = 4.0;
        assert_eq!(model.classify(&vector(-0.3), 2).class, Some(Class::Web));
        let told = model.with([(Class::Web, &vector(-0.95))].into_iter());
        assert_eq!(told.nearest(&vector(-0.3)).unwrap().kind, None);
        assert_eq!(told.classify(&vector(-0.3), 2).class, Some(Class::Web));
    }

    #[test]
    fn the_built_in_model_can_be_used() {
        let model = Model::built_in().unwrap();
        assert!(model.kinds.len() > 5, "{model:?}");
        for kind in &model.kinds {
            let mean: Vector = kind.mean.clone().try_into().unwrap();
            assert_eq!([1, 2].map(|epochs| model.classify(&mean, epochs).class), [Some(kind.class); 2]);
        }
    }

    #[test]
    fn what_is_no_model_for_this_program_is_said_to_be() {
        let changed = |change: fn(&mut Model)| {
            let mut model = model();
            change(&mut model);
            Model::from_json(&serde_json::to_string(&model).unwrap()).unwrap_err().to_string()
        };
        assert!(changed(|model| model.version = 7).contains("version 7"));
        assert!(changed(|model| model.components[0] = "colour".into()).contains("other components"));
        assert!(changed(|model| model.kinds[0].mean.truncate(3)).contains("too few components"));
        assert!(changed(|model| model.kinds[1].scatter.rows[3].push(1.0)).contains("no triangle"));
        assert!(changed(|model| model.scatter.rows.truncate(3)).contains("no triangle"));
        assert!(changed(|model| model.kinds[0].scatter.reach.later = 0.0).contains("reaches nothing"));
        let endless = serde_json::to_string(&model()).unwrap().replacen("64.0", "1e39", 1);
        assert!(Model::from_json(&endless).unwrap_err().to_string().contains("a number of it is none"));
        assert!(Model::from_json("{").unwrap_err().to_string().contains("no model"));
        let same = Model::from_json(&serde_json::to_string(&model()).unwrap()).unwrap();
        assert_eq!(same, model());
    }
}
