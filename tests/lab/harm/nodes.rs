//! Pages that come up land on the node that they left.
