//! Learns the classes of VMs from profiles of programs, and says how right that is of programs, sizes and runs
//! that it did not learn from.
//!
//! In: `tiering-user/classes/epochs.csv`. Out: with `train` `model.json` beside it; with `evaluate` a table and
//! `docs/classes.svg`. Regularized discriminant analysis: of each program the mean of its vectors, and their
//! covariance, which is drawn towards that of all programs, and that towards the same in all directions: few runs say
//! little of how a program's vectors scatter.

use crate::confusion::Confusion;
use anyhow::{Context, Result, bail, ensure};
use nalgebra::{Cholesky, DMatrix, DVector};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tiering_testkit::paths::workspace_root;
use tiering_testkit::program::Kind;
use tiering_testkit::results::Results;
use tiering_user::class::{self, Belief, Guess, Model, Reach, Scatter};
use tiering_user::config::Class;
use tiering_user::profile::{COMPONENTS, Vector};

/// How much of a program's covariance is that of all programs.
const POOLED: f64 = 0.5;
/// Added to each covariance, as a share of the mean variance of a component: what hardly varies in the runs that there
/// are may do so in others.
const SHRINK: f64 = 0.1;
/// Components of which all vectors are closer together count as if they were not.
const LEAST_DEVIATION: f64 = 0.1;
/// Of the vectors of runs that it was not learned from, and that are likeliest of a kind, so many percent are within
/// that kind's reach, of the first whole epochs and of later ones; and in how many parts the runs are left out for
/// that.
const REACHED_AT_FIRST: usize = 100;
const REACHED_LATER: usize = 92;
const FOLDS: usize = 10;
/// From so many on the agent acts on guesses, where it is to.
const BELIEVED_AFTER: usize = 3;
const F1_LEAST: f64 = 0.95;
const UNKNOWN_LEAST: f64 = 0.9;

/// What a program is.
fn class(kind: Kind) -> Class {
    match kind {
        Kind::Postgres => Class::Database,
        Kind::Nginx => Class::Web,
        Kind::Redis | Kind::Memcached => Class::Cache,
        Kind::Compile => Class::Build,
        Kind::Sqlite | Kind::Files => Class::Batch,
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
    // Of each run the second of its last epoch, and how many there were before. A run that was recorded twice begins
    // twice.
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
    let mut model = fit(epochs)?;
    let looks = looks(epochs)?;
    for (kind, program) in model.kinds.iter_mut().zip(programs(epochs)) {
        let of_it = looks.iter().filter(|look| look.likeliest == program);
        kind.scatter.reach = reach(of_it).with_context(|| format!("of {}", program.name()))?;
    }
    model.scatter.reach = reach(looks.iter())?;
    Ok(model)
}

/// Of what there are epochs.
fn programs(epochs: &[Epoch]) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| epochs.iter().any(|epoch| epoch.kind == *kind))
}

/// A model without an end to its reach.
fn fit(epochs: &[Epoch]) -> Result<Model> {
    let width = COMPONENTS.len();
    let vectors: Vec<DVector<f64>> =
        epochs.iter().map(|epoch| DVector::from_iterator(width, epoch.vector.map(f64::from))).collect();
    let mean_of = |vectors: &[&DVector<f64>]| {
        vectors.iter().fold(DVector::zeros(width), |sum, vector| sum + *vector) / vectors.len() as f64
    };
    let mean = mean_of(&vectors.iter().collect::<Vec<_>>());
    let squares = vectors.iter().fold(DVector::zeros(width), |sum: DVector<f64>, vector| {
        sum + (vector - &mean).map(|value| value * value)
    });
    // One component counts as much as another, but for those that hardly vary here and may elsewhere.
    let scale = squares.map(|sum| 1.0 / (sum / vectors.len() as f64).sqrt().max(LEAST_DEVIATION));

    let mut scattered = Vec::new();
    for kind in programs(epochs) {
        let own = |(epoch, vector): (&Epoch, _)| (epoch.kind == kind).then_some(vector);
        let members: Vec<&DVector<f64>> = epochs.iter().zip(&vectors).filter_map(own).collect();
        let centre = mean_of(&members);
        let covariance = members.iter().fold(DMatrix::zeros(width, width), |sum: DMatrix<f64>, member| {
            let apart = (*member - &centre).component_mul(&scale);
            sum + &apart * apart.transpose()
        });
        scattered.push((kind, centre, covariance / members.len() as f64));
    }
    ensure!(!scattered.is_empty(), "there is nothing to learn from");
    let pooled =
        scattered.iter().fold(DMatrix::zeros(width, width), |sum: DMatrix<f64>, (_, _, own)| sum + own);
    let pooled = pooled / scattered.len() as f64;
    let everywhere = DMatrix::identity(width, width) * (SHRINK * pooled.trace() / width as f64);
    let scatter = |covariance: DMatrix<f64>| scatter(covariance + &everywhere, &scale);
    let kinds = scattered.into_iter().map(|(kind, centre, own)| {
        Ok(class::Kind {
            class: class(kind),
            mean: centre.iter().map(|mean| *mean as f32).collect(),
            scatter: scatter(own * (1.0 - POOLED) + &pooled * POOLED)?,
        })
    });
    Ok(Model::new(kinds.collect::<Result<_>>()?, scatter(pooled.clone())?))
}

