//! What layers keep from the forward to the backward pass: f32, or pairs of bf16 of which the lower half is the even one.

use super::math::bf16;

/// Puts values into `words`: with `pairs` two into each, rounded.
///
/// # Panics
/// When there are not as many words as that takes.
#[inline(always)]
pub fn store(pairs: bool, values: &[f32], words: &mut [f32]) {
    if !pairs {
        return words.copy_from_slice(values);
    }
    assert_eq!(words.len(), values.len().div_ceil(2), "a word for each pair");
    let (whole, rest) = values.as_chunks::<2>();
    for (word, [even, odd]) in words.iter_mut().zip(whole) {
        *word = f32::from_bits(bf16(*odd).to_bits() | bf16(*even).to_bits() >> 16);
    }
    if let ([even], Some(word)) = (rest, words.last_mut()) {
        *word = f32::from_bits(bf16(*even).to_bits() >> 16);
    }
}

/// Takes values out of `words`, as [`store`] put them there.
///
/// # Panics
/// When there are not as many words as that takes.
#[inline(always)]
pub fn load(pairs: bool, words: &[f32], values: &mut [f32]) {
    if !pairs {
        return values.copy_from_slice(words);
    }
    assert_eq!(words.len(), values.len().div_ceil(2), "a word for each pair");
    let (whole, rest) = values.as_chunks_mut::<2>();
    for ([even, odd], word) in whole.iter_mut().zip(words) {
        *even = f32::from_bits(word.to_bits() << 16);
        *odd = f32::from_bits(word.to_bits() & 0xffff_0000);
    }
    if let ([even], Some(word)) = (rest, words.last()) {
        *even = f32::from_bits(word.to_bits() << 16);
    }
}
