//! The product's own `selftest` on the emulated device: every operation through the real launch code, under every
//! schedule of lanes and asynchronous copies; and whole training runs.

use super::driver::Emulated;
use crate::common::scratch;
use qwentune::config::DeviceChoice;
use qwentune::device::cuda::Driver;
use qwentune::error::Result;
use qwentune::selftest::{self, Row, Settings};
use qwentune::train::Devices;

fn open<const MODE: usize>(_: u32) -> Result<Box<dyn Driver>> {
    Ok(Box::new(Emulated::new(MODE)))
}

/// GPUs that are emulated, with lanes in one of the orders of `library::MODES`.
pub fn devices<const MODE: usize>() -> Devices {
    Devices { probe: |_| Ok(()), open: open::<MODE> }
}

fn settings(devices: Devices) -> Settings {
    Settings { devices, choice: DeviceChoice::Cuda(0), repeats: 1, steps: None }
}

fn assert_passed(rows: &[Row]) {
    let failed: Vec<String> = rows.iter().filter(|r| !r.passed()).map(|r| format!("{r:?}")).collect();
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

#[test]
fn operations_are_right_and_their_bits_do_not_depend_on_the_schedule() {
    let first = selftest::operations(&settings(devices::<0>())).unwrap();
    assert!(first.len() > 80, "only {} rows", first.len());
    assert_passed(&first);
    // A sanitizer sees under one schedule what it can see under all.
    let others = if std::env::var_os("EMULATED_ONCE").is_some() { 0 } else { 3 };
    for devices in [devices::<1>(), devices::<2>(), devices::<3>()].into_iter().take(others) {
        let rows = selftest::operations(&settings(devices)).unwrap();
        for (a, b) in first.iter().zip(&rows) {
            assert_eq!((&a.case, &a.bits), (&b.case, &b.bits), "{}", a.operation);
        }
    }
}

fn training(part: usize) {
    let (name, check) = selftest::TRAINING[part];
    assert_passed(
        &check(&settings(devices::<3>()), &scratch(&format!("selftest-emulated-{part}"))).expect(name),
    );
}

#[test]
fn training_follows_the_cpu_device() {
    training(0);
}

#[test]
fn recomputed_and_recorded_work_gives_the_same_bits() {
    training(1);
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    training(2);
    assert_eq!(selftest::TRAINING.len(), 3, "a test for each part");
}

#[test]
fn the_cpu_device_passes_too() {
    let settings = Settings { choice: DeviceChoice::Cpu, repeats: 2, ..settings(devices::<0>()) };
    assert_passed(&selftest::operations(&settings).unwrap());
}
