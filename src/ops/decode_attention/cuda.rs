//! Attention over kept keys and values on CUDA: `kernels/op/decode_attention.cu`.

use super::{Cache, Seen};
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::device::{Indices, Region};
use crate::ops::attention::Attention;
use crate::ops::attention::cuda::{ByHeadSize, by_head_size};

/// The kernels.
pub const KERNELS: Kernels = Kernels {
    kernels: &[&APPEND, &SCALE, &ATTEND[0], &ATTEND[1]],
    shared: &[("decode_attention", "THREADS", THREADS as usize)],
};

const THREADS: u32 = 256;

static APPEND: Kernel<DecodeParams> = Kernel::new("decode_attention", "decode_append", THREADS, 0);
static SCALE: Kernel<DecodeParams> = Kernel::new("decode_attention", "decode_scale", THREADS, 0);
static ATTEND: ByHeadSize<DecodeParams> = [
    Kernel::new("decode_attention", "decode_attend_d64", 128, 20 * 64 + 32),
    Kernel::new("decode_attention", "decode_attend_d128", 128, 20 * 128 + 32),
];

parameters! {
    /// A launch of the kernels of `decode_attention.cu`; each reads a part.
    pub struct DecodeParams {
        /// Address of the result, bf16 [tokens, heads D].
        pub out: u64,
        /// Address of rotated queries and keys, bf16 [tokens, (heads + kv_heads) D].
        pub qk: u64,
        /// Address of the projections, whose v columns are read, bf16 [tokens, (heads + 2 kv_heads) D].
        pub qkv: u64,
        /// Address of the kept keys, bf16 [rows, kv_heads D].
        pub k: u64,
        /// Address of the kept values.
        pub v: u64,
        /// Address of u32: rows of the cache, positions, or runs.
        pub places: u64,
        /// Address of the queries' factors, f32.
        pub table: u64,
        /// Token rows.
        pub tokens: i32,
        /// Query heads.
        pub heads: i32,
        /// Key/value heads.
        pub kv_heads: i32,
        /// Head size.
        pub head_dim: i32,
        /// Factor of the scores.
        pub scale: f32,
        /// Zero.
        pub reserved: i32,
    }
}

/// Parameters with the shapes of `p` and what all kernels read.
fn params(cuda: &Cuda, p: &Attention, qk: Region, places: Indices<'_>, tokens: usize) -> DecodeParams {
    DecodeParams {
        qk: cuda.address(qk),
        places: cuda.address(places.copy),
        tokens: tokens as i32,
        heads: p.heads as i32,
        kv_heads: p.kv_heads as i32,
        head_dim: p.head_dim as i32,
        scale: p.scale,
        ..DecodeParams::default()
    }
}

/// A thread for eight elements.
fn in_eights(elements: usize) -> [u32; 3] {
    [(elements / 8).div_ceil(THREADS as usize) as u32, 1, 1]
}

pub(super) fn append(cuda: &mut Cuda, p: &Attention, qk: Region, qkv: Region, to: Indices<'_>, cache: Cache) {
    let params = DecodeParams {
        qkv: cuda.address(qkv),
        k: cuda.address(cache.k),
        v: cuda.address(cache.v),
        ..params(cuda, p, qk, to, to.len())
    };
    cuda.launch(&APPEND, in_eights(to.len() * p.kv_heads * p.head_dim), &params);
}

pub(super) fn forward(
    cuda: &mut Cuda,
    p: &Attention,
    qk: Region,
    seen: &Seen<'_>,
    cache: Cache,
    out: Region,
) {
    let tokens = seen.list.len();
    let params = DecodeParams {
        out: cuda.address(out),
        k: cuda.address(cache.k),
        v: cuda.address(cache.v),
        ..params(cuda, p, qk, seen.words, tokens)
    };
    cuda.launch(by_head_size(p.head_dim, &ATTEND), [p.heads as u32, tokens as u32, 1], &params);
}

pub(super) fn scale_queries(
    cuda: &mut Cuda,
    p: &Attention,
    table: Region,
    positions: Indices<'_>,
    qk: Region,
) {
    let table = cuda.address(table);
    let params = DecodeParams { table, ..params(cuda, p, qk, positions, positions.len()) };
    cuda.launch(&SCALE, in_eights(positions.len() * p.heads * p.head_dim), &params);
}