/// What takes vectors to where they scatter alike, by their covariance when each component is multiplied by its
/// `scale`.
fn scatter(covariance: DMatrix<f64>, scale: &DVector<f64>) -> Result<Scatter> {
    let lower = Cholesky::new(covariance).context("the vectors do not vary")?.l();
    let log_volume =
        2.0 * lower.diagonal().iter().zip(scale).map(|(length, scale)| (length / scale).ln()).sum::<f64>();
    let whiten = lower.try_inverse().context("the vectors do not vary")?;
    let row = |row: usize| (0..=row).map(|column| (whiten[(row, column)] * scale[column]) as f32).collect();
    Ok(Scatter {
        rows: (0..whiten.nrows()).map(row).collect(),
        log_volume: log_volume as f32,
        reach: Reach { at_first: f32::INFINITY, later: f32::INFINITY },
    })
}

/// What a model that had not learned from its run says of an epoch, if it is right.
struct Look {
    likeliest: Kind,
    distance: f32,
    /// The epoch's.
    number: usize,
}

fn looks(epochs: &[Epoch]) -> Result<Vec<Look>> {
    let runs: BTreeSet<&str> = epochs.iter().map(|epoch| epoch.run.as_str()).collect();
    let fold: BTreeMap<&str, usize> = runs.into_iter().zip((0..FOLDS).cycle()).collect();
    let mut looks = Vec::new();
    for left in 0..FOLDS {
        let (own, others): (Vec<_>, Vec<_>) =
            epochs.iter().cloned().partition(|epoch| fold[epoch.run.as_str()] == left);
        let (model, programs) = (fit(&others)?, programs(&others).collect::<Vec<_>>());
        let look = |epoch: &Epoch| {
            let nearest = model.nearest(&epoch.vector).filter(|nearest| nearest.class == class_of(epoch))?;
            Some(Look {
                likeliest: programs[nearest.kind?],
                distance: nearest.distance,
                number: epoch.number,
            })
        };
        looks.extend(own.iter().filter_map(look));
    }
    Ok(looks)
}

/// What most of these are within.
fn reach<'a>(looks: impl Iterator<Item = &'a Look>) -> Result<Reach> {
    let (first, later): (Vec<_>, Vec<_>) = looks.partition(|look| look.number == 1);
    let most = |looks: &[&Look], percent: usize| {
        let mut distances: Vec<f32> = looks.iter().map(|look| look.distance).collect();
        distances.sort_by(f32::total_cmp);
        let within = (distances.len() * percent).div_ceil(100);
        distances.get(within.wrapping_sub(1)).copied().context("no epoch of a run is known that was left out")
    };
    Ok(Reach { at_first: most(&first, REACHED_AT_FIRST)?, later: most(&later, REACHED_LATER)? })
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
        said.extend(own.map(|epoch| (epoch, model.classify(&epoch.vector, epoch.number as u64))));
    }
    Ok(said)
}

/// How small a size is among those of its program: 0 is the smallest.
fn rank(epochs: &[Epoch], of: &Epoch) -> usize {
    let smaller = epochs.iter().filter(|epoch| epoch.kind == of.kind && epoch.mib < of.mib);
    smaller.map(|epoch| epoch.mib).collect::<BTreeSet<_>>().len()
}

/// Of a program of which nothing was learned, nor of others of its class, the shares that are said to be unknown: of
/// first whole epochs, of all, and of runs after some.
fn unknown(epochs: &[Epoch], kind: Kind) -> Result<[f64; 3]> {
    let others: Vec<_> = epochs.iter().filter(|epoch| class_of(epoch) != class(kind)).cloned().collect();
    let model = learn(&others)?;
    let own = epochs.iter().filter(|epoch| epoch.kind == kind);
    let said: Vec<_> = own.map(|epoch| (epoch, model.classify(&epoch.vector, epoch.number as u64))).collect();
    let share = |said: Vec<Option<Class>>| {
        said.iter().filter(|class| class.is_none()).count() as f64 / said.len() as f64
    };
    let first = said.iter().filter(|(epoch, _)| epoch.number == 1);
    Ok([
        share(first.map(|(_, guess)| guess.class).collect()),
        share(said.iter().map(|(_, guess)| guess.class).collect()),
        share(believed(&said).iter().map(|(_, class)| *class).collect()),
    ])
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
    let believed = format!("believed after {BELIEVED_AFTER} epochs");
    let of = ["first whole epoch", "all epochs", believed.as_str()];
    let mut caught = Vec::new();
    for kind in programs(&epochs) {
        let shares = unknown(&epochs, kind)?;
        let said: Vec<_> = of.iter().zip(shares).map(|(of, share)| format!("{of} {share:.2}")).collect();
        results.note(&format!("unknown of {}, if no such class was learned", kind.name()), said.join(", "));
        caught.push(shares);
    }
    let mean = |number: usize| {
        caught.iter().map(|shares: &[f64; 3]| shares[number]).sum::<f64>() / caught.len() as f64
    };
    let means = [0, 1, 2].map(mean);
    for (of, mean) in of.iter().zip(means) {
        results.figure(
            &format!("unknown programs said to be unknown, {of}"),
            format!("{mean:.2}"),
            &format!("at least {UNKNOWN_LEAST}"),
            mean >= UNKNOWN_LEAST,
        );
    }
    results.headline(format!("{:.0} % of unknown ones caught", means[2] * 100.0));
    let picture = workspace_root().join("docs/classes.svg");
    let confusion: Confusion = by_run.iter().map(|(epoch, guess)| (class_of(epoch), guess.class)).collect();
    std::fs::write(&picture, confusion.svg()).with_context(|| format!("writing {}", picture.display()))?;
    results.note("confusion of unseen runs in", picture.display());
    Ok(())
}
