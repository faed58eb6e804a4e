//! The blocks that layers are made of: one mixer or one MLP each, with its buffers and its forward and backward pass.
//!
//! A forward pass is written once: over whole texts, over prompts of which a decoder keeps what later tokens need, and over
//! one token of each sequence.

mod attention;
mod projection;
mod swiglu;

use super::buffers::Buffers;
use super::builder::Builder;
use super::spec::{MixerSpec, MlpSpec, NormSpec};
use crate::device::{Device, Indices, Region, Storage};
use crate::error::Result;
use crate::ops::attention::Segments;
use crate::ops::decode_attention::Seen;
use crate::ops::linear::{Dropout, Group};
use crate::ops::rmsnorm::{self, RmsNorm};

/// The adapters' inputs, by number. They key the dropout masks: a number is part of the arithmetic and never changes.
mod site {
    pub const MIXER_INPUT: u32 = 0;
    pub const MIXER_OUTPUT: u32 = 1;
    pub const MLP_INPUT: u32 = 2;
    pub const MLP_OUTPUT: u32 = 3;
}

/// What keys the dropout masks of one micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// Steps done before this one.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro_batch: u32,
}

/// Dropout of one pass.
#[derive(Clone, Copy)]
pub(super) struct PassDropout {
    pub key: DropoutKey,
    /// Probability.
    pub p: f32,
    /// Where the device finds step and micro-batch.
    pub clock: Region,
}

/// Everything one pass over some tokens needs to know.
pub(super) struct Pass<'a> {
    pub ids: Indices<'a>,
    /// Rows of the rotary tables.
    pub angles: Indices<'a>,
    pub reads: Reads<'a>,
    pub dropout: Option<PassDropout>,
}

/// What the tokens of a pass see.
pub(super) enum Reads<'a> {
    /// Whole texts, of which nothing is kept.
    Texts(Segments<'a>),
    /// Prompts, whose sequences go on.
    Prompts(Segments<'a>, Kept<'a>),
    /// One token each of sequences.
    Sequences(Seen<'a>, Kept<'a>),
}

/// Where a decoder keeps what it needs of the tokens.
pub(super) struct Kept<'a> {
    /// Rows of the caches.
    pub places: Indices<'a>,
    /// Positions in the sequences.
    pub positions: Indices<'a>,
}

impl Pass<'_> {
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The pass's rows of a region, `width` elements each.
    pub fn rows(&self, region: Region, width: usize) -> Region {
        region.slice(0, self.tokens() * width)
    }

    fn dropout(&self, layer: usize, site: u32) -> Option<Dropout> {
        let PassDropout { key, p, clock } = self.dropout?;
        Some(Dropout {
            p,
            key: [key.seed as u32, (key.seed >> 32) as u32],
            counter: [((layer as u32) << 8) | site, key.step as u32, key.micro_batch],
            clock,
        })
    }
}

/// Operands of a block's forward pass, as many rows as planned.
#[derive(Clone, Copy)]
pub(super) struct Forward {
    /// The normalised input.
    pub x: Region,
    /// Added to the output.
    pub residual: Region,
    /// Written.
    pub y: Region,
}

/// Operands of a block's backward pass, as many rows as planned.
#[derive(Clone, Copy)]
pub(super) struct Backward {
    /// The normalised input; valid where an adapter reads it.
    pub x: Region,
    /// Gradient of the output.
    pub dy: Region,
    /// Written: gradient of the normalised input.
    pub dx: Region,
}

/// A mixer or an MLP.
pub(super) trait Block {
    /// Its linear layers by what they read, in the order of the forward pass. The first group reads the block's input.
    fn groups(&self) -> Vec<&Group>;

    /// Asks for its buffers; see [`Buffers`] on why that is done twice.
    fn plan(&mut self, buffers: &mut Buffers<'_>);

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Forward);

