//! What a run tells: the events it emits, and who writes them down.

mod chart;
pub mod console;
pub mod event;
pub mod html;
pub mod jsonl;
pub mod line;
pub mod tensorboard;
