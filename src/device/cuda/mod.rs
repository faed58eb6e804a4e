//! The CUDA device.

pub mod driver;
pub mod images;
pub mod parameters;

pub use parameters::{Parameters, Shape};
