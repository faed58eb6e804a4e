//! The kernels without a GPU: the emulated device itself against the PTX tables, its reports of mistakes, what launch code
//! and kernels must agree on, and each operation through the product's own launches against f64 sums of its own stored
//! inputs, under every schedule of lanes and asynchronous copies.

mod bindings;
mod copies;
pub mod driver;
mod instructions;
pub mod library;
mod limits;
mod selftest;
mod shim;
mod view;
