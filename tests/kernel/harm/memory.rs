//! What others can make the agent keep is bounded, and so is the agent.
