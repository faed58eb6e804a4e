//! The Qwen families: shapes, names, weights, adapters, forward and backward.

pub mod adapter;
mod buffers;
pub mod decode;
pub mod fold;
pub mod lora;
pub mod merge;
pub mod names;
pub mod network;
pub mod patterns;
pub mod spec;
pub mod weights;

pub use adapter::Adapter;
pub use buffers::State;
pub use decode::Decoder;
pub use lora::{AdapterSpec, Layout};
pub use network::Network;
pub use spec::Spec;
pub use weights::Weights;
