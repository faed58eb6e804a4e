//! Checkpoints: the state of a run between two steps, its file format, and the folder that keeps it safe.

pub mod format;
pub mod state;
pub mod store;
