//! What the operation is checked on.

/// Lengths of the flat buffers of a reduction.
pub const CASES: &[usize] = &[1, 15, 16, 1000, 16 * 1024, 100_003];
