//! Values by number, of which most are not there.
//!
//! A radix tree of three levels, 64 wide: a look-up costs three loads, and what is not there costs nothing. What a
//! process announces (its address space, the length of its files) is chosen by others and may be a thousand times what
//! it holds; so tables grow with what was seen, not with what was announced.
//!
//! # Limits
//! The highest level grows up to the highest number: 8 bytes for each 4096.

const WIDTH: usize = 64;

type Leaf<T> = [Option<T>; WIDTH];
type Branch<T> = [Option<Box<Leaf<T>>>; WIDTH];

/// A map from numbers to values that keeps neighbours together.
#[derive(Clone, Debug)]
pub struct Sparse<T> {
    root: Vec<Option<Box<Branch<T>>>>,
    len: usize,
}

impl<T> Default for Sparse<T> {
    fn default() -> Self {
        Self { root: Vec::new(), len: 0 }
    }
}

/// Which entry of each level leads to `number`.
fn path(number: u32) -> [usize; 3] {
    let number = number as usize;
    [number / WIDTH / WIDTH, number / WIDTH % WIDTH, number % WIDTH]
}

fn number(path: [usize; 3]) -> u32 {
    // Every path comes from a number.
    path.iter().fold(0, |number, step| number * WIDTH as u32 + *step as u32)
}

impl<T> Sparse<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, number: u32) -> Option<&T> {
        let [root, branch, leaf] = path(number);
        self.root.get(root)?.as_deref()?[branch].as_deref()?[leaf].as_ref()
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let [root, branch, leaf] = path(number);
        self.root.get_mut(root)?.as_deref_mut()?[branch].as_deref_mut()?[leaf].as_mut()
    }

    /// The value of `number`, made by `new` where there is none.
    pub fn get_or_insert_with(&mut self, number: u32, new: impl FnOnce() -> T) -> &mut T {
        let [root, branch, leaf] = path(number);
        if self.root.len() <= root {
            self.root.resize_with(root + 1, || None);
        }
        let branches = self.root[root].get_or_insert_with(|| Box::new(std::array::from_fn(|_| None)));
        let leaves = branches[branch].get_or_insert_with(|| Box::new(std::array::from_fn(|_| None)));
        let value = &mut leaves[leaf];
        self.len += usize::from(value.is_none());
        value.get_or_insert_with(new)
    }

    pub fn remove(&mut self, number: u32) -> Option<T> {
        let [root, branch, leaf] = path(number);
        let branches = self.root.get_mut(root)?.as_deref_mut()?;
        let leaves = branches[branch].as_deref_mut()?;
        let removed = leaves[leaf].take()?;
        self.len -= 1;
        if leaves.iter().all(Option::is_none) {
            branches[branch] = None;
            if branches.iter().all(Option::is_none) {
                self.root[root] = None;
            }
        }
        Some(removed)
    }

    /// All values with their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.root
            .iter()
            .enumerate()
            .filter_map(|(root, branches)| Some((root, branches.as_deref()?)))
            .flat_map(|(root, branches)| {
                let leaves = branches.iter().enumerate();
                leaves.filter_map(|(branch, leaf)| Some((branch, leaf.as_deref()?))).flat_map(
                    move |(branch, leaf)| {
                        let values = leaf.iter().enumerate();
                        values.filter_map(move |(at, value)| {
                            Some((number([root, branch, at]), value.as_ref()?))
                        })
                    },
                )
            })
    }

    /// As [`Sparse::iter`], to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let branches = self.root.iter_mut().enumerate();
        branches.filter_map(|(root, branches)| Some((root, branches.as_deref_mut()?))).flat_map(
            |(root, branches)| {
                let leaves = branches.iter_mut().enumerate();
                leaves.filter_map(|(branch, leaf)| Some((branch, leaf.as_deref_mut()?))).flat_map(
                    move |(branch, leaf)| {
                        let values = leaf.iter_mut().enumerate();
                        values.filter_map(move |(at, value)| {
                            Some((number([root, branch, at]), value.as_mut()?))
                        })
                    },
                )
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_value_at_the_far_end_costs_little_and_nothing_when_it_is_gone() {
        let mut sparse = Sparse::default();
        let last = (1 << 23) - 1;
        *sparse.get_or_insert_with(last, || 0) = 7;
        assert_eq!((sparse.get(last), sparse.get(last - 1), sparse.len()), (Some(&7), None, 1));
        assert!(sparse.root.len() <= 2048 && sparse.root.iter().flatten().count() == 1);
        assert_eq!(sparse.remove(last), Some(7));
        assert!(sparse.root.iter().all(Option::is_none));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(steps in prop::collection::vec((0u32..20_000, any::<bool>()), 0..200)) {
            let (mut sparse, mut map) = (Sparse::default(), BTreeMap::new());
            for (number, insert) in steps {
                if insert {
                    let value = map.len();
                    prop_assert_eq!(*sparse.get_or_insert_with(number, || value), *map.entry(number).or_insert(value));
                } else {
                    prop_assert_eq!(sparse.remove(number), map.remove(&number));
                }
            }
            prop_assert_eq!(sparse.len(), map.len());
            prop_assert!(sparse.iter().eq(map.iter().map(|(number, value)| (*number, value))));
            prop_assert!(sparse.iter_mut().map(|(number, value)| (number, *value)).eq(map));
        }
    }
}
