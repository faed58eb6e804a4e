//! The fused head on CUDA: two products of `linear.cu` around `kernels/op/loss.cu`, chunk after chunk.

use super::Loss;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::device::{Matrix, Region};
use crate::ops::linear::cuda::{LinearParams, Output, Right, Term, multiply};

/// The kernels.
pub const KERNELS: Kernels = Kernels { kernels: &[&ROWS], shared: &[] };

static ROWS: Kernel<LossParams> = Kernel::new("loss", "loss_rows", 512, 128);

parameters! {
    /// A launch of `loss_rows`.
    pub struct LossParams {
        /// Address of the logits, f32 [rows, stride]; in the backward pass each row is replaced by its gradient, bf16,
        /// from the row's beginning on.
        pub logits: u64,
        /// Address of the targets, u32 `[rows]`.
        pub targets: u64,
        /// Address of the losses, f32 `[rows]`.
        pub losses: u64,
        /// Rows.
        pub rows: i32,
        /// Logits of a row.
        pub vocab: i32,
        /// f32 elements from a row to the next, a multiple of 8.
        pub stride: i32,
        /// Whether gradients are written.
        pub backward: i32,
        /// Factor of the gradients.
        pub scale: f32,
        /// Zero.
        pub reserved: i32,
    }
}

pub(super) fn run(cuda: &mut Cuda, p: &Loss<'_>, x: Region, backward: Option<(f32, Region)>) {
    let (hidden, stride) = (p.head.cols(), Cuda::CAPABILITIES.row_len(p.head.rows()));
    let chunk = p.logits.len / stride;
    assert!(chunk > 0, "the logits' chunk holds no row");
    for first in (0..p.targets.len()).step_by(chunk) {
        let rows = chunk.min(p.targets.len() - first);
        let part = |r: Region| r.slice(first * hidden, rows * hidden);
        logits(cuda, p.head, part(x), p.logits);
        let params = LossParams {
            logits: cuda.address(p.logits),
            targets: cuda.address(p.targets.slice(first, rows).copy),
            losses: cuda.address(p.losses.slice(first, rows)),
            rows: rows as i32,
            vocab: p.head.rows() as i32,
            stride: stride as i32,
            backward: i32::from(backward.is_some()),
            scale: backward.map_or(0.0, |(scale, _)| scale),
            reserved: 0,
        };
        cuda.launch(&ROWS, [rows as u32, 1, 1], &params);
        if let Some((_, dx)) = backward {
            hidden_gradient(cuda, p, part(dx), rows);
        }
    }
}

/// `logits = x·headᵀ`, f32.
pub(in crate::ops) fn logits(cuda: &mut Cuda, head: &Matrix, x: Region, logits: Region) {
    let (vocab, hidden) = (head.rows(), head.cols());
    let rows = x.len / hidden;
    let mut params = LinearParams {
        y: cuda.address(logits),
        rows: rows as i32,
        stride: Cuda::CAPABILITIES.row_len(vocab) as i32,
        wide: 1,
        ..LinearParams::plain()
    };
    params.terms[0] = Term {
        a: cuda.address(x),
        b: cuda.address(head.copy()),
        a_stride: hidden as i32,
        b_stride: hidden as i32,
        depth: hidden as i32,
        reserved: 0,
    };
    params.outputs[0] = Output { count: 1, columns: vocab as i32, scale: 1.0, ..Output::default() };
    multiply(cuda, Right::Nt, rows, &params);
}

/// `dx = dlogits·head`, the whole vocabulary in one sum.
fn hidden_gradient(cuda: &mut Cuda, p: &Loss<'_>, dx: Region, rows: usize) {
    let (vocab, hidden) = (p.head.rows(), p.head.cols());
    let mut params = LinearParams {
        y: cuda.address(dx),
        rows: rows as i32,
        stride: hidden as i32,
        ..LinearParams::plain()
    };
    params.terms[0] = Term {
        a: cuda.address(p.logits),
        b: cuda.address(p.head.copy()),
        a_stride: 2 * Cuda::CAPABILITIES.row_len(vocab) as i32,
        b_stride: hidden as i32,
        depth: vocab as i32,
        reserved: 0,
    };
    params.outputs[0] = Output { count: 1, columns: hidden as i32, scale: 1.0, ..Output::default() };
    multiply(cuda, Right::Nn, rows, &params);
}
