//! The Qwen families: shapes, names, weights, adapters, forward and backward.

pub mod adapter;
mod arch;
mod block;
mod buffers;
mod builder;
mod config;
pub mod decode;
pub mod fold;
mod head;
pub mod lora;
pub mod merge;
pub mod names;
pub mod network;
pub mod patterns;
pub mod rotary;
pub mod spec;
mod stack;
mod state;
pub mod weights;

pub use adapter::Adapter;
pub use config::MAX_BYTES as MAX_CONFIG_BYTES;
pub use decode::Decoder;
pub use lora::{AdapterSpec, Layout};
pub use network::Network;
pub use spec::Spec;
#[cfg(feature = "internals")]
pub use state::State;
pub use weights::Weights;
