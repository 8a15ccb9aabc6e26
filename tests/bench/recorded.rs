//! Two guests' work as a file: what each touched, in order, and what its pages hold.
//!
//! In: tapes. Out: `boots.json` in the folder `recordings` of the target folder. Both orders are runs of pages, and
//! contents are runs of numbers: equal numbers are equal contents, 0 is zeroes. A run has its length, its first number,
//! and by how much that grows from page to page: 0 or 1. What was in the pages cannot be told from it.

use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::HashMap;
use tiering_testkit::paths;

use crate::simple::Tape;

#[derive(Serialize)]
struct Recorded {
    leader: Work,
    follower: Work,
}

#[derive(Serialize)]
struct Work {
    /// First page and count.
    touched: Vec<(u32, u32)>,
    /// Count, first content, and by how much that grows.
    held: Vec<(u32, u64, u64)>,
}

pub fn keep(leader: &Tape, follower: &Tape) -> Result<()> {
    let mut numbers = HashMap::from([(0, 0)]);
    let recorded = Recorded { leader: work(leader, &mut numbers), follower: work(follower, &mut numbers) };
    let folder = paths::target_dir().join("recordings");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("boots.json");
    let text = serde_json::to_string(&recorded)?;
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn work(tape: &Tape, numbers: &mut HashMap<u64, u64>) -> Work {
    let mut touched: Vec<(u32, u32)> = Vec::new();
    for (_, page) in &tape.touches {
        match touched.last_mut() {
            Some((first, count)) if *first + *count == *page => *count += 1,
            _ => touched.push((*page, 1)),
        }
    }
    let mut held: Vec<(u32, u64, u64)> = Vec::new();
    for content in &tape.contents {
        let next = numbers.len() as u64;
        let number = *numbers.entry(*content).or_insert(next);
        match held.last_mut() {
            Some((count, first, step)) if number == *first + u64::from(*count) * *step => *count += 1,
            Some((count @ 1, first, step)) if number == *first => (*count, *step) = (2, 0),
            _ => held.push((1, number, 1)),
        }
    }
    Work { touched, held }
}
