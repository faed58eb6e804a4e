//! Matrix products of the CPU device.
//!
//! Every element is a sum in one fixed order: within blocks of consecutive k as its [`Arithmetic`] says, the block sums
//! added in order, the products of an output in the order given. Threads, tiles and instruction sets choose who computes
//! an element and when, never how, so all give the same bits.

use super::buffer::Buffer;
use super::isa::{Isa, Job};
use super::kernel::{self, Arithmetic, BLOCK, Depth, LeftView, ROWS, RightPanel, Target, VECTORS};
use super::math::bf16;
use super::pack::{self, Part};
use super::simd::{Bf16, F16, F32, Form, Simd, Swapped};
use super::tasks::Threads;
use super::thin::{self, Weight};
use crate::device::Matrix;
use crate::element::Element;
use std::cell::RefCell;

/// Left factor [M, K], f32: element (i, k) is `values[i * row + k * step]`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub(super) values: &'a [f32],
    pub(super) row: usize,
    pub(super) step: usize,
}

impl<'a> Left<'a> {
    /// Rows of `stride` elements.
    #[must_use]
    pub fn new(values: &'a [f32], stride: usize) -> Self {
        Left { values, row: stride, step: 1 }
    }

    /// The transpose of a matrix with rows of `stride` elements.
    #[must_use]
    pub fn transposed(values: &'a [f32], stride: usize) -> Self {
        Left { values, row: 1, step: stride }
    }
}

/// Memory of a right factor.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Values(&'a [f32]),
    Weight(&'a [u8], Element),
    /// A weight that is not stored element after element: the part that is needed is widened first.
    Coded(&'a Matrix),
}

/// Right factor [K, N] in whatever form it lies in memory.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub(super) source: Source<'a>,
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

impl<'a> Right<'a> {
    /// f32 rows of `stride` elements, one for each k.
    #[must_use]
    pub fn new(values: &'a [f32], stride: usize) -> Self {
        Right { source: Source::Values(values), stride, transposed: false }
    }

    /// f32 rows of `stride` elements, one for each output column.
    #[must_use]
    pub fn transposed(values: &'a [f32], stride: usize) -> Self {
        Right { source: Source::Values(values), stride, transposed: true }
    }

    /// A frozen weight [out, in] summed over its rows (backward pass).
    #[must_use]
    pub fn weight(weight: &'a Matrix) -> Self {
        let source = match weight.encoding().plain() {
            Some(element) => Source::Weight(weight.bytes(), element),
            None => Source::Coded(weight),
        };
        Right { source, stride: weight.cols(), transposed: false }
    }

    /// A frozen weight [out, in] summed over its columns (forward pass).
    #[must_use]
    pub fn weight_transposed(weight: &'a Matrix) -> Self {
        Right { transposed: true, ..Self::weight(weight) }
    }
}

/// One product of a sum: columns `first .. first + depth` of a left factor, times a right factor.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// Index into the left factors.
    pub left: usize,
    /// First column of the left factor.
    pub first: usize,
    /// Length K of the sum.
    pub depth: usize,
    /// The right factor.
    pub right: Right<'a>,
}

/// A range of result columns: `scale · Σ terms + bias (+ residual)`.
pub struct Output<'a> {
    /// First column in the result.
    pub column: usize,
    /// Number of columns.
    pub columns: usize,
    /// The products, in the order they are summed.
    pub terms: Vec<Term<'a>>,
    /// Multiplies the sum.
    pub scale: f32,
    /// One value per column, added after the sum.
    pub bias: Option<&'a [f32]>,
}

/// Several output ranges that share rows and left factors, computed together.
pub struct Product<'a> {
    /// Rows M of the left factors and of the result.
    pub rows: usize,
    /// Left factors.
    pub lefts: &'a [Left<'a>],
    /// Ranges of result columns; they do not overlap.
    pub outputs: &'a [Output<'a>],
    /// Added last, with rows like the result's.
    pub residual: Option<&'a [f32]>,
    /// Adds to what the result holds, instead of starting from zero.
    pub accumulate: bool,
    /// Rounds the result to bf16 at last.
    pub rounds: bool,
}

