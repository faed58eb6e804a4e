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
    run(kernel, shape, [&Memory::bf16(a), &Memory::bf16(b)], which, mode)
}

fn run(
    kernel: &str,
    shape: Launch,
    [a, b]: [&Memory; 2],
    which: u32,
    mode: Mode,
) -> Result<Vec<u32>, String> {
    let out = Memory::poisoned(4 * 512);
    Library::get().launch(kernel, shape, &params(a, b, &out, which), mode)?;
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
fn shuffles_move_all_bits_of_an_f64() {
    let out = probe("probe_shuffle_f64", ONE_WARP, &[0.0], &[0.0], 0, MODES[2]).unwrap();
    for lane in 0..32 {
        assert_eq!(out[2 * lane..][..2], [u32::MAX, 1 << (31 - lane)]);
    }
}

#[test]
fn barriers_hold_those_they_name_and_nobody_else() {
    for mode in MODES {
        let out =
            probe("probe_named", Launch { threads: 160, ..ONE_WARP }, &[0.0], &[0.0], 0, *mode).unwrap();
        for t in 0..128u32 {
            let other = t / 64 * 64 + 63 - t % 64;
            assert_eq!(out[2 * t as usize..][..2], [other, 1000 + other]);
        }
        let out =
            probe("probe_barriers", Launch { threads: 96, ..ONE_WARP }, &[0.0], &[0.0], 0, *mode).unwrap();
        let want = (0..64u32).rev().chain((100..132).rev());
        assert!(want.eq(out[..96].iter().copied()), "{mode:?}: {:?}", &out[..96]);
    }
}

#[test]
fn blocks_and_lanes_know_their_places() {
    let shape = Launch { grid: [2, 2, 2], ..TWO_WARPS };
    let out = probe("probe_places", shape, &[0.0], &[0.0], 0, MODES[1]).unwrap();
    for (i, got) in out.iter().enumerate() {
        let (block, warp) = (i as u32 / 64, i as u32 % 64 / 32);
        assert_eq!(*got, block / 4 * 1000 + block / 2 % 2 * 100 + block % 2 * 10 + warp);
    }
}

/// cvt.rn.bf16 (ties to even, NaN canonical), cvt.rn.bf16x2 (the first operand above), mul.hi.u32, fma.rn and sqrt.rn.
#[test]
fn arithmetic_is_what_the_instructions_say() {
    let special = [
        (0x3f80_8000, 0x3f80), // a tie: down to the even one
        (0x3f81_8000, 0x3f82), // a tie: up to the even one
        (0x3f80_8001, 0x3f81),
        (0x7f7f_ffff, 0x7f80), // rounds to infinity
        (0xff80_0000, 0xff80),
        (0x7f80_0001, 0x7fff), // NaN whose upper half alone would be infinity
        (0xffc0_0000, 0x7fff),
        (0x8000_0000, 0x8000),
        (0x0000_8000, 0x0000), // subnormal ties
        (0x0001_8000, 0x0002),
    ];
    let mut words: Vec<u32> = special.iter().map(|(word, _)| *word).collect();
    words.extend(normal(3, 64 - words.len(), 3.0).iter().map(|v| v.to_bits()));
    let a = Memory::new(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>());
    let out = run("probe_values", ONE_WARP, [&a, &a], 0, MODES[0]).unwrap();
    let rounded = |i: usize| special.get(i).map_or_else(|| bits(f32::from_bits(words[i])), |s| s.1);
    for lane in 0..32 {
        let (i, [x, y]) = (2 * lane, [words[2 * lane], words[2 * lane + 1]]);
        let got = &out[5 * lane..][..5];
        assert_eq!(got[..2], [rounded(i), rounded(i + 1) << 16 | rounded(i)], "{x:#x} {y:#x}");
        assert_eq!(got[2], ((u64::from(x) * u64::from(y)) >> 32) as u32);
        let [x, y] = [x, y].map(f32::from_bits);
        let same =
            |got: u32, want: f32| got == want.to_bits() || (want.is_nan() && f32::from_bits(got).is_nan());
        assert!(same(got[3], x.mul_add(y, -x)) && same(got[4], x.sqrt()), "{x} {y}");
    }
}

#[test]
fn groups_are_counted_when_they_are_empty_and_only_committed_copies_are_waited_for() {
    let (a, b) = (normal(1, 256, 1.0), normal(2, 256, 1.0));
    for lazy in [false, true] {
        let out = probe("probe_groups", ONE_WARP, &a, &b, 0, Mode { order: 0, lazy, seed: 0 }).unwrap();
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
        "outside every allocation",
        "outside every allocation",
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
