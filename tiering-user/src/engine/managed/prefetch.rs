//! What prediction keeps of one VM. Data only: `predicting` writes down what it touched and proposes, `staging` stages.

use std::collections::HashSet;

use super::waiting::{Urgency, Waiting};
use crate::predict::{Ahead, Marks, Stages, Tape, Votes};
use crate::tiermap::PageIndex;

#[derive(Debug)]
pub struct Prefetch {
    pub tape: Tape,
    pub marks: Marks,
    /// What goes to swap goes in the order of the tape.
    pub in_tape_order: bool,
    /// What it touched before it was started anew, if that is known.
    pub earlier: Option<Earlier>,
    /// How far it has followed its own tape, that of its earlier self, and those of others.
    pub ahead: Ahead,
    pub stages: Stages,
    /// What is predicted by those that are not sure enough alone.
    pub votes: Votes,
    /// Wait for the stager, which is at a stage of this VM.
    pub to_stage: Waiting,
    /// The stager is at a step of this urgency.
    pub staging: Option<Urgency>,
    /// Pages whose stage is being dropped: they are not staged anew before that is done.
    pub dropping: HashSet<PageIndex>,
}

impl Prefetch {
    /// Of a VM with so many pages.
    pub fn new(pages: u32) -> Self {
        Self {
            tape: Tape::new(pages),
            marks: Marks::default(),
            in_tape_order: false,
            earlier: None,
            ahead: Ahead::default(),
            stages: Stages::default(),
            votes: Votes::default(),
            to_stage: Waiting::default(),
            staging: None,
            dropping: HashSet::new(),
        }
    }
}

/// What the VM touched before it was started anew.
#[derive(Debug)]
pub struct Earlier {
    pub tape: Tape,
    /// The pages on the tape are those of the same addresses now.
    pub same_shape: bool,
}