/// f32 of packed left factors held at a time; more rows are computed in several rounds.
const PACKED: usize = 4 << 20;
/// Columns of a task at most: their packed block of k stays in the second-level cache.
const COLUMNS: usize = 192;
/// Multiply-adds below which waking other threads costs more than it saves.
const ALONE: usize = 1 << 20;
/// A left factor that meets fewer columns than this is read in place.
const PACK_COLUMNS: usize = 96;
/// A right factor that meets fewer rows than this is read in place, where its layout allows it.
const PACK_ROWS: usize = 32;

thread_local! {
    /// A task's packed right factor.
    static PANELS: RefCell<Buffer> = RefCell::new(Buffer::zeroed(pack::right_len(COLUMNS, BLOCK)));
    /// The part of a coded weight that a task packs next.
    static WIDENED: RefCell<Buffer> = RefCell::new(Buffer::zeroed(0));
}

/// What a product runs on.
pub struct Engine<'a> {
    /// Threads.
    pub threads: &'a Threads,
    /// Instruction set.
    pub isa: Isa,
    /// Of products with frozen weights; the others are f32.
    pub(super) arithmetic: Arithmetic,
    /// Packed left factors.
    pub(super) packed: &'a mut Buffer,
}

/// Columns of a left factor that some terms multiply.
struct Factor {
    left: usize,
    first: usize,
    depth: usize,
    /// Result columns of these terms.
    columns: usize,
    arithmetic: Arithmetic,
    read: Reading,
}

/// How tiles read a factor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    InPlace,
    /// Rows of [`Swapped`], for thin bf16 products.
    Rows,
    Panels,
}

impl Factor {
    /// f32 of packed memory for each row.
    fn packed_depth(&self, isa: Isa) -> usize {
        match self.read {
            Reading::InPlace => 0,
            Reading::Rows => Swapped::units(self.depth),
            Reading::Panels => {
                pack::left_units(self.depth, self.arithmetic == Arithmetic::Bf16, isa.multiplies_pairs())
            }
        }
    }
}

