//! What a GPU refuses, the emulated device refuses; and what a run does when a GPU has too little of something.

use super::driver::{Emulated, Supply, captures};
use super::selftest::{devices, run_on};
use crate::common::{assert_same, results, scratch};
use qwentune::bench::shape;
use qwentune::config::{DeviceChoice, Recompute, Settings};
use qwentune::device::cuda::Cuda;
use qwentune::device::cuda::driver::{Address, Driver, Function, Launch, Stream};
use qwentune::device::{Capabilities, Cpu, Planner};
use qwentune::error::{Kind, Result};
use qwentune::model::{AdapterSpec, Layout, Network, Spec, Weights};
use qwentune::selftest::tiny;
use qwentune::train::Devices;
use serde_json::Value;

const ONE: Launch = Launch { grid: [1, 1, 1], threads: 32, shared_bytes: 0 };

fn device(kernel: &str) -> (Emulated, Stream, Function) {
    let device = Emulated::new(0);
    let stream = device.stream().unwrap();
    let module = device.load("instructions", &[]).unwrap();
    let function = device.function(module, kernel).unwrap();
    (device, stream, function)
}

#[test]
fn launches_beyond_what_a_gpu_has_are_refused() {
    let (device, stream, function) = device("probe_shuffle");
    let rows = [
        (Launch { grid: [1, 65_536, 1], ..ONE }, 32, "grid"),
        (Launch { grid: [1, 1, 65_536], ..ONE }, 32, "grid"),
        (Launch { grid: [1 << 31, 1, 1], ..ONE }, 32, "grid"),
        (Launch { grid: [1, 0, 1], ..ONE }, 32, "grid"),
        (Launch { threads: 1056, ..ONE }, 32, "threads"),
        (Launch { threads: 0, ..ONE }, 32, "threads"),
        (Launch { shared_bytes: 99 * 1024 + 1, ..ONE }, 32, "shared memory"),
        (ONE, 4097, "parameters"),
    ];
    for (launch, bytes, why) in rows {
        // SAFETY: it is refused before anything runs.
        let error = unsafe { device.launch(stream, function, launch, &vec![0; bytes]) }.unwrap_err();
        assert!(error.what.contains("no room for") && error.what.contains(why), "{launch:?}: {error}");
    }
}

/// 255 registers are given out as 256: 256 threads fill a block's, 288 are one warp too many.
#[test]
fn registers_of_a_block_are_counted_from_the_recorded_table() {
    let (device, stream, function) = device("linear_nt_256");
    let launch = Launch { grid: [1, 1, 1], threads: 288, shared_bytes: 98_304 };
    // SAFETY: it is refused before anything runs.
    let error = unsafe { device.launch(stream, function, launch, &[0; 8]) }.unwrap_err();
    assert!(error.what.contains("registers"), "{error}");
}

/// The places of the adapters' values are 32-bit integers on a device that has copies of them.
#[test]
fn more_values_than_the_table_of_copies_counts_are_refused_when_memory_is_planned() {
    let Value::Object(config) = shape::config("tiny").unwrap() else { panic!("an object") };
    let spec = Spec::given("tiny", config.into_iter().collect()).unwrap();
    let weights = Weights::random(&spec, 1).unwrap();
    let plan = |rank: usize, device: &'static Capabilities| {
        let adapter = AdapterSpec::from_settings(&Settings { lora_r: rank, ..Settings::default() });
        let layout = Layout::new(&spec, &adapter).unwrap();
        let mut planner = Planner::new(device);
        Network::plan(&mut planner, &spec, &weights, &layout, &adapter, 8, Recompute::None)
            .map(|_| (layout.len, planner.bytes()))
    };
    // More than 2^32 values, 17 GB of them: only planned.
    let (values, bytes) = plan(460_000, Cpu::CAPABILITIES).unwrap();
    assert!(values > 1 << 32 && bytes > 4 * values, "{values} values");
    let error = plan(460_000, Cuda::CAPABILITIES).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.what.contains(&values.to_string()) && error.remedy.contains("--lora-r"), "{error}");
    assert!(plan(450_000, Cuda::CAPABILITIES).is_ok());
}

