//! Files that follow from a seed: what nginx serves, and what gcc compiles.
//!
//! In: a seed and how many. Out: each file's content. Equal seeds give equal files.

use crate::random::Random;
use std::fmt::Write;

/// Of a file that is served.
pub(super) const PAGE_KIB: usize = 64;
/// Of a C source, about.
pub(super) const SOURCE_KIB: usize = 16;

/// What nginx serves as file `number`.
pub(super) fn page(seed: u64, number: usize) -> Vec<u8> {
    let mut random = of_file(seed, number);
    (0..(PAGE_KIB << 10) / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// The C source `number`: functions with loops, branches and a table each, which call earlier ones; no header is
/// needed.
pub(super) fn source(seed: u64, number: usize) -> Vec<u8> {
    let mut random = of_file(seed, number);
    let mut text = format!("/* source {number} of seed {seed} */\n");
    for function in 0.. {
        if text.len() >= SOURCE_KIB << 10 {
            break;
        }
        let table: Vec<_> = (0..16).map(|_| random.below(1 << 16).to_string()).collect();
        let (limit, factor, shift) = (random.below(40) + 2, random.below(1000) | 1, random.below(13) + 1);
        let called =
            if function == 0 { "x".to_owned() } else { format!("f{}(x ^ i)", random.below(function)) };
        // Writing to a string never fails.
        let _ = write!(
            text,
            "static const unsigned t{function}[16] = {{{}}};\n\
             unsigned f{function}(unsigned x) {{\n\
             \tunsigned sum = {factor};\n\
             \tfor (unsigned i = 0; i < {limit}; i++) {{\n\
             \t\tif ((x >> (i & 31)) & 1) sum += t{function}[(sum ^ i) & 15] * {factor}u;\n\
             \t\telse sum ^= (x << {shift}) + i;\n\
             \t\tswitch (sum & 3) {{ case 0: x += i; break; case 1: x ^= sum; break; default: sum -= x; }}\n\
             \t}}\n\
             \tfor (unsigned i = 0; i < 2; i++) sum += {called};\n\
             \treturn sum;\n}}\n",
            table.join(", ")
        );
    }
    text.into_bytes()
}

fn of_file(seed: u64, number: usize) -> Random {
    let mut seeds = Random::new(seed);
    Random::new(seeds.next() ^ number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_follow_from_seed_and_number() {
        assert_eq!(page(1, 2).len(), PAGE_KIB << 10);
        let text = source(1, 2).len();
        assert!((SOURCE_KIB << 10..(SOURCE_KIB + 1) << 10).contains(&text), "{text}");
        for file in [page, source] {
            assert_eq!(file(1, 2), file(1, 2));
            assert_ne!(file(1, 2), file(1, 3));
            assert_ne!(file(1, 2), file(2, 2));
        }
    }
}
