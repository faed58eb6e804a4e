//! Single instructions against the tables of the PTX ISA: on the emulated device, or on the GPU whose image of
//! instructions.cu `QWENTUNE_INSTRUCTIONS` names, through the product's own driver (`tools/gpu/proof`). What the emulated
//! device's tables say is then what the GPU does.

use super::library::{Library, MODES, Memory, Mode};
use crate::ops::rig::normal;
use qwentune::device::cuda::driver::{Driver, Launch};
use qwentune::device::cuda::nvidia::Nvidia;

pub const ONE_WARP: Launch = Launch { grid: [1, 1, 1], threads: 32, shared_bytes: 1024 };
pub const TWO_WARPS: Launch = Launch { threads: 64, ..ONE_WARP };

/// 32-bit words of a probe's result.
const WORDS: usize = 512;

/// `ProbeParams` of instructions.cu.
fn params([a, b, out]: [u64; 3], which: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = [a, b, out].iter().flat_map(|address| address.to_le_bytes()).collect();
    bytes.extend(which.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// A probe on bf16 numbers, on the emulated device.
pub fn emulated(
    kernel: &str,
    shape: Launch,
    [a, b]: [&[f32]; 2],
    which: u32,
    mode: Mode,
) -> Result<Vec<u32>, String> {
    on_emulator(kernel, shape, [&encoded(a), &encoded(b)], which, mode)
}

fn encoded(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

fn on_emulator(
    kernel: &str,
    shape: Launch,
    operands: [&[u8]; 2],
    which: u32,
    mode: Mode,
) -> Result<Vec<u32>, String> {
    let ([a, b], out) = (operands.map(Memory::new), Memory::poisoned(4 * WORDS));
    let params = params([&a, &b, &out].map(Memory::address), which);
    Library::get().launch(kernel, shape, &params, mode)?;
    Ok(words(out.read()))
}

fn on_gpu(
    image: &str,
    kernel: &str,
    shape: Launch,
    operands: [&[u8]; 2],
    which: u32,
) -> qwentune::error::Result<Vec<u32>> {
    let gpu = Nvidia::open(0)?;
    let stream = gpu.stream()?;
    let module = gpu.load("instructions", &std::fs::read(image).expect(image))?;
    let function = gpu.function(module, kernel)?;
    let mut places = [0; 3];
    for (place, bytes) in places.iter_mut().zip([operands[0], operands[1], &[0xFF; 4 * WORDS]]) {
        let address = gpu.allocate(bytes.len())?;
        gpu.write(stream, address, bytes)?;
        *place = address.0;
    }
    // SAFETY: the parameters are the probe's, the addresses of memory as large as instructions.cu says.
    unsafe { gpu.launch(stream, function, shape, &params(places, which))? };
    let mut out = vec![0; 4 * WORDS];
    gpu.read(stream, &mut out, qwentune::device::cuda::driver::Address(places[2]))?;
    Ok(words(&out))
}

/// A probe where it is asked for; a GPU has no `mode`.
fn probe(kernel: &str, shape: Launch, operands: [&[u8]; 2], which: u32, mode: Mode) -> Vec<u32> {
    match std::env::var("QWENTUNE_INSTRUCTIONS") {
        Ok(image) => on_gpu(&image, kernel, shape, operands, which).unwrap(),
        Err(_) => on_emulator(kernel, shape, operands, which, mode).unwrap(),
    }
}

/// No operands.
const NOTHING: &[u8] = &[0; 2];

pub fn bits(value: f32) -> u32 {
    u32::from(half::bf16::from_f32(value).to_bits())
}

#[test]
fn mma_fragments_lie_as_the_tables_say() {
    // Small integers: every sum is exact.
    let a: Vec<f32> = (0..256).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
    let b: Vec<f32> = (0..128).map(|i| (i * 5 % 11) as f32 - 5.0).collect();
    for mode in MODES {
        let out = probe("probe_mma", ONE_WARP, [&encoded(&a), &encoded(&b)], 0, *mode);
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
        let out = probe("probe_ldmatrix", ONE_WARP, [&encoded(&a), NOTHING], which, MODES[3]);
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
    let out = probe("probe_shuffle", ONE_WARP, [NOTHING, NOTHING], 0, MODES[2]);
    for lane in 0..32u32 {
        let down = if lane + 7 < 32 { lane + 7 } else { lane };
        assert_eq!(out[3 * lane as usize..][..3], [lane ^ 5, 3 * lane % 32, down]);
    }
}

#[test]
fn shuffles_move_all_bits_of_an_f64() {
    let out = probe("probe_shuffle_f64", ONE_WARP, [NOTHING, NOTHING], 0, MODES[2]);
    for lane in 0..32 {
        assert_eq!(out[2 * lane..][..2], [u32::MAX, 1 << (31 - lane)]);
    }
}

#[test]
fn barriers_hold_those_they_name_and_nobody_else() {
    for mode in MODES {
        let out = probe("probe_named", Launch { threads: 160, ..ONE_WARP }, [NOTHING, NOTHING], 0, *mode);
        for t in 0..128u32 {
            let other = t / 64 * 64 + 63 - t % 64;
            assert_eq!(out[2 * t as usize..][..2], [other, 1000 + other]);
        }
        let out = probe("probe_barriers", Launch { threads: 96, ..ONE_WARP }, [NOTHING, NOTHING], 0, *mode);
        let want = (0..64u32).rev().chain((100..132).rev());
        assert!(want.eq(out[..96].iter().copied()), "{mode:?}: {:?}", &out[..96]);
    }
}

#[test]
fn blocks_and_lanes_know_their_places() {
    let shape = Launch { grid: [2, 2, 2], ..TWO_WARPS };
    let out = probe("probe_places", shape, [NOTHING, NOTHING], 0, MODES[1]);
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
    let a: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let out = probe("probe_values", ONE_WARP, [&a, &a], 0, MODES[0]);
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
fn asynchronous_copies_are_there_after_their_wait_and_zeros_where_there_is_no_source() {
    let (a, b) = (normal(1, 256, 1.0), normal(2, 256, 1.0));
    let out = probe("probe_copy", ONE_WARP, [&encoded(&a), &encoded(&b)], 2, MODES[3]);
    for lane in 0..32 {
        for i in 0..8 {
            let first = if lane % 2 == 0 { bits(a[8 * lane + i]) } else { 0 };
            assert_eq!(
                [out[16 * lane + i], out[16 * lane + 8 + i]],
                [first, bits(b[8 * lane + i])],
                "{lane}"
            );
        }
    }
}
