//! Checkpoints: the state of a run between two steps, its file format, and the folder that keeps it safe.
//!
//! [`state`] is what is kept, [`format`](mod@format) (with [`encode`] and [`decode`]) its bytes, [`storage`] a
//! folder and its files, [`shelf`] the rules by which checkpoints are put there, kept and found again,
//! [`store`] a run's folder with its lock and writer thread, [`inspect`] what can be asked without the lock.

mod buffer;
pub mod decode;
pub mod encode;
pub mod format;
pub mod inspect;
mod next_loss;
mod save;
pub mod shelf;
pub mod state;
pub mod storage;
pub mod store;