impl Engine<'_> {
    /// Computes `p` into `result`, rows of `stride` elements; columns of no output stay.
    ///
    /// # Panics
    /// When an operand is too short for the shapes, or outputs overlap.
    pub fn multiply(&mut self, p: &Product<'_>, result: &mut [f32], stride: usize) {
        if p.rows == 0 {
            return;
        }
        p.check(result.len(), stride);
        let factors = self.factors(p);
        let depth: usize = factors.iter().map(|f| f.packed_depth(self.isa)).sum();
        let round = (PACKED / depth.max(1)).next_multiple_of(8 * ROWS);
        self.packed.reserve(depth * round.min(p.rows.next_multiple_of(ROWS)));
        for first in (0..p.rows).step_by(round) {
            let rows = round.min(p.rows - first);
            let lefts: Vec<_> = p.lefts.iter().map(|left| left.after_rows(first)).collect();
            let views = self.pack(&lefts, &factors, rows);
            let residual = p.residual.map(|r| &r[first * stride..]);
            let result = Shared(result[first * stride..].as_mut_ptr());
            self.compute(&Round {
                p,
                weights: self.arithmetic,
                factors: &factors,
                rows,
                views,
                residual,
                result,
                stride,
            });
        }
    }

    /// The parts of left factors that terms read, each once.
    fn factors(&self, p: &Product<'_>) -> Vec<Factor> {
        let mut all: Vec<Factor> = Vec::new();
        for (output, term) in p.outputs.iter().flat_map(|o| o.terms.iter().map(move |t| (o, t))) {
            let arithmetic = term.arithmetic(self.arithmetic);
            let factor = match all.iter_mut().find(|f| f.serves(term, arithmetic)) {
                Some(factor) => factor,
                None => {
                    let (Term { left, first, depth, .. }, read) = (*term, Reading::InPlace);
                    all.push(Factor { left, first, depth, columns: 0, arithmetic, read });
                    all.last_mut().expect("it was just put there")
                }
            };
            factor.columns += output.columns;
        }
        for factor in &mut all {
            factor.read = match factor.arithmetic {
                Arithmetic::Bf16 if p.is_thin() => Reading::Rows,
                Arithmetic::Bf16 => Reading::Panels,
                Arithmetic::F32 if factor.columns < PACK_COLUMNS => Reading::InPlace,
                Arithmetic::F32 if p.lefts[factor.left].row == 1 || p.rows < ROWS => Reading::InPlace,
                Arithmetic::F32 => Reading::Panels,
            };
        }
        all
    }

    /// Packs the factors that are not read in place.
    fn pack(&mut self, lefts: &[Left<'_>], factors: &[Factor], rows: usize) -> Vec<LeftView> {
        let mut rest = &mut self.packed[..];
        let mut views = Vec::with_capacity(factors.len());
        for factor in factors {
            let left = &lefts[factor.left];
            let left = &Left { values: &left.values[factor.first * left.step..], ..*left };
            let (row, step) = (left.row, left.step);
            let units = factor.packed_depth(self.isa);
            let in_place =
                LeftView { base: left.values.as_ptr(), rows, panel: ROWS * row, row, step, packed: false };
            views.push(match factor.read {
                Reading::InPlace => in_place,
                Reading::Rows => {
                    let (packed, after) = rest.split_at_mut(rows * units);
                    rest = after;
                    for (i, to) in packed.chunks_exact_mut(units).enumerate() {
                        pack::left_row(left, i, factor.depth, to);
                    }
                    LeftView { base: packed.as_ptr(), row: units, step: 1, ..in_place }
                }
                Reading::Panels => {
                    let panels = rows.div_ceil(ROWS);
                    let (packed, after) = rest.split_at_mut(panels * ROWS * units);
                    rest = after;
                    let (to, isa) = (Shared(packed.as_mut_ptr()), self.isa);
                    // Packing an element costs about as much as eight multiply-adds.
                    spread(self.threads, 8 * packed.len(), panels, |index| {
                        let to = to.get().wrapping_add(index * ROWS * units);
                        isa.dispatch(PackLeft { left, rows, index, factor, units, to });
                    });
                    pack::packed_view(packed, rows, units)
                }
            });
        }
        views
    }

    fn compute(&self, round: &Round<'_>) {
        let tasks = round.tasks(self.threads.count());
        spread(self.threads, round.work(), tasks.len(), |i| {
            PANELS.with_borrow_mut(|panels| {
                WIDENED.with_borrow_mut(|widened| {
                    self.isa.dispatch(Compute { round, task: tasks[i], panels, widened });
                });
            });
        });
    }
}

impl Factor {
    fn serves(&self, term: &Term<'_>, arithmetic: Arithmetic) -> bool {
        (self.left, self.first, self.depth) == (term.left, term.first, term.depth)
            && self.arithmetic == arithmetic
    }
}

impl Term<'_> {
    /// Its arithmetic, where that of frozen weights is `weights`.
    fn arithmetic(&self, weights: Arithmetic) -> Arithmetic {
        match self.right.source {
            Source::Values(_) => Arithmetic::F32,
            Source::Weight(..) | Source::Coded(_) => weights,
        }
    }
}

/// Calls `f` for every index below `count`, on all threads when there is enough `work` (multiply-adds).
fn spread(threads: &Threads, work: usize, count: usize, f: impl Fn(usize) + Sync) {
    if work < ALONE {
        return (0..count).for_each(f);
    }
    threads.each(count, f);
}

/// A pointer that threads share; each writes its own part.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the pointer is only used for parts that no two threads share, while its owner is borrowed.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

