//! Rotation and head norm on CUDA: `kernels/op/rope.cu`.

use super::Rope;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::device::{Indices, Region};
use crate::ops::attention::cuda::{ByHeadSize, by_head_size};

/// The kernels.
pub const KERNELS: Kernels = Kernels {
    kernels: &[&FORWARD[0], &FORWARD[1], &BACKWARD[0], &BACKWARD[1]],
    shared: &[("rope", "THREADS", THREADS as usize), ("rope", "LANE_VALUES", LANE_VALUES)],
};

const THREADS: u32 = 256;

/// Values of a head that a lane turns.
const LANE_VALUES: usize = 4;

static FORWARD: ByHeadSize<RopeParams> = [
    Kernel::new("rope", "rope_forward_d64", THREADS, 0),
    Kernel::new("rope", "rope_forward_d128", THREADS, 0),
];
static BACKWARD: ByHeadSize<RopeParams> = [
    Kernel::new("rope", "rope_backward_d64", THREADS, 0),
    Kernel::new("rope", "rope_backward_d128", THREADS, 0),
];

parameters! {
    /// A launch of `rope_forward_*` or `rope_backward_*`.
    pub struct RopeParams {
        /// Address of the projections, bf16 [tokens, (heads + 2 kv_heads) D].
        pub qkv: u64,
        /// Address of the rotated queries and keys, or their gradient, bf16 [tokens, (heads + kv_heads) D].
        pub qk: u64,
        /// Backward: address of the gradient of `qkv`, whose q and k columns are written.
        pub dqkv: u64,
        /// Address of cosines and sines, f32 [positions, D / 2, 2].
        pub table: u64,
        /// Address of the positions, u32 `[tokens]`.
        pub positions: u64,
        /// Address of the norm weight of the queries, f32 `[D]`, or 0.
        pub q_weight: u64,
        /// The same of the keys.
        pub k_weight: u64,
        /// Tokens.
        pub tokens: i32,
        /// Query heads.
        pub heads: i32,
        /// Key/value heads.
        pub kv_heads: i32,
        /// Added to the norm's mean square.
        pub eps: f32,
    }
}

fn run(
    cuda: &mut Cuda,
    kernels: &ByHeadSize<RopeParams>,
    p: &Rope,
    positions: Indices<'_>,
    regions: [Region; 3],
) {
    let [qkv, qk, dqkv] = regions;
    let params = RopeParams {
        qkv: cuda.address(qkv),
        qk: cuda.address(qk),
        dqkv: cuda.address(dqkv),
        table: cuda.address(p.table),
        positions: cuda.address(positions.copy),
        q_weight: cuda.address_or_null(p.norm.map(|n| n.q)),
        k_weight: cuda.address_or_null(p.norm.map(|n| n.k)),
        tokens: positions.len() as i32,
        heads: p.heads as i32,
        kv_heads: p.kv_heads as i32,
        eps: p.norm.map_or(0.0, |n| n.eps),
    };
    let lanes = positions.len() * (p.heads + p.kv_heads) * (p.head_dim / LANE_VALUES);
    let grid = [lanes.div_ceil(THREADS as usize) as u32, 1, 1];
    cuda.launch(by_head_size(p.head_dim, kernels), grid, &params);
}

pub(super) fn forward(cuda: &mut Cuda, p: &Rope, qkv: Region, positions: Indices<'_>, qk: Region) {
    run(cuda, &FORWARD, p, positions, [qkv, qk, qkv]);
}

pub(super) fn backward(
    cuda: &mut Cuda,
    p: &Rope,
    qkv: Region,
    positions: Indices<'_>,
    dqk: Region,
    dqkv: Region,
) {
    run(cuda, &BACKWARD, p, positions, [qkv, dqk, dqkv]);
}
