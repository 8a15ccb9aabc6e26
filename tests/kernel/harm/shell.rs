//! What hangs, runs out or ends in the middle costs one machine at most.
