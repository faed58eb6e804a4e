//! The product's own `selftest` on the emulated device: every operation through the real launch code, under every
//! schedule of lanes and asynchronous copies; and whole training runs.

use super::driver::Emulated;
use crate::common::{assert_same, results, scratch};
use qwentune::config::{DeviceChoice, Settings as Config};
use qwentune::device::cuda::Driver;
use qwentune::error::{Kind, Result};
use qwentune::ops::OPERATIONS;
use qwentune::report::event::Event;
use qwentune::selftest::{self, Row, Settings, tiny};
use qwentune::train::{self, Control, Devices, Request, Summary};
use std::path::Path;
use std::sync::OnceLock;

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
    for row in rows {
        println!("{row:?}");
    }
    let failed: Vec<String> = rows.iter().filter(|r| !r.passed()).map(|r| format!("{r:?}")).collect();
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

/// The operations in the first mode, run once for all tests.
fn operations() -> &'static [Row] {
    static ROWS: OnceLock<Vec<Row>> = OnceLock::new();
    ROWS.get_or_init(|| selftest::operations(&settings(devices::<0>())).unwrap())
}

#[test]
fn operations_are_right_and_their_bits_do_not_depend_on_the_schedule() {
    let first = operations();
    assert!(first.len() > 80, "only {} rows", first.len());
    assert_passed(first);
    // A sanitizer sees under one schedule what it can see under all.
    let others = if std::env::var_os("EMULATED_ONCE").is_some() { 0 } else { 3 };
    for devices in [devices::<1>(), devices::<2>(), devices::<3>()].into_iter().take(others) {
        let rows = selftest::operations(&settings(devices)).unwrap();
        for (a, b) in first.iter().zip(&rows) {
            assert_eq!((&a.case, &a.bits), (&b.case, &b.bits), "{}", a.operation);
        }
    }
}

/// Digests of every result. `emulated_bits.tsv` has those of kernels without tensor cores, which a GPU's must be too:
/// `tools/gpu/proof` compares. Both tables change when a kernel's arithmetic or a case does, and only then.
#[test]
fn digests_are_as_recorded() {
    let scalar = |row: &Row| OPERATIONS.iter().any(|o| o.name == row.operation && o.scalar);
    for (file, wanted) in [("emulated_bits.tsv", true), ("emulated_tensor_bits.tsv", false)] {
        let rows = operations().iter().filter(|row| scalar(row) == wanted);
        let found: String = rows.map(|r| format!("{}\t{}\t{}\n", r.operation, r.case, r.bits)).collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
        std::fs::write(&new, &found).unwrap();
        let recorded = std::fs::read_to_string(&path).unwrap_or_default();
        let different = found.lines().find(|line| !recorded.lines().any(|old| old == *line));
        assert!(
            found == recorded,
            "other bits, as of {different:?}; if that is meant, copy {} to {}",
            new.display(),
            path.display()
        );
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
}

#[test]
fn generation_follows_the_cpu_device() {
    training(3);
    assert_eq!(selftest::TRAINING.len(), 4, "a test for each part");
}

pub fn run_on(devices: Devices, settings: Config) -> Result<Summary> {
    let request = Request { devices, command_line: vec!["test".into()], ..Request::new(&settings) };
    train::train(request, &Control::default(), &mut |_: &Event| {})
}

/// The snapshot of a step is copied while the next one is computed, and the optimizer waits for it: on this device copies
/// are done as late as they may be.
#[test]
fn a_run_that_saves_every_step_ends_as_one_that_saves_once() {
    let folder = scratch("saves-emulated");
    tiny::write_model(&tiny::FAMILIES[2], &folder.join("model")).unwrap();
    tiny::write_rows(&folder.join("rows.jsonl"), 6, 3).unwrap();
    let runs: Vec<_> = [1.0, 100.0]
        .into_iter()
        .map(|save_steps| {
            let output_dir = folder.join(format!("run-{save_steps}"));
            let settings = Config {
                device: DeviceChoice::Cuda(0),
                save_steps,
                output_dir,
                ..tiny::settings(&folder, 5)
            };
            let run = settings.output_dir.clone();
            run_on(devices::<2>(), settings).unwrap();
            (results(&run).unwrap(), run)
        })
        .collect();
    assert_same(&runs[0].0, &runs[1].0, "saving every step");
    // Each checkpoint is the state of its own step: the bytes that a run has which stops there and waits for its save.
    let stopped = Config {
        device: DeviceChoice::Cuda(0),
        save_steps: 100.0,
        output_dir: folder.join("stopped"),
        ..tiny::settings(&folder, 5)
    };
    let control = Control::default();
    let asker = control.clone();
    let mut observer = move |event: &Event| {
        if matches!(event, Event::Step { line, .. } if line.step == 4) {
            asker.request_stop();
        }
    };
    let command_line = vec!["test".into()];
    let request = Request { devices: devices::<2>(), command_line, ..Request::new(&stopped) };
    let error = train::train(request, &control, &mut observer).unwrap_err();
    assert_eq!(error.kind, Kind::Stopped, "{error}");
    let step = |run: &Path| std::fs::read(run.join("checkpoints/step-00000004.qckpt")).unwrap();
    assert!(step(&runs[0].1) == step(&folder.join("stopped")), "the checkpoint of step 4");
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_what_would_help() {
    let folder = scratch("memory-emulated");
    tiny::write_model(&tiny::FAMILIES[2], &folder.join("model")).unwrap();
    tiny::write_rows(&folder.join("rows.jsonl"), 6, 3).unwrap();
    let small =
        Devices { open: |_| Ok(Box::new(Emulated::with_memory(0, (512 << 20) + 4096))), ..devices::<0>() };
    let settings = Config { device: DeviceChoice::Cuda(0), ..tiny::settings(&folder, 5) };
    let error = run_on(small, settings).unwrap_err();
    assert_eq!(error.kind, Kind::Device);
    assert!(error.what.contains("are available") && error.remedy.contains("more memory"), "{error}");
}

#[test]
fn the_cpu_device_passes_too() {
    let settings = Settings { choice: DeviceChoice::Cpu, repeats: 2, ..settings(devices::<0>()) };
    assert_passed(&selftest::operations(&settings).unwrap());
}
