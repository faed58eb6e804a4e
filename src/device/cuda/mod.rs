//! The CUDA device.

pub mod device;
pub mod driver;
pub mod images;
pub mod nvidia;
pub mod parameters;

pub use device::{Cuda, Family, Recorded};
pub use driver::{Address, Driver, Launch};
pub use parameters::Parameters;
