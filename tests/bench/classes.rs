//! Learns the classes of machines from profiles of programs, and says how right that is of programs, sizes and runs that it did not learn from.
//!
//! In: `tiering-user/classes/epochs.csv`. Out: with `train` `model.json` beside it; with `evaluate` a table and `docs/classes.svg`.
//! Linear discriminants: vectors are turned and scaled so that within a class they spread alike in all directions, and the directions are kept in which
//! the means of classes are farthest apart.

use crate::confusion::Confusion;
use anyhow::{Context, Result, bail, ensure};
use nalgebra::{Cholesky, DMatrix, DVector, SymmetricEigen};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tiering_tests::paths::workspace_root;
use tiering_tests::program::Kind;
use tiering_tests::results::Results;
use tiering_user::class::{Belief, Guess, Known, Model, VERSION};
use tiering_user::config::Class;
use tiering_user::profile::{COMPONENTS, Vector};

/// Added to the spread within classes, as a share of its mean: what hardly varies in the runs that there are may do so in others.
const SHRINK: f64 = 0.01;
/// Of the vectors that it was learned from, so many percent have their neighbours, in other runs, within the model's reach.
const WITHIN_REACH: usize = 99;
/// From so many on the agent acts on guesses, where it is to.
const BELIEVED_AFTER: usize = 3;
const F1_LEAST: f64 = 0.95;
const UNKNOWN_LEAST: f64 = 0.9;
const CLASSES: [Class; 6] =
    [Class::Database, Class::Web, Class::Cache, Class::Batch, Class::Build, Class::Idle];

/// What a program is.
fn class(kind: Kind) -> Class {
    match kind {
        Kind::Postgres => Class::Database,
        Kind::Nginx => Class::Web,
        Kind::Redis | Kind::Memcached => Class::Cache,
        Kind::Compile => Class::Build,
        Kind::Sqlite => Class::Batch,
        Kind::Idle => Class::Idle,
    }
}

/// An epoch of a run.
#[derive(Clone)]
struct Epoch {
    kind: Kind,
    run: String,
    mib: usize,
    /// Within its run: 1 is the first in which all ten seconds were seen.
    number: usize,
    vector: Vector,
}

/// Where data and model are.
fn folder() -> PathBuf {
    workspace_root().join("tiering-user/classes")
}

/// All whole epochs: the first of a run began before it was recorded.
fn epochs() -> Result<Vec<Epoch>> {
    let path = folder().join("epochs.csv");
    let mut rows = csv::Reader::from_path(&path).with_context(|| format!("reading {}", path.display()))?;
    let components = rows.headers()?.iter().skip(2).eq(COMPONENTS);
    ensure!(components, "{} has other components than profiles: record anew", path.display());
    let mut epochs = Vec::new();
    // Of each run the second of its last epoch, and how many there were before. A run that was recorded twice begins twice.
    let mut seen: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    for row in rows.records() {
        let row = row?;
        let (run, second) = (row[0].to_owned(), row[1].parse()?);
        let number = seen.get(&run).filter(|(last, _)| *last < second).map_or(0, |(_, number)| number + 1);
        seen.insert(run.clone(), (second, number));
        let mut words = run.split('-').skip(1);
        let (Some(program), Some(mib)) = (words.next(), words.next()) else {
            bail!("{run} is not the name of a run")
        };
        let (kind, mib) = (Kind::named(program)?, mib.parse()?);
        let values = row.iter().skip(2).map(str::parse).collect::<Result<Vec<f32>, _>>()?;
        let vector = values.try_into().ok().with_context(|| format!("{run} has a row that is too short"))?;
        epochs.push(Epoch { kind, run, mib, number, vector });
    }
    epochs.retain(|epoch| epoch.number > 0);
    Ok(epochs)
}

