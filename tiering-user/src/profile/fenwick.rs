//! Counts by number, and their sums over a range, both in logarithmic time (Fenwick 1994).

use std::ops::Range;

#[derive(Debug)]
pub struct Fenwick {
    tree: Vec<i32>,
}

impl Fenwick {
    /// For the numbers from 0 to `len` - 1.
    pub fn new(len: usize) -> Self {
        Self { tree: vec![0; len + 1] }
    }

    /// Adds to the count of one number. Panics where that is beyond the end.
    pub fn add(&mut self, number: usize, count: i32) {
        let mut at = number + 1;
        while at < self.tree.len() {
            self.tree[at] += count;
            at += at & at.wrapping_neg();
        }
    }

    /// Of counts that are never below zero.
    pub fn sum(&self, numbers: Range<usize>) -> u32 {
        (self.below(numbers.end) - self.below(numbers.start)).cast_unsigned()
    }

    fn below(&self, number: usize) -> i32 {
        let mut at = number;
        let mut sum = 0;
        while at > 0 {
            sum += self.tree[at];
            at &= at - 1;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::Fenwick;

    #[test]
    fn sums_are_those_of_the_counts() {
        let mut counts = [0u32; 100];
        let mut fenwick = Fenwick::new(counts.len());
        for step in 0..500usize {
            let number = step * step * 37 % 100;
            let is_there = counts[number] > 0 && step % 3 == 0;
            counts[number] = if is_there { counts[number] - 1 } else { counts[number] + 1 };
            fenwick.add(number, if is_there { -1 } else { 1 });
        }
        for (start, end) in [(0, 100), (0, 0), (3, 4), (17, 80), (99, 100)] {
            assert_eq!(fenwick.sum(start..end), counts[start..end].iter().sum::<u32>(), "{start}..{end}");
        }
    }
}
