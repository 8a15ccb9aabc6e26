//! Vectors of profiles whose class is known, and what they say of another one.
//!
//! The [`Model`] is a file: vectors of runs of programs whose class is known, seen from where classes lie farthest apart (linear discriminants;
//! R. A. Fisher, Annals of Eugenics 7, 1936). The nearest ones vote; where they disagree, or none is near, the answer is "unknown".

use serde::{Deserialize, Serialize};

use crate::config::Class;
use crate::profile::{COMPONENTS, Vector};

/// Version of the model's file.
pub const VERSION: u32 = 1;
/// Known vectors that vote.
pub const NEIGHBOURS: usize = 5;
/// Least share of the votes that a class needs.
const AGREED: f32 = 0.5;
/// A known vector at this distance has half the vote of one at none.
const BLUR: f32 = 0.1;

/// The model that is part of this program.
const BUILT_IN: &str = include_str!("../../classes/model.json");

/// What a machine seems to be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guess {
    /// None where it is like nothing that is known.
    pub class: Option<Class>,
    /// Share of the votes, 0 to 1; 0 where nothing is near.
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

/// Known vectors, and how others are compared with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub version: u32,
    /// [`COMPONENTS`] as they were when it was learned.
    pub components: Vec<String>,
    /// Of each component, over all that it was learned from.
    pub mean: Vec<f32>,
    /// Of each discriminant, a weight of each component.
    pub discriminants: Vec<Vec<f32>>,
    /// Where the last of [`NEIGHBOURS`] is farther than that, nothing is near.
    pub farthest: f32,
    pub known: Vec<Known>,
}

/// A vector whose class is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    pub class: Class,
    /// By discriminant.
    pub at: Vec<f32>,
}