/// Learns from epochs.
fn learn(epochs: &[Epoch]) -> Result<Model> {
    let width = COMPONENTS.len();
    let vectors: Vec<_> =
        epochs.iter().map(|epoch| DVector::from_iterator(width, epoch.vector.map(f64::from))).collect();
    let mean_of = |vectors: &[&DVector<f64>]| {
        vectors.iter().fold(DVector::zeros(width), |sum, vector| sum + *vector) / vectors.len() as f64
    };
    let mean = mean_of(&vectors.iter().collect::<Vec<_>>());
    let spread = vectors.iter().fold(DVector::zeros(width), |sum: DVector<f64>, vector| {
        sum + (vector - &mean).map(|value| value * value)
    });
    let scale = spread.map(|sum| 1.0 / ((sum / vectors.len() as f64).sqrt() + 1e-9));
    let scaled: Vec<_> = vectors.iter().map(|vector| (vector - &mean).component_mul(&scale)).collect();

    let (mut within, mut between) = (DMatrix::zeros(width, width), DMatrix::zeros(width, width));
    let mut classes = 0;
    for class in CLASSES {
        let own = |(epoch, vector)| (class_of(epoch) == class).then_some(vector);
        let members: Vec<&DVector<f64>> = epochs.iter().zip(&scaled).filter_map(own).collect();
        if members.is_empty() {
            continue;
        }
        classes += 1;
        let centre = mean_of(&members);
        for member in &members {
            let apart = *member - &centre;
            within += &apart * apart.transpose() / members.len() as f64;
        }
        between += &centre * centre.transpose();
    }
    within += DMatrix::identity(width, width) * (SHRINK * within.trace() / width as f64);
    let whiten = Cholesky::new(within).and_then(|within| within.l().try_inverse());
    let whiten = whiten.context("the vectors do not vary")?;
    let directions = SymmetricEigen::new(&whiten * between * whiten.transpose());
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| directions.eigenvalues[*b].total_cmp(&directions.eigenvalues[*a]));
    let discriminants = order.iter().take(classes - 1).map(|direction| {
        let weights = whiten.transpose() * directions.eigenvectors.column(*direction);
        // Within a class the spread is 1 in each direction.
        let weights = weights.component_mul(&scale) * (classes as f64).sqrt();
        weights.iter().map(|weight| *weight as f32).collect()
    });
    let mut model = Model {
        version: VERSION,
        components: COMPONENTS.map(str::to_owned).to_vec(),
        mean: mean.iter().map(|mean| *mean as f32).collect(),
        discriminants: discriminants.collect(),
        farthest: f32::INFINITY,
        known: Vec::new(),
    };
    model.known = epochs
        .iter()
        .map(|epoch| Known { class: class_of(epoch), at: model.project(&epoch.vector) })
        .collect();
    model.farthest = farthest(&model, epochs);
    Ok(model)
}

/// How far the neighbours of a vector are in other runs than its own.
fn farthest(model: &Model, epochs: &[Epoch]) -> f32 {
    let mut reaches: Vec<f32> = epochs
        .iter()
        .zip(&model.known)
        .filter_map(|(epoch, known)| {
            let others = epochs.iter().zip(&model.known).filter(|(other, _)| other.run != epoch.run);
            let others = Model { known: others.map(|(_, known)| known.clone()).collect(), ..model.clone() };
            others.reach(&known.at)
        })
        .collect();
    reaches.sort_by(f32::total_cmp);
    let last = reaches.len().saturating_sub(1);
    reaches.get(last * WITHIN_REACH / 100).copied().unwrap_or(0.0)
}

fn class_of(epoch: &Epoch) -> Class {
    class(epoch.kind)
}

/// What is said of epochs that a model did not learn from: each group is left out once.
fn left_out<G: Ord>(epochs: &[Epoch], group: impl Fn(&Epoch) -> G) -> Result<Vec<(&Epoch, Guess)>> {
    let groups: BTreeSet<G> = epochs.iter().map(&group).collect();
    let mut said = Vec::new();
    for left in &groups {
        let others: Vec<_> = epochs.iter().filter(|epoch| group(epoch) != *left).cloned().collect();
        let model = learn(&others)?;
        let own = epochs.iter().filter(|epoch| group(epoch) == *left);
        said.extend(own.map(|epoch| (epoch, model.classify(&epoch.vector))));
    }
    Ok(said)
}

/// How small a size is among those of its program: 0 is the smallest.
fn rank(epochs: &[Epoch], of: &Epoch) -> usize {
    let smaller = epochs.iter().filter(|epoch| epoch.kind == of.kind && epoch.mib < of.mib);
    smaller.map(|epoch| epoch.mib).collect::<BTreeSet<_>>().len()
}

/// Of a program of which nothing was learned, nor of others of its class: the share of epochs, and of runs after some, that are said to be unknown.
fn unknown(epochs: &[Epoch], kind: Kind) -> Result<(f64, f64)> {
    let others: Vec<_> = epochs.iter().filter(|epoch| class_of(epoch) != class(kind)).cloned().collect();
    let model = learn(&others)?;
    let own = epochs.iter().filter(|epoch| epoch.kind == kind);
    let said: Vec<_> = own.map(|epoch| (epoch, model.classify(&epoch.vector))).collect();
    let share = |said: &mut dyn ExactSizeIterator<Item = Option<Class>>| {
        let all = said.len();
        said.filter(Option::is_none).count() as f64 / all as f64
    };
    let by_run = believed(&said);
    Ok((
        share(&mut said.iter().map(|(_, guess)| guess.class)),
        share(&mut by_run.iter().map(|(_, class)| *class)),
    ))
}

