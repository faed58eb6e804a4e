//! The kernels without a GPU: the emulated device itself against the PTX tables, its reports of mistakes, the parameter
//! structs of both languages, and each kernel against f64 sums of its own stored inputs, under every schedule of lanes
//! and asynchronous copies.

mod bindings;
mod copies;
pub mod driver;
pub mod library;
mod products;
mod selftest;
mod shim;

use library::{Library, MODES};
use qwentune::device::cuda::{Launch, Parameters};

/// Runs a kernel once under each schedule, always on what `reset` leaves in memory; the results of `read` must agree.
pub fn run_all<T: PartialEq>(
    kernel: &str,
    shape: Launch,
    params: &impl Parameters,
    mut reset: impl FnMut(),
    read: impl Fn() -> T,
) -> T {
    let mut first = None;
    for mode in MODES {
        reset();
        Library::get()
            .launch(kernel, shape, params.bytes(), *mode)
            .unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        let got = read();
        match &first {
            None => first = Some(got),
            Some(first) => assert!(*first == got, "{kernel}: {mode:?} gives other bits than {:?}", MODES[0]),
        }
    }
    first.expect("at least one schedule")
}

/// ‖got − want‖ / ‖want‖.
pub fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w));
    difference / norm(&mut want.iter().copied()).max(1e-300)
}

/// Values as bf16 keeps them.
pub fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect()
}
