//! What only a whole virtual host shows: the agent does not hurt it, nor the machines beside it.

mod brakes;
mod nodes;