/// What the agent believes of each run after [`BELIEVED_AFTER`] epochs.
fn believed(said: &[(&Epoch, Guess)]) -> Vec<(Class, Option<Class>)> {
    let mut runs: BTreeMap<&str, (Class, Belief)> = BTreeMap::new();
    // Of a run that was recorded twice the epochs of both are in their order, and go for one.
    for (epoch, guess) in said.iter().filter(|(epoch, _)| epoch.number <= BELIEVED_AFTER) {
        let run = runs.entry(&epoch.run).or_insert((class_of(epoch), Belief::default()));
        run.1.guess(*guess);
    }
    runs.into_values().map(|(class, belief)| (class, belief.class().map(|(class, ..)| class))).collect()
}

/// Tells how many of these answers are right. Returns macro-F1.
fn judge(
    results: &mut Results,
    what: &str,
    answers: impl IntoIterator<Item = (Class, Option<Class>)>,
) -> f64 {
    let confusion: Confusion = answers.into_iter().collect();
    let f1 = confusion.macro_f1();
    let found = format!(
        "{f1:.3}; unknown {:.0} %, of the others {:.0} % right",
        confusion.unknown() * 100.0,
        confusion.precision() * 100.0
    );
    results.figure(&format!("{what}: macro-F1"), found, &format!("at least {F1_LEAST}"), f1 >= F1_LEAST);
    f1
}

/// Writes the model.
pub fn train(results: &mut Results) -> Result<()> {
    let epochs = epochs()?;
    let model = learn(&epochs)?;
    let path = folder().join("model.json");
    std::fs::write(&path, serde_json::to_string(&model)? + "\n")
        .with_context(|| format!("writing {}", path.display()))?;
    results.note("epochs learned from", epochs.len());
    results.note("model in", path.display());
    Ok(())
}

/// Tells how right it is.
pub fn evaluate(results: &mut Results) -> Result<()> {
    let epochs = epochs()?;
    let by_run = left_out(&epochs, |epoch| epoch.run.clone())?;
    let by_size = left_out(&epochs, |epoch| rank(&epochs, epoch))?;
    for (name, said) in [("unseen runs", &by_run), ("unseen sizes", &by_size)] {
        let first = said.iter().filter(|(epoch, _)| epoch.number == 1);
        let first = first.map(|(epoch, guess)| (class_of(epoch), guess.class));
        let f1 = judge(results, &format!("{name}, first whole epoch"), first);
        results.headline(format!("F1 of {name} {f1:.2}"));
        let all = said.iter().map(|(epoch, guess)| (class_of(epoch), guess.class));
        judge(results, &format!("{name}, all epochs"), all);
        judge(results, &format!("{name}, believed after {BELIEVED_AFTER} epochs"), believed(said));
    }
    let mut caught = Vec::new();
    for kind in Kind::ALL {
        let (epochs, runs) = unknown(&epochs, kind)?;
        results.note(
            &format!("unknown of {}, if no such class was learned", kind.name()),
            format!("{epochs:.2}; believed after {BELIEVED_AFTER} epochs {runs:.2}"),
        );
        caught.push((epochs, runs));
    }
    let mean = |of: fn(&(f64, f64)) -> f64| caught.iter().map(of).sum::<f64>() / caught.len() as f64;
    let target = format!("at least {UNKNOWN_LEAST}");
    let (mean, believed) = (mean(|(epochs, _)| *epochs), mean(|(_, runs)| *runs));
    results.figure(
        "unknown programs said to be unknown, the mean",
        format!("{mean:.2}; believed after {BELIEVED_AFTER} epochs {believed:.2}"),
        &target,
        mean >= UNKNOWN_LEAST,
    );
    results.headline(format!("{:.0} % of unknown ones caught", mean * 100.0));
    let picture = workspace_root().join("docs/classes.svg");
    let confusion: Confusion = by_run.iter().map(|(epoch, guess)| (class_of(epoch), guess.class)).collect();
    std::fs::write(&picture, confusion.svg()).with_context(|| format!("writing {}", picture.display()))?;
    results.note("confusion of unseen runs in", picture.display());
    Ok(())
}
