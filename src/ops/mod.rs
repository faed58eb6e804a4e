//! The operations the model is written against: one folder each, with its parameters, its CPU form, its
//! case table, and (with a GPU) its launch. All matrices are row-major; `T` is the number of token rows.

pub mod adamw;
pub mod attention;
pub mod decode_attention;
pub mod embedding;
pub mod linear;
pub mod logits;
pub mod loss;
pub mod philox;
pub mod reduce;
pub mod rmsnorm;
pub mod rope;
pub mod rows;
pub mod swiglu;

/// All kernels of a GPU.
#[cfg(feature = "cuda")]
pub const KERNELS: &[crate::device::cuda::Family] = &[
    linear::cuda::PRODUCTS,
    linear::cuda::ADAPTERS,
    attention::cuda::FORWARD,
    attention::cuda::BACKWARD,
    decode_attention::cuda::FAMILY,
    rmsnorm::cuda::FAMILY,
    rope::cuda::FAMILY,
    swiglu::cuda::FAMILY,
    rows::cuda::FAMILY,
    loss::cuda::FAMILY,
    adamw::cuda::FAMILY,
    reduce::cuda::FAMILY,
];