type Call = fn(&Emulated, Stream, Stream, Address) -> Result<()>;

#[test]
fn a_capture_takes_no_calls_that_wait_and_no_work_of_others() -> Result<()> {
    let rows: &[(&str, Call)] = &[
        ("a copy that waits", |d, s, _, place| d.read(s, &mut [0; 4], place)),
        ("waiting for the stream", |d, s, _, _| d.synchronize(s)),
        ("an allocation", |d, _, _, _| d.allocate(4).map(|_| ())),
        ("an allocation", |d, _, _, _| d.host_buffer(4).map(|_| ())),
        ("a second capture", |d, s, _, _| d.begin_capture(s)),
        ("waiting for captured work", |d, s, _, _| {
            let event = d.event()?;
            d.record(event, s)?;
            d.wait_for(event)
        }),
        ("asking for captured work", |d, s, _, _| {
            let event = d.event()?;
            d.record(event, s)?;
            d.reached(event).map(|_| ())
        }),
        ("waiting for work that is not captured", |d, s, other, _| {
            let event = d.event()?;
            d.record(event, other)?;
            d.wait(s, event)
        }),
    ];
    for (what, call) in rows {
        let device = Emulated::new(0);
        let (stream, other) = (device.stream()?, device.stream()?);
        let place = device.allocate(4)?;
        device.begin_capture(stream)?;
        let error = call(&device, stream, other, place).unwrap_err();
        assert!(error.what.contains(what), "{error}");
        let error = device.end_capture(stream).unwrap_err();
        assert!(error.what.contains("spoiled") && error.what.contains(what), "{error}");
        // Another stream, or an event that was reached before, spoils nothing.
        let event = device.event()?;
        device.record(event, other)?;
        device.begin_capture(stream)?;
        device.fill(stream, place, 4, 0)?;
        device.wait_for(event)?;
        device.synchronize(other)?;
        device.end_capture(stream)?;
    }
    Ok(())
}

fn short_of<const SUPPLY: usize>(_: u32) -> Result<Box<dyn Driver>> {
    Ok(Box::new(Emulated::with_supply(2, SUPPLIES[SUPPLY].1)))
}

/// What there may be too little of, and whether work is recorded then. The two buffers through which weights are copied are
/// there before any snapshot.
const SUPPLIES: [(&str, Supply, bool); 5] = [
    ("enough", Supply::ENOUGH, true),
    ("no snapshots", Supply { locked: 2, ..Supply::ENOUGH }, true),
    ("no graphs", Supply { graphs: 0, ..Supply::ENOUGH }, true),
    ("one graph", Supply { graphs: 1, ..Supply::ENOUGH }, true),
    // The driver needs memory for graphs that no plan has: below a floor none is begun.
    ("little memory", Supply { left: 100 << 20, ..Supply::ENOUGH }, false),
];

/// Neither graphs nor page-locked memory is what a run needs: without them it is slower and gives the same bytes.
#[test]
fn a_run_without_memory_for_graphs_or_snapshots_gives_the_same_bytes() {
    let folder = scratch("shortage-emulated");
    tiny::write_model(&tiny::FAMILIES[2], &folder.join("model")).unwrap();
    tiny::write_rows(&folder.join("rows.jsonl"), 6, 3).unwrap();
    let opens = [short_of::<0>, short_of::<1>, short_of::<2>, short_of::<3>, short_of::<4>];
    let mut first = None;
    for ((name, _, records), open) in SUPPLIES.into_iter().zip(opens) {
        let devices = Devices { open, ..devices::<2>() };
        captures();
        let settings = Settings {
            device: DeviceChoice::Cuda(0),
            save_steps: 1.0,
            output_dir: folder.join(name),
            ..tiny::settings(&folder, 5)
        };
        let run = settings.output_dir.clone();
        run_on(devices, settings).unwrap();
        assert_eq!(captures() > 0, records, "{name}");
        let got = results(&run).unwrap();
        let first = first.get_or_insert_with(|| got.clone());
        assert_same(first, &got, name);
    }
}
