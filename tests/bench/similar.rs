//! How fast, and how surely, machines of one tenant that are alike find each other.
//!
//! Simulated machines in families of ten, no guests. Each family has a stream of names; a member has the first part of
//! it, then names of its own, so that within a family the Jaccard index goes from about 0.1 to 0.95; families hold
//! 2,000 to 16,000 names a machine. All machines have some names and one file in common. A third hold their pages one
//! page further on.
//!
//! Recall is measured with the contents alone, so that places, trails and files cannot help; exact is the
//! intersection of the sorted sets. Between families there is next to nothing in common by construction.

use anyhow::{Context, Result};
use std::hint::black_box;
use std::time::{Duration, Instant};
use tiering_testkit::random::Random;
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_user::similarity::{Portrait, Similarity, Sketch};
use tiering_user::track::VmId;

const MACHINES: usize = 1000;
const FAMILY: usize = 10;
/// Names that all machines have.
const COMMON: usize = 50;
const NAMES: std::ops::RangeInclusive<usize> = 2000..=16_000;
/// What each member of a family has of its stream, %.
const TYPICAL: [usize; FAMILY] = [20, 35, 50, 65, 75, 85, 90, 94, 97, 99];
const INSERTS: u64 = 4_000_000;

struct Machine {
    /// Sorted.
    names: Vec<u64>,
    portrait: Portrait,
}

/// The members of one family, the least typical first.
fn family(number: usize, random: &mut Random) -> Vec<Machine> {
    let size = NAMES.start() + random.below(NAMES.end() - NAMES.start());
    let stream: Vec<u64> = (0..size).map(|_| random.next()).collect();
    let member = |member: usize, random: &mut Random| {
        let typical = size * TYPICAL[member] / 100;
        let own = (size - typical) * (50 + random.below(100)) / 100;
        let mut names: Vec<u64> = (0..COMMON as u64).collect();
        names.extend(&stream[..typical]);
        names.extend((0..own).map(|_| random.next()));
        let mut portrait = Portrait::default();
        for (page, name) in (u64::from(member % 3 == 2)..).zip(&names) {
            portrait.hold(page, *name);
        }
        names.iter().step_by(4).for_each(|name| portrait.trail.note(*name));
        portrait.trail.turn();
        names.iter().skip(2).step_by(4).for_each(|name| portrait.trail.note(*name));
        portrait.files.extend([0, 1 + number as u64]);
        portrait.behaviour = Some((0..16).map(|_| random.below(100) as f32 / 100.0).collect());
        names.sort_unstable();
        Machine { names, portrait }
    };
    (0..FAMILY).map(|at| member(at, random)).collect()
}