impl Model {
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
        let mut more = self.clone();
        more.known.extend(known.map(|(class, vector)| Known { class, at: self.project(vector) }));
        more
    }

    /// Where a vector lies, by discriminant.
    pub fn project(&self, vector: &Vector) -> Vec<f32> {
        let centred = || vector.iter().zip(&self.mean).map(|(value, mean)| value - mean);
        let along =
            |weights: &Vec<f32>| weights.iter().zip(centred()).map(|(weight, value)| weight * value).sum();
        self.discriminants.iter().map(along).collect()
    }

    /// What a machine with this vector seems to be.
    pub fn classify(&self, vector: &Vector) -> Guess {
        self.vote(&self.nearest(&self.project(vector)))
    }

    /// How far the last of the [`NEIGHBOURS`] of a vector is, by its place.
    pub fn reach(&self, at: &[f32]) -> Option<f32> {
        self.nearest(at).last().map(|(distance, _)| *distance)
    }

    /// The nearest first.
    fn nearest(&self, at: &[f32]) -> Vec<(f32, Class)> {
        let distance =
            |known: &Known| known.at.iter().zip(at).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        let mut known: Vec<_> = self.known.iter().map(|known| (distance(known), known.class)).collect();
        known.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        known.truncate(NEIGHBOURS);
        known
    }

    fn vote(&self, nearest: &[(f32, Class)]) -> Guess {
        let near =
            nearest.len() == NEIGHBOURS && nearest.iter().all(|(distance, _)| *distance <= self.farthest);
        if !near {
            return Guess::default();
        }
        let vote = |distance: f32| 1.0 / (distance + BLUR);
        let of = |class: Class| {
            nearest.iter().filter(|other| other.1 == class).map(|(distance, _)| vote(*distance)).sum::<f32>()
        };
        let total: f32 = nearest.iter().map(|(distance, _)| vote(*distance)).sum();
        let shares = nearest.iter().map(|(_, class)| (*class, of(*class) / total));
        let Some((class, confidence)) = shares.max_by(|(_, one), (_, other)| one.total_cmp(other)) else {
            return Guess::default();
        };
        Guess { class: Some(class).filter(|_| confidence >= AGREED), confidence }
    }

    fn check(&self) -> Result<(), ModelError> {
        if self.components != COMPONENTS {
            return Err(ModelError::Components);
        }
        let wide = |row: &Vec<f32>| row.len() == COMPONENTS.len();
        if !wide(&self.mean) || !self.discriminants.iter().all(wide) {
            return Err(ModelError::Broken("a mean or a discriminant has too many or too few components"));
        }
        if !self.known.iter().all(|known| known.at.len() == self.discriminants.len()) {
            return Err(ModelError::Broken("a known vector has too many or too few coordinates"));
        }
        let numbers = self.mean.iter().chain(self.discriminants.iter().flatten());
        if !numbers.chain(self.known.iter().flat_map(|known| &known.at)).all(|number| number.is_finite()) {
            return Err(ModelError::Broken("a number of it is none"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Web machines write nothing and databases write all the time.
    fn model() -> Model {
        let mut along = vec![0.0; COMPONENTS.len()];
        along[1] = 1.0;
        let known = |class, value: f32| {
            (0..NEIGHBOURS).map(move |n| Known { class, at: vec![value + n as f32 / 100.0] })
        };
        Model {
            version: VERSION,
            components: COMPONENTS.map(str::to_owned).to_vec(),
            mean: vec![0.0; COMPONENTS.len()],
            discriminants: vec![along],
            farthest: 0.5,
            known: known(Class::Web, -1.0).chain(known(Class::Database, 0.5)).collect(),
        }
    }

    fn vector(writes: f32) -> Vector {
        let mut vector = [0.0; COMPONENTS.len()];
        vector[1] = writes;
        vector
    }

    #[test]
    fn the_nearest_vote_and_what_is_far_from_all_is_unknown() {
        let model = model();
        assert_eq!(model.classify(&vector(-0.9)), Guess { class: Some(Class::Web), confidence: 1.0 });
        assert_eq!(model.classify(&vector(0.7)).class, Some(Class::Database));
        assert_eq!(model.classify(&vector(0.0)).class, None, "0.5 or more from all");
        assert_eq!(model.classify(&vector(-1.6)), Guess::default());
        let known = [
            (Class::Web, -1.0),
            (Class::Web, -1.0),
            (Class::Database, 1.0),
            (Class::Database, 1.0),
            (Class::Cache, 1.0),
        ];
        let known = known.map(|(class, value)| Known { class, at: vec![value] }).to_vec();
        let between = Model { farthest: 2.0, known, ..model };
        let Guess { class, confidence } = between.classify(&vector(0.0));
        assert!(class.is_none() && (confidence - 0.4).abs() < 1e-6, "they disagree: {class:?} {confidence}");
    }

    #[test]
    fn a_model_of_few_vectors_knows_nothing() {
        let mut few = model();
        few.known.truncate(NEIGHBOURS - 1);
        assert_eq!(few.classify(&vector(-1.0)), Guess::default());
    }

    #[test]
    fn what_it_is_told_of_more_vectors_it_says_of_others_like_them() {
        let more = [vector(3.0); NEIGHBOURS];
        let told = model().with(more.iter().map(|vector| (Class::Desktop, vector)));
        assert_eq!(told.classify(&vector(3.1)).class, Some(Class::Desktop));
        assert_eq!(told.classify(&vector(-0.9)).class, Some(Class::Web));
    }

    #[test]
    fn the_built_in_model_can_be_used() {
        let model = Model::built_in().unwrap();
        assert!(model.known.len() > 100 && model.farthest > 0.0, "{} {}", model.known.len(), model.farthest);
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
        assert!(changed(|model| model.mean.truncate(3)).contains("too few components"));
        assert!(changed(|model| model.known[0].at.push(1.0)).contains("coordinates"));
        assert!(Model::from_json("{").unwrap_err().to_string().contains("no model"));
        let same = Model::from_json(&serde_json::to_string(&model()).unwrap()).unwrap();
        assert_eq!(same, model());
    }
}
