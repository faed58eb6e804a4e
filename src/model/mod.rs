//! The Qwen families: shapes, names, weights, adapters, forward and backward.

pub mod names;
pub mod spec;
