//! From files to micro-batches. Pure and deterministic; no device.

#![allow(dead_code)]

pub mod batch;
pub mod dataset;
pub mod plan;
mod prepare;
mod store;
