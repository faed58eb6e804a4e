//! Attention on CUDA: `kernels/op/attention_forward.cu` and `attention_backward.cu`.

use super::{Attention, Backward, Segments, WORK_ROWS};
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::device::{Indices, Region};

/// The kernels.
pub const KERNELS: Kernels = Kernels {
    kernels: &[&FORWARD[0], &FORWARD[1], &DELTA[0], &DELTA[1], &KEYS[0], &KEYS[1], &QUERIES[0], &QUERIES[1]],
    shared: &[
        ("attention_forward", "QUERIES", WORK_ROWS[0] as usize),
        ("attention_backward", "STEP", WORK_ROWS[1] as usize),
        ("attention_backward", "STEP", WORK_ROWS[2] as usize),
        ("attention_backward", "DELTA_THREADS", DELTA_THREADS as usize),
    ],
};

/// Kernels for the head sizes of [`Cuda::CAPABILITIES`], in their order.
pub(in crate::ops) type ByHeadSize<P> = [Kernel<P>; 2];

static FORWARD: ByHeadSize<AttentionForward> = [
    Kernel::new("attention_forward", "attention_forward_d64", 128, 768 * 64),
    Kernel::new("attention_forward", "attention_forward_d128", 128, 768 * 128),
];
static DELTA: ByHeadSize<AttentionBackward> = [
    Kernel::new("attention_backward", "attention_delta_d64", DELTA_THREADS, 0),
    Kernel::new("attention_backward", "attention_delta_d128", DELTA_THREADS, 0),
];
static KEYS: ByHeadSize<AttentionBackward> = [
    Kernel::new("attention_backward", "attention_keys_d64", 128, 768 * 64 + 1024),
    Kernel::new("attention_backward", "attention_keys_d128", 128, 768 * 128 + 1024),
];
static QUERIES: ByHeadSize<AttentionBackward> = [
    Kernel::new("attention_backward", "attention_queries_d64", 128, 768 * 64),
    Kernel::new("attention_backward", "attention_queries_d128", 128, 768 * 128),
];

const DELTA_THREADS: u32 = 256;

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

/// The kernel for heads of `head_dim`.
///
/// # Panics
/// Where there is none: other head sizes are refused when a run is planned.
pub(in crate::ops) fn by_head_size<P>(head_dim: usize, kernels: &ByHeadSize<P>) -> &Kernel<P> {
    let sizes = Cuda::CAPABILITIES.head_sizes.unwrap_or_default();
    let at = sizes.iter().position(|d| *d == head_dim);
    &kernels[at.unwrap_or_else(|| panic!("no kernels for heads of {head_dim}"))]
}

fn blocks(count: usize) -> [u32; 3] {
    [count as u32, 1, 1]
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
    cuda.launch(by_head_size(p.head_dim, &FORWARD), blocks(pieces(work) * p.heads), &params);
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
    let lanes = tokens * p.heads * (d / 8);
    cuda.launch(by_head_size(d, &DELTA), blocks(lanes.div_ceil(DELTA_THREADS as usize)), &params);
    cuda.launch(by_head_size(d, &KEYS), blocks(pieces(keys) * p.kv_heads), &params);
    params.work = cuda.address(queries.copy);
    cuda.launch(by_head_size(d, &QUERIES), blocks(pieces(queries) * p.heads), &params);
}
