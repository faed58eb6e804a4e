//! An adapter folded into the base weights in memory: the adapted matrices become owned copies that hold
//! `W + scale · B·A`; all others stay in the map.

use super::adapter::Adapter;
use super::lora::Slot;
use super::weights::Weights;
use crate::device::Matrix;
use crate::device::cpu::Isa;
use crate::element::Element;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

/// Folds `adapter` into the matrices it adapts. Several adapters are folded one after the other, each sum rounded
/// to the base's type, as PEFT's `merge_and_unload` leaves them.
///
/// # Errors
/// [`crate::error::Kind::Input`], naming the matrix of which an element leaves the range of the base's type.
pub fn fold(weights: &mut Weights, adapter: &Adapter) -> Result<()> {
    for (module, linear) in &mut weights.linears {
        if let Some(slot) = adapter.layout.slot(module) {
            linear.weight = folded(&linear.weight, slot, &adapter.values)?;
            weights.bytes += linear.weight.bytes().len() as u64;
        }
    }
    Ok(())
}

fn folded(weight: &Matrix, slot: &Slot, values: &[f32]) -> Result<Matrix> {
    let [rows, cols] = slot.shape;
    let element = folded_element(weight);
    let width = cols * element.bytes();
    let mut bytes = vec![0; rows * width];
    let bad: usize =
        bytes.par_chunks_exact_mut(width).enumerate().map(|(i, out)| row(weight, slot, values, i, out)).sum();
    if bad > 0 {
        let name = &slot.module;
        return Err(Error::input(format!("{name}: {bad} elements leave the range of the base's type"))
            .hint("the adapter's values are too large to be folded into this base"));
    }
    Ok(Matrix::new(Arc::new(bytes), 0, element, rows, cols))
}

/// The type of a sum with `weight`: its own, bf16 where it has no element type.
fn folded_element(weight: &Matrix) -> Element {
    weight.encoding().plain().unwrap_or(Element::Bf16)
}

/// Row `row` of `W + scale · B·A`, into `out` in the type of W, bf16 where W is in codes: `B·A` by fused multiply-add in the order of the
/// rank, times the scale, plus W, all in f32 and rounded once to W's type, as PEFT's `merge` does. `values` is the
/// adapter's flat buffer. Gives the number of elements that are not finite.
pub fn row(weight: &Matrix, slot: &Slot, values: &[f32], row: usize, out: &mut [u8]) -> usize {
    let (rank, cols) = (slot.rank, slot.shape[1]);
    let a = &values[slot.a..][..rank * cols];
    let b = &values[slot.b + row * rank..][..rank];
    let (mut base, mut sum) = (vec![0.0; cols], vec![0.0f32; cols]);
    weight.read_row(row, &mut base);
    Isa::best().run(
        #[inline(always)]
        || {
            for (b, a) in b.iter().zip(a.chunks_exact(cols)) {
                for (sum, a) in sum.iter_mut().zip(a) {
                    *sum = b.mul_add(*a, *sum);
                }
            }
            for (sum, w) in sum.iter_mut().zip(&base) {
                *sum = slot.scale * *sum + w;
            }
        },
    );
    encode(&sum, folded_element(weight), out)
}

/// Rounds to nearest even; counts what is not finite afterwards.
fn encode(values: &[f32], element: Element, out: &mut [u8]) -> usize {
    let mut bad = 0;
    for (value, out) in values.iter().zip(out.chunks_exact_mut(element.bytes())) {
        let finite = match element {
            Element::F32 => {
                out.copy_from_slice(&value.to_le_bytes());
                value.is_finite()
            }
            Element::F16 => {
                let half = half::f16::from_f32(*value);
                out.copy_from_slice(&half.to_le_bytes());
                half.is_finite()
            }
            Element::Bf16 => {
                let half = half::bf16::from_f32(*value);
                out.copy_from_slice(&half.to_le_bytes());
                half.is_finite()
            }
        };
        bad += usize::from(!finite);
    }
    bad
}
