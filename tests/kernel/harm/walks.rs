//! What the agent reads of a guest's page tables does not make the guest wait.