/// A product for as many rows as are packed at a time.
struct Round<'a> {
    p: &'a Product<'a>,
    /// Arithmetic of frozen weights.
    weights: Arithmetic,
    factors: &'a [Factor],
    rows: usize,
    /// Of the factors.
    views: Vec<LeftView>,
    residual: Option<&'a [f32]>,
    result: Shared,
    stride: usize,
}

// SAFETY: the views' memory is borrowed, and only read, as long as the round lives.
unsafe impl Sync for Round<'_> {}

/// Rows and columns of one output that one thread computes.
#[derive(Clone, Copy)]
struct Task {
    output: usize,
    column: usize,
    columns: usize,
    row: usize,
    rows: usize,
}

impl Round<'_> {
    /// A term's left factor as tiles read it, with its arithmetic.
    fn left(&self, term: &Term<'_>) -> (LeftView, Arithmetic) {
        let arithmetic = term.arithmetic(self.weights);
        let index = self.factors.iter().position(|f| f.serves(term, arithmetic));
        (self.views[index.expect("every term has a factor")], arithmetic)
    }

    /// Multiply-adds.
    fn work(&self) -> usize {
        let depth = |o: &Output<'_>| o.terms.iter().map(|t| t.depth).sum::<usize>() + 1;
        self.rows * self.p.outputs.iter().map(|o| o.columns * depth(o)).sum::<usize>()
    }

    /// About four tasks of equal size for each thread, or more: by columns as far as possible, because rows
    /// that are split pack the right factor again.
    fn tasks(&self, threads: usize) -> Vec<Task> {
        const PANEL: usize = VECTORS * 16;
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let columns: usize = self.p.outputs.iter().map(|o| o.columns).sum();
        let share = |o: &Output<'_>| {
            let panels = o.columns.div_ceil(PANEL);
            let count = (wanted * o.columns).div_ceil(columns.max(1)).max(o.columns.div_ceil(COLUMNS));
            (panels, count.min(panels))
        };
        let by_columns: usize = self.p.outputs.iter().map(|o| share(o).1).sum();
        let by_rows = wanted.div_ceil(by_columns.max(1));
        let height = self.rows.div_ceil(by_rows).next_multiple_of(4 * ROWS);
        let mut tasks = Vec::new();
        for (output, o) in self.p.outputs.iter().enumerate() {
            let (panels, count) = share(o);
            for part in 0..count {
                let column = panels * part / count * PANEL;
                let columns = (panels * (part + 1) / count * PANEL).min(o.columns) - column;
                for row in (0..self.rows).step_by(height) {
                    let rows = height.min(self.rows - row);
                    tasks.push(Task { output, column, columns, row, rows });
                }
            }
        }
        tasks
    }
}

/// Packs one panel of a left factor.
struct PackLeft<'a> {
    left: &'a Left<'a>,
    rows: usize,
    index: usize,
    factor: &'a Factor,
    units: usize,
    to: *mut f32,
}

impl Job for PackLeft<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let bf16 = self.factor.arithmetic == Arithmetic::Bf16;
        // SAFETY: the panel's place was reserved for it alone, and its rows exist.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.to, self.units * ROWS);
            pack::left::<S>(self.left, self.rows, self.index, self.factor.depth, bf16, to);
        }
    }
}

/// Computes one task.
struct Compute<'a> {
    round: &'a Round<'a>,
    task: Task,
    panels: &'a mut Buffer,
    widened: &'a mut Buffer,
}

impl Job for Compute<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: `check` has compared every operand with the shapes; tasks do not overlap.
        unsafe { self.sum::<S>() };
    }
}

