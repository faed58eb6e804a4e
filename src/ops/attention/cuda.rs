//! Attention on CUDA: `kernels/op/attention_forward.cu` and `attention_backward.cu`.

use super::{Attention, Backward, Segments};
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Family, Launch};
use crate::device::{Indices, Region};

/// The kernels of the forward pass.
pub const FORWARD: Family =
    Family { image: "attention_forward", kernels: &["attention_forward_d64", "attention_forward_d128"] };

/// The kernels of the backward pass.
pub const BACKWARD: Family = Family {
    image: "attention_backward",
    kernels: &[
        "attention_delta_d64",
        "attention_delta_d128",
        "attention_keys_d64",
        "attention_keys_d128",
        "attention_queries_d64",
        "attention_queries_d128",
    ],
};

/// The head sizes there are kernels for.
pub const HEAD_SIZES: [usize; 2] = [64, 128];

parameters! {
    /// A launch of `attention_forward_*`.
    pub struct AttentionForward {
        /// Address of the result, bf16 [tokens, heads D].
        pub out: u64,
        /// Address of the log-sum-exp, f32 [heads, tokens].
        pub lse: u64,
        /// Address of rotated queries and keys, bf16 [tokens, (heads + kv_heads) D].
        pub qk: u64,
        /// Address of the projections, whose v columns are read, bf16 [tokens, (heads + 2 kv_heads) D].
        pub qkv: u64,
        /// Address of the pieces of work.
        pub work: u64,
        /// Tokens.
        pub tokens: i32,
        /// Query heads.
        pub heads: i32,
        /// Key/value heads.
        pub kv_heads: i32,
        /// Factor of the scores.
        pub scale: f32,
    }
}

parameters! {
    /// A launch of the backward pass's kernels.
    pub struct AttentionBackward {
        /// Address of the gradient of `qk`, written.
        pub dqk: u64,
        /// Address of the gradient of `qkv`, whose v columns are written.
        pub dqkv: u64,
        /// Address of the row sums of dout o out, f32 [heads, tokens].
        pub delta: u64,
        /// Address of rotated queries and keys.
        pub qk: u64,
        /// Address of the projections.
        pub qkv: u64,
        /// Address of the forward pass's result.
        pub out: u64,
        /// Address of its gradient.
        pub dout: u64,
        /// Address of the log-sum-exp.
        pub lse: u64,
        /// Address of the pieces of work.
        pub work: u64,
        /// Tokens.
        pub tokens: i32,
        /// Query heads.
        pub heads: i32,
        /// Key/value heads.
        pub kv_heads: i32,
        /// Factor of the scores.
        pub scale: f32,
    }
}

/// The kernel for heads of 64 or of 128.
///
/// # Panics
/// For other head sizes, which are refused when a run is planned.
pub(in super::super) fn by_head_size(head_dim: usize, kernels: [&'static str; 2]) -> &'static str {
    let at = HEAD_SIZES.iter().position(|d| *d == head_dim);
    kernels[at.unwrap_or_else(|| panic!("no kernels for heads of {head_dim}"))]
}

fn launch(blocks: usize, shared_bytes: usize) -> Launch {
    Launch { grid: [blocks as u32, 1, 1], threads: 128, shared_bytes: shared_bytes as u32 }
}

fn pieces(work: Indices<'_>) -> usize {
    work.len() / 3
}

pub(super) fn forward(
    cuda: &mut Cuda,
    p: &Attention,
    segments: &Segments<'_>,
    [qk, qkv]: [Region; 2],
    [out, lse]: [Region; 2],
) {
    let work = segments.work[0];
    let params = AttentionForward {
        out: cuda.address(out),
        lse: cuda.address(lse),
        qk: cuda.address(qk),
        qkv: cuda.address(qkv),
        work: cuda.address(work.copy),
        tokens: (lse.len / p.heads) as i32,
        heads: p.heads as i32,
        kv_heads: p.kv_heads as i32,
        scale: p.scale,
    };
    let name = by_head_size(p.head_dim, ["attention_forward_d64", "attention_forward_d128"]);
    cuda.launch(name, launch(pieces(work) * p.heads, 768 * p.head_dim), &params);
}

pub(super) fn backward(cuda: &mut Cuda, p: &Attention, segments: &Segments<'_>, o: &Backward) {
    let (d, tokens) = (p.head_dim, o.lse.len / p.heads);
    let [_, keys, queries] = segments.work;
    let mut params = AttentionBackward {
        dqk: cuda.address(o.dqk),
        dqkv: cuda.address(o.dqkv),
        delta: cuda.address(o.delta),
        qk: cuda.address(o.qk),
        qkv: cuda.address(o.qkv),
        out: cuda.address(o.out),
        dout: cuda.address(o.dout),
        lse: cuda.address(o.lse),
        work: cuda.address(keys.copy),
        tokens: tokens as i32,
        heads: p.heads as i32,
        kv_heads: p.kv_heads as i32,
        scale: p.scale,
    };
    let name = by_head_size(d, ["attention_delta_d64", "attention_delta_d128"]);
    let lanes = tokens * p.heads * (d / 8);
    cuda.launch(name, Launch { threads: 256, ..launch(lanes.div_ceil(256), 0) }, &params);
    let name = by_head_size(d, ["attention_keys_d64", "attention_keys_d128"]);
    cuda.launch(name, launch(pieces(keys) * p.kv_heads, 768 * d + 1024), &params);
    params.work = cuda.address(queries.copy);
    let name = by_head_size(d, ["attention_queries_d64", "attention_queries_d128"]);
    cuda.launch(name, launch(pieces(queries) * p.heads, 768 * d), &params);
}
