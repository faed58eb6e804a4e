//! Linear layers with adapters on CUDA: the products of `kernels/op/linear.cu`, dropped inputs, and the adapters' own
//! gradients and copies of `kernels/op/linear_adapters.cu`.

use super::{Backward, Dropout, Forward, Group, Linear, Lora, Packing, SPLIT_TOKENS, adapters};
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Family, Launch};

/// The products.
pub const PRODUCTS: Family = Family {
    image: "linear",
    kernels: &[
        "linear_nt_64",
        "linear_nt_128",
        "linear_nt_256",
        "linear_nn_64",
        "linear_nn_128",
        "linear_nn_256",
    ],
};

/// What else adapters need.
pub const ADAPTERS: Family = Family {
    image: "linear_adapters",
    kernels: &["adapters_pack", "adapters_drop", "adapters_gradient_parts", "adapters_gradient_sums"],
};

parameters! {
    /// One product of a sum; strides and depth in elements, multiples of 8.
    pub struct Term {
        /// Address of A, `[rows, depth]`.
        pub a: u64,
        /// Address of B: `[columns, depth]` (NT) or `[depth, columns]` (NN).
        pub b: u64,
        /// Elements from a row of A to the next.
        pub a_stride: i32,
        /// Elements from a row of B to the next.
        pub b_stride: i32,
        /// Inner dimension.
        pub depth: i32,
        /// Zero.
        pub reserved: i32,
    }
}

parameters! {
    /// One output: a range of columns of the result.
    pub struct Output {
        /// Address of f32 `[columns]`, or 0.
        pub bias: u64,
        /// First term.
        pub first: i32,
        /// Number of terms.
        pub count: i32,
        /// Columns, a multiple of 8.
        pub columns: i32,
        /// First column in the result's rows.
        pub column: i32,
        /// Factor of the sum.
        pub scale: f32,
        /// Zero.
        pub reserved: i32,
    }
}

/// Outputs of a launch.
pub const MAX_OUTPUTS: usize = 3;
/// Terms of a launch.
pub const MAX_TERMS: usize = 8;

parameters! {
    /// A launch of `linear_nt_*` or `linear_nn_*`.
    pub struct LinearParams {
        /// All outputs' terms.
        pub terms: [Term; MAX_TERMS],
        /// The outputs.
        pub outputs: [Output; MAX_OUTPUTS],
        /// Address of the result [rows, stride], bf16 or f32.
        pub y: u64,
        /// Address of what is added, bf16 [rows, stride], or 0.
        pub residual: u64,
        /// Token rows.
        pub rows: i32,
        /// Elements of a row of the result.
        pub stride: i32,
        /// Whether the result is f32.
        pub wide: i32,
        /// The term before which the sum is masked by the dropout; beyond the count: never.
        pub pause: i32,
        /// Random words below it drop their element.
        pub limit: u32,
        /// Factor of the elements that stay.
        pub keep: f32,
        /// Key of the mask.
        pub key: [u32; 2],
        /// Address of the mask's last two counter words.
        pub clock: u64,
        /// The counter word before them.
        pub site: u32,
        /// Zero.
        pub reserved: i32,
    }
}

impl LinearParams {
    /// A product without dropout.
    #[must_use]
    pub fn plain() -> Self {
        LinearParams { pause: i32::MAX, ..Self::default() }
    }

    /// Masks the sum before term `pause`.
    fn mask(&mut self, cuda: &Cuda, dropout: &Dropout, pause: usize) {
        self.pause = pause as i32;
        self.limit = dropout.limit();
        self.keep = dropout.keep();
        self.key = dropout.key;
        self.site = dropout.counter[0];
        self.clock = cuda.address(dropout.clock);
    }
}