impl Compute<'_> {
    /// # Safety
    /// The operands fit the shapes, and no other thread touches this task's part of the result.
    #[inline(always)]
    unsafe fn sum<S: Simd>(self) {
        let Compute { round, task, panels, widened } = self;
        let is_thin = round.p.is_thin();
        let output = &round.p.outputs[task.output];
        // SAFETY: the task's first column lies inside the result.
        let base = unsafe { round.result.get().add(output.column + task.column) };
        let mut to = Target { base, stride: round.stride, accumulate: round.p.accumulate };
        for term in &output.terms {
            let (left, arithmetic) = round.left(term);
            // SAFETY: passed on from the caller.
            unsafe {
                match arithmetic {
                    Arithmetic::F32 => add_term::<S, false>(left, task, term, is_thin, panels, widened, to),
                    Arithmetic::Bf16 => add_term::<S, true>(left, task, term, is_thin, panels, widened, to),
                }
            }
            to.accumulate |= term.depth > 0;
        }
        // SAFETY: passed on from the caller.
        unsafe { finish(round, task, output, base, to.accumulate) };
    }
}

/// One product of a task.
///
/// # Safety
/// As for [`Compute::sum`].
#[inline(always)]
unsafe fn add_term<S: Simd, const BF16: bool>(
    left: LeftView,
    task: Task,
    term: &Term<'_>,
    is_thin: bool,
    panels: &mut Buffer,
    widened: &mut Buffer,
    mut to: Target,
) {
    let right = &term.right;
    match right.source {
        Source::Weight(bytes, element) if is_thin => {
            // SAFETY: passed on from the caller.
            return unsafe { thin_term::<S, BF16>(left, task, (bytes, element), term, to) };
        }
        Source::Coded(matrix) if is_thin => {
            // SAFETY: passed on from the caller.
            return unsafe { thin_coded_term::<S, BF16>(left, task, matrix, term, widened, to) };
        }
        _ => {}
    }
    let block = if BF16 { Arithmetic::Bf16.block() } else { Arithmetic::F32.block() };
    for k0 in (0..term.depth).step_by(block) {
        let depth = block.min(term.depth - k0);
        let part = Part { k0, depth, column: task.column, columns: task.columns };
        let widened = widened_part(right, part, widened);
        // SAFETY: passed on from the caller.
        unsafe {
            match &widened {
                None => add_block::<S, BF16>(left, task, right, part, k0, panels, to),
                Some((right, part)) => add_block::<S, BF16>(left, task, right, *part, k0, panels, to),
            }
        }
        to.accumulate = true;
    }
}

/// The part of a coded weight as f32 values, a factor by itself; nothing for other factors.
fn widened_part<'a>(right: &Right<'_>, part: Part, buffer: &'a mut Buffer) -> Option<(Right<'a>, Part)> {
    let Source::Coded(matrix) = right.source else { return None };
    let Part { k0, depth, column, columns } = part;
    let (first, rows, begin, len) =
        if right.transposed { (column, columns, k0, depth) } else { (k0, depth, column, columns) };
    buffer.reserve(rows * len);
    let values = &mut buffer[..rows * len];
    for (row, values) in values.chunks_exact_mut(len).enumerate() {
        matrix.read_part(first + row, begin, values);
    }
    let right = Right { source: Source::Values(values), stride: len, transposed: right.transposed };
    Some((right, Part { k0: 0, column: 0, ..part }))
}

/// [`thin_term`] of a coded weight, some of its rows at a time.
///
/// # Safety
/// As for [`thin_term`].
#[inline(always)]
unsafe fn thin_coded_term<S: Simd, const BF16: bool>(
    left: LeftView,
    task: Task,
    matrix: &Matrix,
    term: &Term<'_>,
    widened: &mut Buffer,
    to: Target,
) {
    /// Rows of the weight that are widened together.
    const ROWS: usize = 32;
    let depth = term.depth;
    widened.reserve(ROWS * depth);
    for column in (0..task.columns).step_by(ROWS) {
        let columns = ROWS.min(task.columns - column);
        for (row, values) in widened.chunks_exact_mut(depth).take(columns).enumerate() {
            matrix.read_part(task.column + column + row, 0, values);
        }
        let weight =
            Weight { from: widened.as_ptr().cast(), stride: depth * size_of::<f32>(), columns, depth };
        let to = Target { base: to.base.wrapping_add(column), ..to };
        // SAFETY: the rows were just widened; the rest is passed on from the caller.
        unsafe { thin_rows::<S, BF16>(left, task, weight, Element::F32, to) };
    }
}

