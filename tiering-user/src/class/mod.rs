//! What kind of work a VM does.
//!
//! In: what the operator or [labels](of_labels) say of it; else the [vector](crate::profile::Profile::vector) of its
//! profile, at the end of each epoch, of which the [`Model`] makes a [`Guess`]. Out: a [`Belief`], which may be that
//! nothing is known. What follows of a class is in [`Priors`](crate::config::Priors). Pure. docs/classes.md tells what
//! the model was learned from, and how right it is.

mod belief;
mod labels;
mod model;

pub use belief::{Belief, Source};
pub use labels::{Labels, of_labels};
pub use model::{Guess, Kind, Model, ModelError, Nearest, Reach, Scatter, VERSION};