parameters! {
    /// A launch of `adapters_drop`.
    pub struct DropParams {
        /// Address of the result, bf16.
        pub out: u64,
        /// Address of the input, bf16.
        pub x: u64,
        /// Address of the mask's last two counter words.
        pub clock: u64,
        /// Elements, a multiple of 8.
        pub count: u64,
        /// Key of the mask.
        pub key: [u32; 2],
        /// The counter word before those of `clock`.
        pub site: u32,
        /// Random words below it drop their element.
        pub limit: u32,
        /// Factor of the elements that stay.
        pub keep: f32,
        /// Zero.
        pub reserved: i32,
    }
}

parameters! {
    /// A launch of `adapters_pack`.
    pub struct PackParams {
        /// Address of the copies, bf16.
        pub packed: u64,
        /// Address of the flat parameters, f32.
        pub params: u64,
        /// Address of the table, six u32 for each matrix.
        pub table: u64,
    }
}

parameters! {
    /// One matrix's gradient: the sum over tokens of left^T right.
    pub struct GradientJob {
        /// Address of [tokens, rows], bf16.
        pub left: u64,
        /// Address of [tokens, columns], bf16.
        pub right: u64,
        /// Address of the parts, f32 [splits, rows, columns].
        pub parts: u64,
        /// Address of the gradient, f32, added to: [rows, rank], or [rank, rows] when `transposed`.
        pub gradient: u64,
        /// Elements from a row of `left` to the next.
        pub left_stride: i32,
        /// Elements from a row of `right` to the next.
        pub right_stride: i32,
        /// Rows of the sum, a multiple of 8.
        pub rows: i32,
        /// Columns of the sum, a multiple of 8.
        pub columns: i32,
        /// Columns that count.
        pub rank: i32,
        /// Whether the gradient lies transposed.
        pub transposed: i32,
    }
}

/// Gradients of one launch.
pub const MAX_JOBS: usize = 2 * MAX_OUTPUTS;

parameters! {
    /// A launch of `adapters_gradient_parts` or `adapters_gradient_sums`.
    pub struct GradientParams {
        /// The gradients.
        pub jobs: [GradientJob; MAX_JOBS],
        /// Tokens.
        pub tokens: i32,
        /// Tokens of a part.
        pub split: i32,
    }
}

/// Which way B lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// [columns, depth].
    Nt,
    /// [depth, columns].
    Nn,
}

const ROWS: u32 = 128;
const TOGETHER: u32 = 8;
const STAGES: u32 = 4;
const SLICE_BYTES: u32 = 64;

/// Kernel and shape of a launch with outputs of at most `columns` columns. A function of the shape alone: wide tiles
/// read less, narrow ones waste less where there is not even one wide tile.
#[must_use]
pub fn kernel(right: Right, rows: usize, columns: usize, outputs: usize) -> (&'static str, Launch) {
    let tile: u32 = match columns {
        ..=64 => 64,
        65..256 => 128,
        _ => 256,
    };
    let name = match (right, tile) {
        (Right::Nt, 64) => "linear_nt_64",
        (Right::Nt, 128) => "linear_nt_128",
        (Right::Nt, _) => "linear_nt_256",
        (Right::Nn, 64) => "linear_nn_64",
        (Right::Nn, 128) => "linear_nn_128",
        (Right::Nn, _) => "linear_nn_256",
    };
    let grid =
        [TOGETHER * outputs as u32, (columns as u32).div_ceil(tile), (rows as u32).div_ceil(TOGETHER * ROWS)];
    (name, Launch { grid, threads: 256, shared_bytes: STAGES * SLICE_BYTES * (ROWS + tile) })
}

/// Queues the product of `rows` rows that `params` describes.
pub(in super::super) fn multiply(cuda: &mut Cuda, right: Right, rows: usize, params: &LinearParams) {
    let outputs = params.outputs.iter().take_while(|o| o.count > 0);
    let columns = outputs.clone().map(|o| o.columns as usize).max().unwrap_or(0);
    let (name, launch) = kernel(right, rows, columns, outputs.count());
    cuda.launch(name, launch, params);
}

/// Collects the terms and outputs of a product.
struct Builder {
    params: LinearParams,
    terms: usize,
    outputs: usize,
}