/// # Safety
/// As for [`Compute::sum`]; the product is thin.
#[inline(always)]
unsafe fn thin_term<S: Simd, const BF16: bool>(
    left: LeftView,
    task: Task,
    (bytes, element): (&[u8], Element),
    term: &Term<'_>,
    to: Target,
) {
    let stride = term.right.stride * element.bytes();
    let from = bytes.as_ptr().wrapping_add(task.column * stride);
    let weight = Weight { from, stride, columns: task.columns, depth: term.depth };
    // SAFETY: passed on from the caller.
    unsafe { thin_rows::<S, BF16>(left, task, weight, element, to) };
}

/// The task's rows of a thin product.
///
/// # Safety
/// As for [`thin_term`]; the weight has the task's columns.
#[inline(always)]
unsafe fn thin_rows<S: Simd, const BF16: bool>(
    left: LeftView,
    task: Task,
    weight: Weight,
    element: Element,
    to: Target,
) {
    let base = left.base.wrapping_add(task.row * left.row);
    let left = LeftView { base, rows: task.rows, ..left };
    let to = Target { base: to.base.wrapping_add(task.row * to.stride), ..to };
    // SAFETY: passed on from the caller.
    unsafe {
        match element {
            Element::F32 => thin::multiply::<S::Narrow, F32, BF16>(left, weight, to),
            Element::F16 => thin::multiply::<S::Narrow, F16, BF16>(left, weight, to),
            Element::Bf16 => thin::multiply::<S::Narrow, Bf16, BF16>(left, weight, to),
        }
    }
}

/// Adds the products with `part` of a right factor, which is the one from `k0` on of the left factor's.
///
/// # Safety
/// As for [`Compute::sum`].
#[inline(always)]
unsafe fn add_block<S: Simd, const BF16: bool>(
    left: LeftView,
    task: Task,
    right: &Right<'_>,
    part: Part,
    k0: usize,
    panels: &mut Buffer,
    target: Target,
) {
    let width = VECTORS * S::LANES;
    let full = part.columns / width * width;
    let direct = right.in_place().filter(|_| !BF16 && task.rows < PACK_ROWS);
    let direct = direct.map(|v| v.as_ptr().wrapping_add(part.k0 * right.stride + part.column));
    let skipped = if direct.is_some() { full } else { 0 };
    let rest = Part { column: part.column + skipped, columns: part.columns - skipped, ..part };
    // SAFETY: the part lies inside the factor, and the buffer holds a task's columns.
    unsafe { pack::right::<S, BF16>(right, rest, panels) };
    let (packed, units) = (panels.as_ptr(), part.units(BF16));
    let panel = |index: usize| {
        let column = index * width;
        let columns = width.min(part.columns.checked_sub(column).filter(|c| *c > 0)?);
        Some(match direct {
            Some(base) if column < full => {
                RightPanel { base: base.wrapping_add(column), step: right.stride, columns }
            }
            _ => RightPanel {
                base: packed.wrapping_add((column - skipped) * units),
                step: columns.next_multiple_of(S::LANES),
                columns,
            },
        })
    };
    let rows = task.row..task.row + task.rows;
    let depth = Depth { left: if BF16 && S::PAIRS { k0 / 2 } else { k0 }, units };
    // SAFETY: passed on from the caller; the panels above cover the part.
    unsafe { kernel::block::<S, BF16>(left, rows, depth, panel, target) };
}

