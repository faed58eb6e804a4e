//! The Qwen families: shapes, names, weights, adapters, forward and backward.

pub mod adapter;
pub mod decode;
pub mod lora;
pub mod merge;
pub mod names;
pub mod network;
pub mod spec;
pub mod weights;

pub use adapter::Adapter;
pub use decode::Decoder;
pub use lora::{AdapterSpec, Layout};
pub use network::Network;
pub use spec::Spec;
pub use weights::Weights;