impl Builder {
    /// A product written to `y`, rows of `stride` elements.
    fn new(cuda: &Cuda, y: Region, stride: usize) -> Self {
        let params = LinearParams {
            y: cuda.address(y),
            rows: (y.len / stride) as i32,
            stride: stride as i32,
            ..LinearParams::plain()
        };
        Builder { params, terms: 0, outputs: 0 }
    }

    /// Begins an output of `columns` columns from `column` on.
    fn output(&mut self, column: usize, columns: usize, scale: f32, bias: u64) {
        self.params.outputs[self.outputs] = Output {
            bias,
            first: self.terms as i32,
            count: 0,
            columns: columns as i32,
            column: column as i32,
            scale,
            reserved: 0,
        };
        self.outputs += 1;
    }

    /// Adds to the output begun last the product of `depth` columns of a matrix at `a` and the one at `b`.
    fn term(&mut self, [a, b]: [u64; 2], [a_stride, b_stride]: [usize; 2], depth: usize) {
        self.params.terms[self.terms] = Term {
            a,
            b,
            a_stride: a_stride as i32,
            b_stride: b_stride as i32,
            depth: depth as i32,
            reserved: 0,
        };
        self.terms += 1;
        self.params.outputs[self.outputs - 1].count += 1;
    }

    fn run(self, cuda: &mut Cuda, right: Right) {
        multiply(cuda, right, self.params.rows as usize, &self.params);
    }
}

/// Address of column `column` of a bf16 region's first row.
fn column(cuda: &Cuda, region: Region, column: usize) -> u64 {
    cuda.address(region) + 2 * column as u64
}

/// The adapters' input: `x`, or its dropped copy in `scratch`.
fn dropped(cuda: &mut Cuda, dropout: Option<&Dropout>, x: Region, scratch: Region) -> Region {
    let Some(dropout) = dropout else { return x };
    let out = scratch.slice(0, x.len);
    let params = DropParams {
        out: cuda.address(out),
        x: cuda.address(x),
        clock: cuda.address(dropout.clock),
        count: x.len as u64,
        key: dropout.key,
        site: dropout.counter[0],
        limit: dropout.limit(),
        keep: dropout.keep(),
        reserved: 0,
    };
    let blocks = (x.len / 8).div_ceil(256) as u32;
    cuda.launch("adapters_drop", Launch { grid: [blocks, 1, 1], threads: 256, shared_bytes: 0 }, &params);
    out
}

pub(super) fn forward(cuda: &mut Cuda, g: &Group, o: &Forward) {
    let (adapters, width) = (adapters(g), g.rank_sum());
    if width > 0 {
        let input = dropped(cuda, o.dropout.as_ref(), o.x, o.scratch);
        let mut s = Builder::new(cuda, o.s, width);
        for (_, lora, first) in &adapters {
            s.output(*first, lora.width, lora.scale, 0);
            s.term([cuda.address(input), cuda.address(lora.packed[0])], [g.input; 2], g.input);
        }
        s.run(cuda, Right::Nt);
    }
    let mut y = Builder::new(cuda, o.y, g.output);
    y.params.residual = cuda.address_or_null(o.residual);
    let mut first = 0;
    for layer in &g.layers {
        y.output(layer.column, layer.weight.rows(), 1.0, cuda.address_or_null(layer.bias));
        y.term([cuda.address(o.x), cuda.address(layer.weight.copy())], [g.input; 2], g.input);
        if let Some(lora) = &layer.lora {
            let operands = [column(cuda, o.s, first), cuda.address(lora.packed[1])];
            y.term(operands, [width, lora.width], lora.width);
            first += lora.width;
        }
    }
    y.run(cuda, Right::Nt);
}

