//! What all ways to see what happens to the VMs' memory have in common. Each is tried by itself, and any of them
//! may be missing but page faults, without which nothing is loaded.

/// One way to see something.
pub trait Source {
    /// As the status and `doctor` name it.
    fn name(&self) -> &'static str;

    fn delivery(&self) -> Delivery;

    /// What is lost where it does not deliver.
    fn lost_without(&self) -> &'static str;
}

/// Whether a source delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// How it is attached.
    Active(String),
    /// Only some of it, and why not the rest.
    Partly(String),
    /// There is nothing for it to tell of; why.
    Idle(String),
    /// Why not.
    Unavailable(String),
}
