//! The CUDA device.

pub mod driver;
pub mod images;
