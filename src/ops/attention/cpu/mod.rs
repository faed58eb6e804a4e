//! Attention on the CPU.

mod backward;
mod blocks;
mod forward;

pub(super) use backward::run as backward;
pub(super) use forward::run as forward;

/// Query rows of a task; a multiple of the lanes.
const QUERIES: usize = 64;

/// Key rows of a task; fewer, since a task does all query heads of its group.
const KEYS: usize = 32;

/// Rows of the other side that are taken at a time. Part of the order of the sums: it never changes.
const STEP: usize = 48;
