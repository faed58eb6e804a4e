//! From files to micro-batches. Pure and deterministic; no device.

#![allow(dead_code)]

pub mod batch;
mod cache;
pub mod dataset;
mod json;
pub mod plan;
mod prepare;
mod reader;
#[path = "no_text.rs"]
mod render;
mod rows;
mod store;