fn families(machines: usize, seed: u64) -> Vec<Machine> {
    let mut random = Random::new(seed);
    (0..machines / FAMILY).flat_map(|number| family(number, &mut random)).collect()
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let repeats = if quick { 3 } else { 15 };
    let machines = families(2 * MACHINES, 1);
    let insert_ns = inserts(repeats)?;
    results.note("a name into a sketch, ns", insert_ns);

    let [mut all, mut growth, mut some, mut clones] = [const { Vec::new() }; 4];
    let portraits: Vec<&Portrait> = machines.iter().map(|machine| &machine.portrait).collect();
    // Each twentieth becomes another machine altogether.
    let others: Vec<Machine> = families(MACHINES / 20, 2);
    for _ in 0..repeats {
        let (once, mut similarity) = fresh(&portraits[..MACHINES]);
        let (twice, _) = fresh(&portraits);
        all.push(ms(once));
        growth.push(twice.as_secs_f64() / once.as_secs_f64());
        let began = Instant::now();
        for (at, other) in others.iter().enumerate() {
            similarity.update(vm(20 * at), &other.portrait);
        }
        similarity.refresh();
        some.push(ms(began.elapsed()));
        clones.push(ms(fresh(&vec![portraits[0]; MACHINES]).0));
    }
    let of = |values: &[f64]| Repeats::of(values).context("no repeats");
    let (all, growth, some) = (of(&all)?, of(&growth)?, of(&some)?);
    results.figure(&format!("{MACHINES} machines, all new, ms"), all, "50", all.median <= 50.0);
    results.note(&format!("{MACHINES} machines, 5 % changed, ms"), some);
    results.note(&format!("{MACHINES} clones of one, all new, ms"), of(&clones)?);
    let growth_text = format!("{growth:.2}");
    results.figure("twice as many machines: times as long", growth_text, "2.3", growth.median <= 2.3);

    let mut found = Found::default();
    (0..repeats as u64).for_each(|seed| found.add(&families(MACHINES, seed)));
    let recall = found.alike_found as f64 / found.alike as f64;
    let text = format!("{recall:.4} ({} of {})", found.alike_found, found.alike);
    results.figure("recall of pairs with a Jaccard index of at least 0.5", text, "0.99", recall >= 0.99);
    let compared = found.compared as f64 / found.pairs as f64 * 100.0;
    results.note("pairs compared, of all, %", format!("{compared:.2}"));
    let (exact, error) = (Repeats::of(&found.exact).context("no pairs")?, mean(&found.errors));
    results.note("Jaccard index within families", format!("{exact:.2}"));
    results.note("Jaccard index: mean absolute error", format!("{error:.4}"));
    results.headline(format!("{MACHINES} machines in {:.0} ms, recall {recall:.3}", all.median));
    Ok(())
}

fn vm(at: usize) -> VmId {
    VmId(u32::try_from(at).expect("there are few machines"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How long it takes until an engine that knew nothing knows all of these, being given their portraits.
fn fresh(portraits: &[&Portrait]) -> (Duration, Similarity) {
    let began = Instant::now();
    let mut similarity = Similarity::default();
    for (at, portrait) in portraits.iter().enumerate() {
        similarity.update(vm(at), portrait);
    }
    similarity.refresh();
    (began.elapsed(), similarity)
}

fn inserts(repeats: usize) -> Result<Repeats> {
    let each = (0..repeats).map(|_| {
        let mut sketch = Sketch::default();
        let began = Instant::now();
        (0..INSERTS).for_each(|name| sketch.insert(black_box(name)));
        black_box(&sketch);
        began.elapsed().as_nanos() as f64 / INSERTS as f64
    });
    Repeats::of(&each.collect::<Vec<_>>()).context("no repeats")
}

/// What is found by the contents alone, against exact sets, over some populations.
#[derive(Default)]
struct Found {
    /// Pairs with an index of at least a half.
    alike: usize,
    alike_found: usize,
    compared: usize,
    pairs: usize,
    /// Within families.
    exact: Vec<f64>,
    errors: Vec<f64>,
}

impl Found {
    fn add(&mut self, machines: &[Machine]) {
        let mut similarity = Similarity::default();
        for (at, machine) in machines.iter().enumerate() {
            let content = machine.portrait.content.clone();
            similarity.update(vm(at), &Portrait { content, ..Portrait::default() });
        }
        self.compared += similarity.refresh().pairs;
        self.pairs += machines.len() * (machines.len() - 1) / 2;
        for (number, family) in machines.chunks(FAMILY).enumerate() {
            for (first, one) in family.iter().enumerate() {
                for (second, other) in family.iter().enumerate().skip(first + 1) {
                    let exact = jaccard(&one.names, &other.names);
                    let estimate = one.portrait.content.jaccard(&other.portrait.content);
                    self.exact.push(exact);
                    self.errors.push((estimate - exact).abs());
                    if exact >= 0.5 {
                        let [first, second] = [first, second].map(|member| vm(number * FAMILY + member));
                        self.alike += 1;
                        self.alike_found += usize::from(similarity.score(first, second).is_some());
                    }
                }
            }
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of sorted sets.
fn jaccard(one: &[u64], other: &[u64]) -> f64 {
    let both = one.iter().filter(|name| other.binary_search(name).is_ok()).count();
    both as f64 / (one.len() + other.len() - both) as f64
}