    /// Computes again what [`crate::config::Recompute::Mlp`] does not keep.
    fn recompute(&self, _dev: &mut Device, _pass: &Pass<'_>, _x: Region) {}

    /// Adds the adapters' gradients and passes the output's on to the input; only down to group `stop`, where nothing
    /// before it is trained.
    fn backward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Backward, stop: Option<usize>);
}

impl MixerSpec {
    fn block(&self, layer: usize, b: &mut Builder<'_>) -> Result<Box<dyn Block>> {
        Ok(match self {
            MixerSpec::Attention(spec) => Box::new(attention::AttentionBlock::new(spec, layer, b)?),
        })
    }
}

impl MlpSpec {
    fn block(&self, layer: usize, b: &mut Builder<'_>) -> Result<Box<dyn Block>> {
        Ok(match self {
            MlpSpec::SwiGlu(spec) => Box::new(swiglu::SwiGluBlock::new(spec, layer, b)?),
        })
    }
}

/// A block behind its norm, added to the residual stream: `y = x + block(norm(x))`.
pub(super) struct Sublayer {
    norm: RmsNorm,
    block: Box<dyn Block>,
    /// The residual stream before and after it.
    x: Region,
    y: Region,
    rstd: Region,
    normed: Region,
    dnormed: Region,
}

impl Sublayer {
    pub fn mixer(norm: &NormSpec, spec: &MixerSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Ok(Self::new(b.norm(norm)?, spec.block(layer, b)?))
    }

    pub fn mlp(norm: &NormSpec, spec: &MlpSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Ok(Self::new(b.norm(norm)?, spec.block(layer, b)?))
    }

    fn new(norm: RmsNorm, block: Box<dyn Block>) -> Self {
        let [x, y, rstd, normed, dnormed] = [Region::default(); 5];
        Sublayer { norm, block, x, y, rstd, normed, dnormed }
    }

    /// The first of the block's groups that has an adapter.
    pub fn first_adapted(&self) -> Option<usize> {
        self.block.groups().iter().position(|group| group.rank_sum() > 0)
    }

    /// Plans buffers; `x` and `y` are the residual stream.
    pub fn plan(&mut self, b: &mut Buffers<'_>, x: Region, y: Region) {
        b.begin_block();
        (self.x, self.y) = (x, y);
        self.rstd = b.kept(Storage::F32, 1);
        self.normed = b.work(Storage::Activation, self.norm.dim);
        self.dnormed = b.gradient(Storage::Activation, self.norm.dim);
        self.block.plan(b);
    }

    fn normalise(&self, dev: &mut Device, pass: &Pass<'_>) {
        let hidden = |r| pass.rows(r, self.norm.dim);
        rmsnorm::forward(dev, &self.norm, hidden(self.x), hidden(self.normed), pass.rows(self.rstd, 1));
    }

    pub fn forward(&self, dev: &mut Device, pass: &Pass<'_>) {
        self.normalise(dev, pass);
        self.block.forward(dev, pass, &Forward { x: self.normed, residual: self.x, y: self.y });
    }

    /// See [`Block::recompute`].
    pub fn recompute(&self, dev: &mut Device, pass: &Pass<'_>) {
        self.normalise(dev, pass);
        self.block.recompute(dev, pass, self.normed);
    }

    /// Takes the gradient `dx` of the residual stream from after the block to before it, as far as anything before is
    /// trained: see [`Block::backward`].
    pub fn backward(&self, dev: &mut Device, pass: &Pass<'_>, dx: Region, stop: Option<usize>) {
        let hidden = |r| pass.rows(r, self.norm.dim);
        let (x, rstd) = (hidden(self.x), pass.rows(self.rstd, 1));
        if self.block.groups()[0].rank_sum() > 0 {
            rmsnorm::recompute(dev, &self.norm, x, rstd, hidden(self.normed));
        }
        let operands = Backward { x: self.normed, dy: dx, dx: self.dnormed };
        self.block.backward(dev, pass, &operands, stop);
        if stop.is_none() {
            rmsnorm::backward(dev, &self.norm, x, rstd, hidden(self.dnormed), hidden(dx));
        }
    }
}
