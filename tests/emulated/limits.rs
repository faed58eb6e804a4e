//! What a GPU refuses, the emulated device refuses; and what a run does when a GPU has too little of something.

use super::driver::{Emulated, Supply};
use super::selftest::{devices, run_on};
use crate::common::{assert_same, results, scratch};
use qwentune::config::{DeviceChoice, Settings};
use qwentune::device::cuda::driver::{Address, Driver, Function, Launch, Stream};
use qwentune::error::Result;
use qwentune::selftest::tiny;
use qwentune::train::Devices;

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

fn short_of<const GRAPHS: usize, const LOCKED: usize>(_: u32) -> Result<Box<dyn Driver>> {
    Ok(Box::new(Emulated::with_supply(2, Supply { graphs: GRAPHS, locked: LOCKED })))
}

/// Neither graphs nor page-locked memory is what a run needs: without them it is slower and gives the same bytes.
#[test]
fn a_run_without_memory_for_graphs_or_snapshots_gives_the_same_bytes() {
    let folder = scratch("shortage-emulated");
    tiny::write_model(&tiny::FAMILIES[2], &folder.join("model")).unwrap();
    tiny::write_rows(&folder.join("rows.jsonl"), 6, 3).unwrap();
    let enough = devices::<2>();
    let rows = [
        ("enough", enough),
        // The two buffers through which weights are copied are there before any snapshot.
        ("no snapshots", Devices { open: short_of::<{ usize::MAX }, 2>, ..enough }),
        ("no graphs", Devices { open: short_of::<0, { usize::MAX }>, ..enough }),
        ("one graph", Devices { open: short_of::<1, { usize::MAX }>, ..enough }),
    ];
    let mut first = None;
    for (name, devices) in rows {
        let settings = Settings {
            device: DeviceChoice::Cuda(0),
            save_steps: 1.0,
            output_dir: folder.join(name),
            ..tiny::settings(&folder, 5)
        };
        let run = settings.output_dir.clone();
        run_on(devices, settings).unwrap();
        let got = results(&run).unwrap();
        let first = first.get_or_insert_with(|| got.clone());
        assert_same(first, &got, name);
    }
}
