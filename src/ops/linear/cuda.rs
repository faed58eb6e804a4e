//! Linear layers with adapters on CUDA: the products of `kernels/op/linear.cu`, dropped inputs, and the adapters' own
//! gradients and copies of `kernels/op/linear_adapters.cu`.

use super::{Backward, Dropout, Forward, Group, Linear, Lora, Packing, SPLIT_TOKENS, adapters};
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};

/// The kernels.
pub const KERNELS: Kernels = Kernels {
    kernels: &[&NT[0], &NT[1], &NT[2], &NN[0], &NN[1], &NN[2], &PACK, &DROP, &GRADIENT_PARTS, &GRADIENT_SUMS],
    shared: &[
        ("linear", "MAX_OUTPUTS", MAX_OUTPUTS),
        ("linear", "MAX_TERMS", MAX_TERMS),
        ("linear", "ROWS", ROWS as usize),
        ("linear", "TOGETHER", TOGETHER as usize),
        ("linear_adapters", "MAX_JOBS", MAX_JOBS),
        ("linear_adapters", "TILE", TILE),
        ("linear_adapters", "THREADS", THREADS as usize),
        ("linear_adapters", "PACK_COLUMNS", PACK_COLUMNS),
    ],
};

/// The products: tiles of 64, 128 and 256 columns.
static NT: [Kernel<LinearParams>; 3] =
    [product("linear_nt_64", 64), product("linear_nt_128", 128), product("linear_nt_256", 256)];
static NN: [Kernel<LinearParams>; 3] =
    [product("linear_nn_64", 64), product("linear_nn_128", 128), product("linear_nn_256", 256)];

/// Four stages of slices of 32 bf16 values, of both operands.
const fn product(name: &'static str, columns: u32) -> Kernel<LinearParams> {
    Kernel::new("linear", name, 256, 4 * 2 * 32 * (ROWS + columns))
}

static PACK: Kernel<PackParams> = Kernel::new("linear_adapters", "adapters_pack", THREADS, 0);
static DROP: Kernel<DropParams> = Kernel::new("linear_adapters", "adapters_drop", THREADS, 0);
static GRADIENT_PARTS: Kernel<GradientParams> =
    Kernel::new("linear_adapters", "adapters_gradient_parts", 128, 3 * 2 * 64 * 128);
static GRADIENT_SUMS: Kernel<GradientParams> =
    Kernel::new("linear_adapters", "adapters_gradient_sums", THREADS, 0);

/// Threads of the kernels for adapters that go element by element.
const THREADS: u32 = 256;
/// Rows and columns of a tile of an adapter's gradient.
const TILE: usize = 64;
/// Integers of an entry of the table of copies.
const PACK_COLUMNS: usize = 6;
/// Rows of a product's tile.
const ROWS: u32 = 128;
/// Tiles of rows that are taken together.
const TOGETHER: u32 = 8;

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

/// Outputs of a launch; more take several.
const MAX_OUTPUTS: usize = 16;
/// Terms of a launch: of as many layers and their adapters.
const MAX_TERMS: usize = 2 * MAX_OUTPUTS;

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

/// Gradients of one launch; more take several.
const MAX_JOBS: usize = 2 * MAX_OUTPUTS;

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

/// Kernel and grid of a product with outputs of at most `columns` columns. A function of the shape alone: wide tiles
/// read less, narrow ones waste less where there is not even one wide tile.
fn kernel(
    right: Right,
    rows: usize,
    columns: usize,
    outputs: usize,
) -> (&'static Kernel<LinearParams>, [u32; 3]) {
    let (at, tile) = match columns {
        ..=64 => (0, 64),
        65..256 => (1, 128),
        _ => (2, 256),
    };
    let kernels = if right == Right::Nt { &NT } else { &NN };
    let grid =
        [TOGETHER * outputs as u32, columns.div_ceil(tile) as u32, (rows as u32).div_ceil(TOGETHER * ROWS)];
    (&kernels[at], grid)
}

/// Queues the product of `rows` rows that `params` describes.
pub(in crate::ops) fn multiply(cuda: &mut Cuda, right: Right, rows: usize, params: &LinearParams) {
    let outputs = params.outputs.iter().take_while(|o| o.count > 0);
    let columns = outputs.clone().map(|o| o.columns as usize).max().unwrap_or(0);
    let (kernel, grid) = kernel(right, rows, columns, outputs.count());
    cuda.launch(kernel, grid, params);
}

/// Collects the terms and outputs of a product, and queues it: as several launches where it has more outputs than one
/// takes.
struct Builder {
    right: Right,
    params: LinearParams,
    terms: usize,
    outputs: usize,
}

impl Builder {
    /// A product written to `y`, rows of `stride` elements.
    fn new(cuda: &Cuda, right: Right, y: Region, stride: usize) -> Self {
        let params = LinearParams {
            y: cuda.address(y),
            rows: (y.len / stride) as i32,
            stride: stride as i32,
            ..LinearParams::plain()
        };
        Builder { right, params, terms: 0, outputs: 0 }
    }