/// Scale, bias, residual and rounding, or zeros where nothing was summed.
///
/// # Safety
/// As for [`Compute::sum`].
#[inline(always)]
unsafe fn finish(round: &Round<'_>, task: Task, output: &Output<'_>, base: *mut f32, summed: bool) {
    let plain = output.scale == 1.0 && output.bias.is_none() && round.residual.is_none();
    if summed && plain && !round.p.rounds {
        return;
    }
    for row in task.row..task.row + task.rows {
        // SAFETY: the row's columns of this task lie inside the result and belong to this thread.
        let line = unsafe { std::slice::from_raw_parts_mut(base.add(row * round.stride), task.columns) };
        if !summed {
            line.fill(0.0);
        }
        if output.scale != 1.0 {
            line.iter_mut().for_each(|v| *v *= output.scale);
        }
        if let Some(bias) = output.bias {
            let bias = &bias[task.column..];
            line.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
        }
        if let Some(residual) = round.residual {
            let residual = &residual[row * round.stride + output.column + task.column..];
            line.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
        }
        if round.p.rounds {
            line.iter_mut().for_each(|v| *v = bf16(*v));
        }
    }
}

impl<'a> Left<'a> {
    /// The factor without its first rows.
    fn after_rows(&self, row: usize) -> Left<'a> {
        Left { values: &self.values[row * self.row..], ..*self }
    }
}

impl<'a> Right<'a> {
    /// The values, where tiles can read them as they lie.
    fn in_place(&self) -> Option<&'a [f32]> {
        match self.source {
            Source::Values(v) if !self.transposed => Some(v),
            _ => None,
        }
    }

    /// Where its elements begin, and how they are stored.
    pub(super) fn bytes(&self) -> (*const u8, Element) {
        match self.source {
            Source::Values(v) => (v.as_ptr().cast(), Element::F32),
            Source::Weight(b, element) => (b.as_ptr(), element),
            Source::Coded(_) => unreachable!("coded weights are widened before they are packed"),
        }
    }

    fn elements(&self) -> usize {
        match self.source {
            Source::Values(v) => v.len(),
            Source::Weight(b, element) => b.len() / element.bytes(),
            Source::Coded(matrix) => matrix.rows() * matrix.cols(),
        }
    }
}

impl Product<'_> {
    /// Whether it is a few rows times weights summed over their columns; see [`thin`].
    fn is_thin(&self) -> bool {
        let passes_by = |t: &Term<'_>| match t.right.source {
            Source::Values(_) => true,
            Source::Weight(..) | Source::Coded(_) => t.right.transposed && self.lefts[t.left].step == 1,
        };
        self.rows <= thin::ROWS && self.outputs.iter().flat_map(|o| &o.terms).all(passes_by)
    }

    /// Everything that is read or written in a fast loop lies inside its slice.
    fn check(&self, result: usize, stride: usize) {
        let last = |rows: usize, stride: usize, columns: usize| match (rows, columns) {
            (0, _) | (_, 0) => 0,
            _ => (rows - 1)
                .checked_mul(stride)
                .and_then(|n| n.checked_add(columns))
                .expect("operand too large"),
        };
        let mut ranges: Vec<_> = self.outputs.iter().map(|o| (o.column, o.column + o.columns)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "output columns overlap");
        let end = ranges.last().map_or(0, |r| r.1);
        assert!(end <= stride && last(self.rows, stride, end) <= result, "result too short");
        assert!(self.residual.is_none_or(|r| last(self.rows, stride, end) <= r.len()), "residual too short");
        for output in self.outputs {
            assert!(output.bias.is_none_or(|b| b.len() >= output.columns), "bias too short");
            for term in &output.terms {
                let left = &self.lefts[term.left];
                let (row, step) = (last(self.rows, left.row, 1), last(term.first + term.depth, left.step, 1));
                assert!(term.depth == 0 || row + step - 1 <= left.values.len(), "left factor too short");
                let right = &term.right;
                let (rows, columns) = match right.transposed {
                    true => (output.columns, term.depth),
                    false => (term.depth, output.columns),
                };
                assert!(last(rows, right.stride, columns) <= right.elements(), "right factor too short");
            }
        }
    }
}
