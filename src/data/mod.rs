//! From files to micro-batches. Pure and deterministic; no device.

pub mod batch;
pub mod dataset;
pub mod plan;
