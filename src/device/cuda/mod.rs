//! The CUDA device.

pub mod device;
pub mod driver;
pub mod images;
pub mod kernel;
pub mod nvidia;
pub mod parameters;

pub use device::{Cuda, Recorded};
pub use driver::Driver;
#[cfg(feature = "internals")]
pub use driver::{Address, Launch};
pub use kernel::{AnyKernel, Kernel, Kernels};
pub use parameters::Parameters;
