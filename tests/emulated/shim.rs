//! The mistakes that the emulated device must report, and what shows under another schedule.

use super::instructions::{ONE_WARP, TWO_WARPS, bits, emulated};
use super::library::{MODES, Mode};
use crate::ops::rig::normal;
use qwentune::device::cuda::driver::Launch;

#[test]
fn groups_are_counted_when_they_are_empty_and_only_committed_copies_are_waited_for() {
    let (a, b) = (normal(1, 256, 1.0), normal(2, 256, 1.0));
    for lazy in [false, true] {
        let out = emulated("probe_groups", ONE_WARP, [&a, &b], 0, Mode { order: 0, lazy, seed: 0 }).unwrap();
        for lane in 0..32 {
            let first = if lane % 2 == 1 { bits(a[8 * lane]) } else { 0 };
            let second = if lazy { 0xFFFF } else { bits(b[8 * lane]) };
            assert_eq!(out[2 * lane..][..2], [first, second], "lazy {lazy}, lane {lane}");
        }
    }
}

#[test]
fn asynchronous_copies_arrive_with_the_wait_at_the_latest_and_at_once_at_the_earliest() {
    let (a, b) = (normal(1, 256, 1.0), normal(2, 256, 1.0));
    const POISON: u32 = 0xFFFF;
    for (lazy, waits) in [(false, 0), (true, 0), (true, 1), (true, 2)] {
        let mode = Mode { order: 0, lazy, seed: 0 };
        let out = emulated("probe_copy", ONE_WARP, [&a, &b], waits, mode).unwrap();
        for lane in 0..32 {
            for i in 0..8 {
                let first = if lane % 2 == 0 { bits(a[8 * lane + i]) } else { 0 };
                let second = bits(b[8 * lane + i]);
                let want = |value, needs| if !lazy || waits >= needs { value } else { POISON };
                assert_eq!(out[16 * lane + i], want(first, 1), "lazy {lazy}, {waits} waits");
                assert_eq!(out[16 * lane + 8 + i], want(second, 2), "lazy {lazy}, {waits} waits");
            }
        }
    }
}

#[test]
fn mistakes_are_reported_with_their_place() {
    let cases = [
        "deadlock",
        "with other operands",
        "deadlock",
        "outside every allocation",
        "outside shared memory",
        "misaligned",
        "written beyond",
        "lanes of its warp have ended",
        "outside every allocation",
        "outside every allocation",
    ];
    for (which, expected) in cases.into_iter().enumerate() {
        for mode in MODES {
            let error = emulated("probe_mistake", TWO_WARPS, [&[1.0; 64], &[1.0; 64]], which as u32, *mode)
                .unwrap_err();
            let ended_last = which == 7 && error.contains("deadlock");
            assert!(error.contains(expected) || ended_last, "mistake {which}: {error}");
            assert!(
                error.contains("probe_mistake") && (which == 6 || error.contains("instructions.cu:")),
                "{error}"
            );
        }
    }
    let error =
        emulated("probe_race", Launch { shared_bytes: 512, ..TWO_WARPS }, [&[0.0], &[0.0]], 0, MODES[0])
            .unwrap_err();
    assert!(error.contains("needs 1024 bytes of shared memory"), "{error}");
}

#[test]
fn a_missing_barrier_shows_as_other_bits_under_another_schedule() {
    let run = |barrier, mode| emulated("probe_race", TWO_WARPS, [&[0.0], &[0.0]], barrier, mode).unwrap();
    assert!(MODES.iter().any(|m| run(0, *m) != run(0, MODES[0])), "without the barrier");
    assert!(MODES.iter().all(|m| run(1, *m) == run(1, MODES[0])), "with the barrier");
}
