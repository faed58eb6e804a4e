//! From files to micro-batches. Pure and deterministic; no device.

pub mod batch;
mod cache;
mod columns;
pub mod dataset;
pub mod extraction;
mod json;
mod keys;
pub mod memory;
pub mod plan;
pub mod predictions;
mod prepare;
#[cfg(feature = "text")]
pub mod preview;
#[cfg(feature = "text")]
pub mod prompts;
mod reader;
#[cfg_attr(not(feature = "text"), path = "no_text.rs")]
mod render;
mod rows;
mod store;
mod tables;
#[cfg(feature = "text")]
mod template;
#[cfg(feature = "text")]
pub mod tokenizer;
#[cfg(feature = "text")]
mod vocabulary;

#[cfg(feature = "internals")]
pub use reader::Place;
