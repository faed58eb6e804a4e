//! The model's end: the last norm and the output head, over the rows that are asked for.

use super::buffers::{Buffers, Passes};
use crate::device::{Device, Indices, Matrix, Purpose, Region, Storage};
use crate::ops::loss::{self, Loss};
use crate::ops::rmsnorm::{self, RmsNorm};
use crate::ops::{logits, rows};

pub(super) struct Head {
    matrix: Matrix,
    norm: RmsNorm,
    buffers: HeadBuffers,
}

#[derive(Clone, Copy, Default)]
struct HeadBuffers {
    x: Region,
    normed: Region,
    rstd: Region,
    dnormed: Region,
    dx: Region,
    /// A chunk of rows, of `row` elements each.
    logits: Region,
    row: usize,
    losses: Region,
}

/// The rows of a pass that are scored, and the gradient of the loss, where it is wanted.
#[derive(Clone, Copy)]
pub(super) struct Scored<'a> {
    /// Rows, ascending.
    pub rows: Indices<'a>,
    /// Their next tokens.
    pub targets: Indices<'a>,
}

impl Head {
    pub fn new(matrix: Matrix, norm: RmsNorm) -> Self {
        Head { matrix, norm, buffers: HeadBuffers::default() }
    }

    pub fn plan(&mut self, b: &mut Buffers<'_>) {
        b.begin_block();
        let hidden = self.norm.dim;
        let capabilities = b.planner().capabilities();
        let row = capabilities.row_len(self.matrix.rows());
        let (last, chunk, scored) = match b.passes() {
            Passes::Training { tokens, .. } | Passes::Evaluation { tokens } => {
                (tokens, capabilities.logit_rows(self.matrix.rows(), tokens), tokens)
            }
            Passes::Decoding { slots, .. } => (slots, slots, 0),
        };
        let mut work = |storage, width| b.work_len(storage, last * width);
        let [x, normed] = [(); 2].map(|()| work(Storage::Activation, hidden));
        let rstd = work(Storage::F32, 1);
        let [dnormed, dx] = [(); 2].map(|()| b.gradient(Storage::Activation, hidden));
        self.buffers = HeadBuffers {
            x,
            normed,
            rstd,
            dnormed,
            dx,
            logits: b.own_len(Purpose::Logits, Storage::F32, chunk * row),
            row,
            losses: b.own_len(Purpose::Workspace, Storage::F32, scored),
        };
    }

    fn rows(&self, region: Region, count: usize) -> Region {
        region.slice(0, count * self.norm.dim)
    }

    /// Gathers rows of the residual stream `x` and normalises them.
    fn input(&self, dev: &mut Device, x: Region, wanted: Indices<'_>) {
        let count = wanted.len();
        let (gathered, normed) = (self.rows(self.buffers.x, count), self.rows(self.buffers.normed, count));
        rows::gather(dev, x, wanted, self.norm.dim, gathered);
        rmsnorm::forward(dev, &self.norm, gathered, normed, self.buffers.rstd.slice(0, count));
    }

    /// Logits of the wanted rows, [rows, row length] in one region, and the row length.
    pub fn logits(&self, dev: &mut Device, x: Region, wanted: Indices<'_>) -> (Region, usize) {
        self.input(dev, x, wanted);
        let out = self.buffers.logits.slice(0, wanted.len() * self.buffers.row);
        logits::forward(dev, &self.matrix, self.rows(self.buffers.normed, wanted.len()), out);
        (out, self.buffers.row)
    }

    /// Computes the losses of the scored rows. `None` when cancelled.
    pub fn score(
        &self,
        dev: &mut Device,
        x: Region,
        scored: Scored<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<()> {
        self.input(dev, x, scored.rows);
        let normed = self.buffers.normed;
        self.chunks(scored, cancelled, |operands, part| loss::forward(dev, operands, part(normed)))
    }

    /// Computes the losses, and writes to `dx` the gradient of `scale` × their sum with respect to the residual stream.
    /// `None` when cancelled.
    pub fn backward(
        &self,
        dev: &mut Device,
        [x, dx]: [Region; 2],
        scored: Scored<'_>,
        scale: f32,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<()> {
        self.input(dev, x, scored.rows);
        let HeadBuffers { normed, dnormed, .. } = self.buffers;
        self.chunks(scored, cancelled, |operands, part| {
            loss::forward_backward(dev, operands, part(normed), scale, part(dnormed));
        })?;
        let count = scored.rows.len();
        let [x, dnormed, dlast] =
            [self.buffers.x, self.buffers.dnormed, self.buffers.dx].map(|r| self.rows(r, count));
        rows::zero(dev, dlast);
        rmsnorm::backward(dev, &self.norm, x, self.buffers.rstd.slice(0, count), dnormed, dlast);
        rows::scatter(dev, dlast, scored.rows, self.norm.dim, dx);
        Some(())
    }

    /// Runs over the scored rows, as many at once as the logits' region holds; between two chunks it can be cancelled.
    /// `run` gets the operands, and what cuts the chunk's rows out of those of all.
    fn chunks(
        &self,
        scored: Scored<'_>,
        cancelled: &dyn Fn() -> bool,
        mut run: impl FnMut(&Loss<'_>, &dyn Fn(Region) -> Region),
    ) -> Option<()> {
        let (hidden, buffers) = (self.norm.dim, &self.buffers);
        let chunk = buffers.logits.len / buffers.row;
        for first in (0..scored.targets.len()).step_by(chunk) {
            if cancelled() {
                return None;
            }
            let count = chunk.min(scored.targets.len() - first);
            let part = |r: Region| r.slice(first * hidden, count * hidden);
            let operands = Loss {
                head: &self.matrix,
                targets: scored.targets.slice(first, count),
                logits: buffers.logits,
                losses: buffers.losses.slice(first, count),
            };
            run(&operands, &part);
        }
        Some(())
    }

    /// Where the losses of the rows scored last are.
    pub fn losses(&self, count: usize) -> Region {
        self.buffers.losses.slice(0, count)
    }
}
