//! The CUDA device.

pub mod images;
