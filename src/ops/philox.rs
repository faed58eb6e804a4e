//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the one source of
//! randomness. No state: a number is a pure function of key and counter.

/// Four random words for a 128-bit counter and a 64-bit key.
#[must_use]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let _ = (counter, key);
    todo!()
}
