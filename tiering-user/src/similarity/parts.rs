//! In which ways one VM is like another, seen from the one that would follow.
//!
//! In: two portraits. Out: [`Parts`] for each direction. Each part is a share, 0 to 1, or not known.

use std::collections::BTreeSet;

use super::portrait::Portrait;
use super::sketch::Sketch;

/// Why a follower may need what its leader touches. None: cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// Of the follower's content, the share that the leader has.
    pub content: Option<f64>,
    /// The same of content in the same place.
    pub placed: Option<f64>,
    /// Of the follower's files, the share that the leader has.
    pub files: Option<f64>,
    /// How far their profiles agree: the cosine of the angle between them, and 0 for more than a right one.
    pub behaviour: Option<f64>,
    /// Of what the follower touched lately, the share that the leader had touched by then.
    pub lagged: Option<f64>,
}

impl Parts {
    /// In the order of the fields.
    pub(super) fn each(&self) -> [Option<f64>; 5] {
        [self.content, self.placed, self.files, self.behaviour, self.lagged]
    }

    /// As the first leads the second, and as the second leads the first.
    pub(super) fn between(first: &Seen<'_>, second: &Seen<'_>) -> (Self, Self) {
        let (one, other) = (first.portrait, second.portrait);
        let [(content, content_back), (placed, placed_back)] =
            [(&one.content, &other.content), (&one.placed, &other.placed)].map(|(a, b)| shares(a, b));
        let behaviour = cosine(one.behaviour.as_deref(), other.behaviour.as_deref());
        let forth = Self {
            content,
            placed,
            files: common(&one.files, &other.files),
            behaviour,
            lagged: one.trail.lead(first.seen, &other.trail),
        };
        let back = Self {
            content: content_back,
            placed: placed_back,
            files: common(&other.files, &one.files),
            behaviour,
            lagged: other.trail.lead(second.seen, &one.trail),
        };
        (forth, back)
    }

    /// Of two VMs, one of which leads the other.
    pub fn of(leader: &Portrait, follower: &Portrait) -> Self {
        let (led, follows) = (leader.trail.seen(), follower.trail.seen());
        let leader = Seen { portrait: leader, seen: &led };
        Self::between(&leader, &Seen { portrait: follower, seen: &follows }).0
    }
}

/// A portrait and all that its VM touched: made once, as a VM is compared with many.
pub(super) struct Seen<'a> {
    pub portrait: &'a Portrait,
    pub seen: &'a Sketch,
}

/// Of the second, and of the first, the share that the other has.
fn shares(first: &Sketch, second: &Sketch) -> (Option<f64>, Option<f64>) {
    if first.is_empty() || second.is_empty() {
        return (None, None);
    }
    let meeting = first.meet(second);
    // A small set beside a large one may own no bin at all; then nothing can be told of it.
    (meeting.of_second(), meeting.of_first())
}

fn common(leader: &BTreeSet<u64>, follower: &BTreeSet<u64>) -> Option<f64> {
    if leader.is_empty() || follower.is_empty() {
        return None;
    }
    let common = follower.iter().filter(|file| leader.contains(file)).count();
    Some(common as f64 / follower.len() as f64)
}

fn cosine(first: Option<&[f32]>, second: Option<&[f32]>) -> Option<f64> {
    let (first, second) = (first?, second?);
    if first.len() != second.len() {
        return None;
    }
    let product =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let cosine = product(first, second) / (product(first, first) * product(second, second)).sqrt();
    cosine.is_finite().then(|| cosine.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_both_is_not_told() {
        let mut one = Portrait::default();
        one.hold(1, 7);
        one.files.insert(5);
        one.behaviour = Some(vec![1.0, 0.0]);
        one.trail.note(3);
        assert_eq!(Parts::of(&one, &Portrait::default()), Parts::default());
        let same = Parts::of(&one, &one);
        assert_eq!(same.each(), [Some(1.0); 5]);
    }

    #[test]
    fn files_are_shared_by_direction() {
        let (all, some) = (BTreeSet::from([1, 2, 3, 4]), BTreeSet::from([4]));
        assert_eq!((common(&all, &some), common(&some, &all)), (Some(1.0), Some(0.25)));
    }

    #[test]
    fn profiles_that_point_the_same_way_agree() {
        let agree = |a: &[f32], b: &[f32]| cosine(Some(a), Some(b));
        assert_eq!(agree(&[3.0, 0.0], &[1.0, 0.0]), Some(1.0));
        assert_eq!(agree(&[1.0, 0.0], &[0.0, 1.0]), Some(0.0));
        assert_eq!(agree(&[1.0, 0.0], &[-1.0, 0.0]), Some(0.0));
        assert_eq!(agree(&[1.0], &[1.0, 0.0]), None, "of another version");
        assert_eq!(agree(&[0.0], &[1.0]), None, "nothing was seen");
    }
}
