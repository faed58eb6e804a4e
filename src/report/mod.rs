//! What a run tells: the events it emits, and who writes them down.

pub mod event;