pub(super) fn backward(cuda: &mut Cuda, g: &Group, o: &Backward) {
    let (adapters, width) = (adapters(g), g.rank_sum());
    if width > 0 {
        let mut ds = Builder::new(cuda, o.ds, width);
        for (layer, lora, first) in &adapters {
            ds.output(*first, lora.width, lora.scale, 0);
            let operands = [column(cuda, o.dy, layer.column), cuda.address(lora.packed[1])];
            ds.term(operands, [g.output, lora.width], layer.weight.rows());
        }
        ds.run(cuda, Right::Nn);
        adapter_gradients(cuda, g, o, &adapters);
    }
    let Some(dx) = o.dx else { return };
    let mut product = Builder::new(cuda, dx, g.input);
    product.output(0, g.input, 1.0, 0);
    for (_, lora, first) in &adapters {
        let operands = [column(cuda, o.ds, *first), cuda.address(lora.packed[0])];
        product.term(operands, [width, g.input], lora.width);
    }
    if let Some(dropout) = o.dropout.filter(|_| width > 0) {
        product.params.mask(cuda, &dropout, adapters.len());
    }
    for layer in &g.layers {
        let operands = [column(cuda, o.dy, layer.column), cuda.address(layer.weight.copy())];
        product.term(operands, [g.output, g.input], layer.weight.rows());
    }
    product.run(cuda, Right::Nn);
}

/// `dB += dyᵀ·s` and `dA += dsᵀ·drop(x)`: parts over [`SPLIT_TOKENS`] tokens each, then their sums in order.
fn adapter_gradients(cuda: &mut Cuda, g: &Group, o: &Backward, adapters: &[(&Linear, Lora, usize)]) {
    let (tokens, width) = (o.dy.len / g.output, g.rank_sum());
    let splits = tokens.div_ceil(SPLIT_TOKENS);
    let input = dropped(cuda, o.dropout.as_ref(), o.x, o.scratch);
    let mut params =
        GradientParams { tokens: tokens as i32, split: SPLIT_TOKENS as i32, ..GradientParams::default() };
    let (mut jobs, mut used, mut tiles, mut elements) = (0, 0, 0, 0);
    let mut push = |job: GradientJob| {
        let (rows, columns) = (job.rows as usize, job.columns as usize);
        let parts = cuda.address(o.partial.slice(used, splits * rows * columns));
        params.jobs[jobs] = GradientJob { parts, columns: columns as i32, ..job };
        jobs += 1;
        used += splits * rows * columns;
        tiles = tiles.max(rows.div_ceil(64) * columns.div_ceil(64));
        elements = elements.max(rows * job.rank as usize);
    };
    for (layer, lora, first) in adapters {
        let common =
            GradientJob { columns: lora.width as i32, rank: lora.rank as i32, ..GradientJob::default() };
        push(GradientJob {
            left: column(cuda, o.dy, layer.column),
            right: column(cuda, o.s, *first),
            gradient: cuda.address(lora.grad_b),
            left_stride: g.output as i32,
            right_stride: width as i32,
            rows: layer.weight.rows() as i32,
            ..common
        });
        push(GradientJob {
            left: cuda.address(input),
            right: column(cuda, o.ds, *first),
            gradient: cuda.address(lora.grad_a),
            left_stride: g.input as i32,
            right_stride: width as i32,
            rows: g.input as i32,
            transposed: 1,
            ..common
        });
    }
    let shape = |x: usize, y: usize, threads, shared_bytes| Launch {
        grid: [x as u32, y as u32, jobs as u32],
        threads,
        shared_bytes,
    };
    cuda.launch("adapters_gradient_parts", shape(tiles, splits, 128, 3 * 2 * 64 * 128), &params);
    cuda.launch("adapters_gradient_sums", shape(elements.div_ceil(256), 1, 256, 0), &params);
}

pub(super) fn pack(cuda: &mut Cuda, p: &Packing<'_>) {
    let matrices = (p.table.len() / 6) as u32;
    let params = PackParams {
        packed: cuda.address(p.packed),
        params: cuda.address(p.params),
        table: cuda.address(p.table.copy),
    };
    cuda.launch("adapters_pack", Launch { grid: [64, matrices, 1], threads: 256, shared_bytes: 0 }, &params);
}
