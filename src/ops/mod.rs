//! The operations the model is written against: one folder each, with its parameters (`mod.rs`), its CPU form (`cpu.rs`),
//! its launches (`cuda.rs`), and what it is checked on and measured by (`check.rs`). All matrices are row-major; `T` is the
//! number of token rows.

pub mod adamw;
pub mod attention;
pub mod check;
pub mod decode_attention;
pub mod embedding;
pub mod linear;
pub mod logits;
pub mod loss;
pub mod reduce;
pub mod rmsnorm;
pub mod rope;
pub mod rows;
pub mod swiglu;

use crate::device::{Chosen, Device, Planner};
use crate::error::Result;

/// All operations.
pub const OPERATIONS: &[check::Operation] = &[
    adamw::check::OPERATION,
    attention::check::OPERATION,
    decode_attention::check::OPERATION,
    embedding::check::OPERATION,
    linear::check::OPERATION,
    logits::check::OPERATION,
    loss::check::OPERATION,
    reduce::check::OPERATION,
    rmsnorm::check::OPERATION,
    rope::check::OPERATION,
    rows::check::OPERATION,
    swiglu::check::OPERATION,
];

/// Allocates the planned memory on the chosen device; a GPU gets the kernels of all operations.
///
/// # Errors
/// As [`Chosen::device`].
pub fn device(chosen: Chosen, plan: &Planner, threads: Option<usize>) -> Result<Device> {
    chosen.device(
        plan,
        threads,
        #[cfg(feature = "cuda")]
        &kernels(),
    )
}

/// All kernels of a GPU.
#[cfg(feature = "cuda")]
#[must_use]
pub fn kernels() -> Vec<&'static dyn crate::device::cuda::AnyKernel> {
    OPERATIONS.iter().flat_map(|operation| operation.kernels.kernels).copied().collect()
}
