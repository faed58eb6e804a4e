//! The emulated device against the tables of the PTX ISA, and the mistakes it must report.

use super::library::{Library, MODES, Memory, Mode};
use crate::ops::rig::normal;
use qwentune::device::cuda::driver::Launch;

const ONE_WARP: Launch = Launch { grid: [1, 1, 1], threads: 32, shared_bytes: 1024 };
const TWO_WARPS: Launch = Launch { threads: 64, ..ONE_WARP };

/// `ProbeParams` of instructions.cu.
fn params(a: &Memory, b: &Memory, out: &Memory, which: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = [a, b, out].iter().flat_map(|m| m.address().to_le_bytes()).collect();
    bytes.extend(which.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn probe(
    kernel: &str,
    shape: Launch,
    a: &[f32],
    b: &[f32],
    which: u32,
    mode: Mode,
) -> Result<Vec<u32>, String> {
    let (a, b, out) = (Memory::bf16(a), Memory::bf16(b), Memory::poisoned(4 * 512));
    Library::get().launch(kernel, shape, &params(&a, &b, &out, which), mode)?;
    Ok(out.read().chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
}

fn bits(value: f32) -> u32 {
    u32::from(half::bf16::from_f32(value).to_bits())
}

#[test]
fn mma_fragments_lie_as_the_tables_say() {
    // Small integers: every sum is exact.
    let a: Vec<f32> = (0..256).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
    let b: Vec<f32> = (0..128).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
    for mode in MODES {
        let out = probe("probe_mma", ONE_WARP, &a, &b, 0, *mode).unwrap();
        for lane in 0..32 {
            for (register, start) in [1.0, 2.0, 3.0, 4.0].into_iter().enumerate() {
                let row = lane / 4 + 8 * (register / 2);
                let column = 2 * (lane % 4) + register % 2;
                let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum();
                assert_eq!(
                    f32::from_bits(out[4 * lane + register]),
                    start + sum,
                    "lane {lane} register {register}"
                );
            }
        }
    }
}

#[test]
fn ldmatrix_gives_each_lane_its_pair() {
    let a: Vec<f32> = (0..256).map(|i| i as f32).collect();
    for (which, count, transposed) in [(0, 4, false), (1, 4, true), (2, 2, false), (3, 2, true)] {
        let out = probe("probe_ldmatrix", ONE_WARP, &a, &[0.0], which, MODES[3]).unwrap();
        for lane in 0..32 {
            for matrix in 0..4 {
                let element = |i: usize| {
                    let (r, c) = if transposed {
                        (2 * (lane % 4) + i, lane / 4)
                    } else {
                        (lane / 4, 2 * (lane % 4) + i)
                    };
                    bits(a[(8 * (matrix % 2) + r) * 16 + 8 * (matrix / 2) + c])
                };
                let want = if matrix < count { element(0) | element(1) << 16 } else { 0 };
                assert_eq!(out[4 * lane + matrix], want, "form {which} lane {lane} matrix {matrix}");
            }
        }
    }
}

#[test]
fn shuffles_move_between_lanes() {
    let out = probe("probe_shuffle", ONE_WARP, &[0.0], &[0.0], 0, MODES[2]).unwrap();
    for lane in 0..32u32 {
        let down = if lane + 7 < 32 { lane + 7 } else { lane };
        assert_eq!(out[3 * lane as usize..][..3], [lane ^ 5, 3 * lane % 32, down]);
    }
}

#[test]
fn asynchronous_copies_arrive_with_the_wait_at_the_latest_and_at_once_at_the_earliest() {
    let (a, b) = (normal(1, 256, 1.0), normal(2, 256, 1.0));
    const POISON: u32 = 0xFFFF;
    for (lazy, waits) in [(false, 0), (true, 0), (true, 1), (true, 2)] {
        let mode = Mode { order: 0, lazy, seed: 0 };
        let out = probe("probe_copy", ONE_WARP, &a, &b, waits, mode).unwrap();
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
    ];
    for (which, expected) in cases.into_iter().enumerate() {
        for mode in MODES {
            let error =
                probe("probe_mistake", TWO_WARPS, &[1.0; 64], &[1.0; 64], which as u32, *mode).unwrap_err();
            let ended_last = which == 7 && error.contains("deadlock");
            assert!(error.contains(expected) || ended_last, "mistake {which}: {error}");
            assert!(
                error.contains("probe_mistake") && (which == 6 || error.contains("instructions.cu:")),
                "{error}"
            );
        }
    }
    let error = probe("probe_race", Launch { shared_bytes: 512, ..TWO_WARPS }, &[0.0], &[0.0], 0, MODES[0])
        .unwrap_err();
    assert!(error.contains("needs 1024 bytes of shared memory"), "{error}");
}

#[test]
fn a_missing_barrier_shows_as_other_bits_under_another_schedule() {
    let run = |barrier, mode| probe("probe_race", TWO_WARPS, &[0.0], &[0.0], barrier, mode).unwrap();
    assert!(MODES.iter().any(|m| run(0, *m) != run(0, MODES[0])), "without the barrier");
    assert!(MODES.iter().all(|m| run(1, *m) == run(1, MODES[0])), "with the barrier");
}