    /// Begins an output of `columns` columns from `column` on.
    fn output(&mut self, cuda: &mut Cuda, column: usize, columns: usize, scale: f32, bias: u64) {
        if self.outputs == MAX_OUTPUTS {
            self.run(cuda);
        }
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

    /// Queues what was collected.
    fn run(&mut self, cuda: &mut Cuda) {
        multiply(cuda, self.right, self.params.rows as usize, &self.params);
        self.params.outputs = [Output::default(); MAX_OUTPUTS];
        (self.terms, self.outputs) = (0, 0);
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
    cuda.launch(&DROP, [(x.len / 8).div_ceil(THREADS as usize) as u32, 1, 1], &params);
    out
}

pub(super) fn forward(cuda: &mut Cuda, g: &Group, o: &Forward) {
    let (adapters, width) = (adapters(g), g.rank_sum());
    if width > 0 {
        let input = dropped(cuda, o.dropout.as_ref(), o.x, o.scratch);
        let mut s = Builder::new(cuda, Right::Nt, o.s, width);
        for (_, lora, first) in &adapters {
            s.output(cuda, *first, lora.width, lora.scale, 0);
            s.term([cuda.address(input), cuda.address(lora.packed[0])], [g.input; 2], g.input);
        }
        s.run(cuda);
    }
    let mut y = Builder::new(cuda, Right::Nt, o.y, g.output);
    y.params.residual = cuda.address_or_null(o.residual);
    let mut first = 0;
    for layer in &g.layers {
        let bias = cuda.address_or_null(layer.bias);
        y.output(cuda, layer.column, layer.weight.rows(), 1.0, bias);
        y.term([cuda.address(o.x), cuda.address(layer.weight.copy())], [g.input; 2], g.input);
        if let Some(lora) = &layer.lora {
            let operands = [column(cuda, o.s, first), cuda.address(lora.packed[1])];
            y.term(operands, [width, lora.width], lora.width);
            first += lora.width;
        }
    }
    y.run(cuda);
}

pub(super) fn backward(cuda: &mut Cuda, g: &Group, o: &Backward) {
    let (adapters, width) = (adapters(g), g.rank_sum());
    if width > 0 {
        let mut ds = Builder::new(cuda, Right::Nn, o.ds, width);
        for (layer, lora, first) in &adapters {
            ds.output(cuda, *first, lora.width, lora.scale, 0);
            let operands = [column(cuda, o.dy, layer.column), cuda.address(lora.packed[1])];
            ds.term(operands, [g.output, lora.width], layer.weight.rows());
        }
        ds.run(cuda);
        adapter_gradients(cuda, g, o, &adapters);
    }
    let Some(dx) = o.dx else { return };
    let mut adapters = &adapters[..];
    // One launch for all layers that it takes; those of a larger group add to what is there, rounded in between.
    for (part, layers) in g.layers.chunks(MAX_OUTPUTS).enumerate() {
        let own =
            adapters.split_off(..layers.iter().filter(|l| l.lora.is_some()).count()).unwrap_or_default();
        let mut product = Builder::new(cuda, Right::Nn, dx, g.input);
        product.output(cuda, 0, g.input, 1.0, 0);
        product.params.residual = if part > 0 { cuda.address(dx) } else { 0 };
        for (_, lora, first) in own {
            let operands = [column(cuda, o.ds, *first), cuda.address(lora.packed[0])];
            product.term(operands, [width, g.input], lora.width);
        }
        if let Some(dropout) = o.dropout.filter(|_| !own.is_empty()) {
            product.params.mask(cuda, &dropout, own.len());
        }
        for layer in layers {
            let operands = [column(cuda, o.dy, layer.column), cuda.address(layer.weight.copy())];
            product.term(operands, [g.output, g.input], layer.weight.rows());
        }
        product.run(cuda);
    }
}

/// `dB += dyᵀ·s` and `dA += dsᵀ·drop(x)`: parts over [`SPLIT_TOKENS`] tokens each, then their sums in order.
fn adapter_gradients(cuda: &mut Cuda, g: &Group, o: &Backward, adapters: &[(&Linear, Lora, usize)]) {
    let width = g.rank_sum();
    let splits = (o.dy.len / g.output).div_ceil(SPLIT_TOKENS);
    let input = dropped(cuda, o.dropout.as_ref(), o.x, o.scratch);
    let mut jobs = Vec::with_capacity(2 * adapters.len());
    let mut used = 0;
    let mut push = |job: GradientJob| {
        let size = splits * job.rows as usize * job.columns as usize;
        jobs.push(GradientJob { parts: cuda.address(o.partial.slice(used, size)), ..job });
        used += size;
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
    for jobs in jobs.chunks(MAX_JOBS) {
        launch_gradients(cuda, jobs, o.dy.len / g.output);
    }
}

/// Parts of at most [`MAX_JOBS`] gradients over `tokens` tokens, and their sums.
fn launch_gradients(cuda: &mut Cuda, jobs: &[GradientJob], tokens: usize) {
    let mut params =
        GradientParams { tokens: tokens as i32, split: SPLIT_TOKENS as i32, ..GradientParams::default() };
    params.jobs[..jobs.len()].copy_from_slice(jobs);
    let most = |size: &dyn Fn(&GradientJob) -> usize| jobs.iter().map(size).max().unwrap_or(0) as u32;
    let tiles = most(&|j| (j.rows as usize).div_ceil(TILE) * (j.columns as usize).div_ceil(TILE));
    let blocks = most(&|j| (j.rows as usize * j.rank as usize).div_ceil(THREADS as usize));
    let splits = tokens.div_ceil(SPLIT_TOKENS) as u32;
    cuda.launch(&GRADIENT_PARTS, [tiles, splits, jobs.len() as u32], &params);
    cuda.launch(&GRADIENT_SUMS, [blocks, 1, jobs.len() as u32], &params);
}

pub(super) fn pack(cuda: &mut Cuda, p: &Packing<'_>) {
    let matrices = (p.table.len() / PACK_COLUMNS) as u32;
    let params = PackParams {
        packed: cuda.address(p.packed),
        params: cuda.address(p.params),
        table: cuda.address(p.table.copy),
    };
    cuda.launch(&PACK, [64, matrices, 1], &params);
}
