//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the one source of
//! randomness. No state: a number is a pure function of key and counter. Every use has its own stream
//! constant in a fixed place of the counter, so that no two uses ever share a number.

/// Four random words for a 128-bit counter and a 64-bit key. Always inlined: a loop over counters then
/// becomes vector code.
#[inline(always)]
#[must_use]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(c0) * 0xD251_1F53;
        let p1 = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// What a number is drawn for. The second counter word of every use: dropout puts `layer << 8 | site` there
/// (below `0xFFFF_FF00`), with the step and the micro-batch in the words above; all others one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Initial values of LoRA's A; the index is the element's place in the flat buffer.
    LoraInit = 0xFFFF_FF01,
    /// Order of an epoch's rows; the index is epoch << 32 | draw.
    RowOrder = 0xFFFF_FF02,
    /// Rows moved from training to evaluation.
    ValidationSplit = 0xFFFF_FF03,
    /// Tokens of generated text; the index is row << 32 | token.
    Sampling = 0xFFFF_FF04,
    /// Resamples of a benchmark's samples; the seed tells series apart.
    Bootstrap = 0xFFFF_FF05,
    /// Weights and tokens of a benchmark; the seed tells tensors apart.
    Benchmark = 0xFFFF_FF06,
}

/// The 64 random bits of `index` in `stream` under `seed`.
#[must_use]
pub fn bits(seed: u64, stream: Stream, index: u64) -> u64 {
    let counter = [index as u32, stream as u32, (index >> 32) as u32, 0];
    let words = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(words[0]) | u64::from(words[1]) << 32
}

/// Uniform in [0, 1) with 53 bits.
#[must_use]
pub fn uniform(seed: u64, stream: Stream, index: u64) -> f64 {
    (bits(seed, stream, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// Shuffles `items` (Fisher-Yates) with the numbers of `stream` under `seed`; `epoch` (below 2^32) tells
/// repetitions apart. A pick below n is the upper part of 64 random bits times n: biased by less than n / 2^64.
pub fn shuffle(items: &mut [u32], seed: u64, stream: Stream, epoch: u64) {
    for last in (1..items.len()).rev() {
        let bits = bits(seed, stream, epoch << 32 | last as u64);
        let pick = (u128::from(bits) * (last as u128 + 1)) >> 64;
        items.swap(last, pick as usize);
    }
}
