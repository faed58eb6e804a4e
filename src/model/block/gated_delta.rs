//! Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024): projections, a short convolution, the gated delta rule, a gated norm of
//! heads, output projection.

use super::projection::{Projection, SharedBuffers};
use super::{Backward, Block, Forward, Pass, Reads};
use crate::device::{Device, Region, Storage};
use crate::error::Result;
use crate::model::buffers::{Buffers, Saved};
use crate::model::builder::Builder;
use crate::model::spec::GatedDeltaSpec;
use crate::ops::delta_rule::{self, DeltaRule, Gates, States};
use crate::ops::gated_norm::{self, GatedNorm};
use crate::ops::linear::Group;
use crate::ops::short_convolution::{self, ShortConvolution, Windows};

pub(super) struct GatedDeltaBlock {
    /// Makes q|k|v, z, b and a side by side.
    input: Projection,
    convolution: ShortConvolution,
    rule: DeltaRule,
    norm: GatedNorm,
    output: Projection,
    buffers: GatedDeltaBuffers,
}

#[derive(Clone, Copy, Default)]
struct GatedDeltaBuffers {
    projected: Saved,
    /// q|k|v after the convolution; in the backward pass their gradients take another place.
    qkv: Region,
    /// What the delta rule says.
    said: Saved,
    normed: Region,
    /// Of each sequence that goes on: the convolution's window and the rule's state.
    kept: Option<[Region; 2]>,
    dprojected: Region,
    dqkv: Region,
    /// Gradients of `normed`, then of `said`.
    dsaid: Region,
}

impl GatedDeltaBlock {
    pub fn new(spec: &GatedDeltaSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        b.check_gated("Gated DeltaNet")?;
        let GatedDeltaSpec { key_heads, value_heads, key_dim, value_dim, .. } = *spec;
        let input = Projection::mixer_input(&spec.input, layer, b)?;
        let width = input.group.output;
        let columns = |i: usize| spec.input[i].column;
        let norm = b.norm(&spec.norm)?;
        Ok(GatedDeltaBlock {
            convolution: ShortConvolution {
                channels: spec.convolution.shape[0],
                taps: spec.convolution.shape[2],
                width,
                weight: b.transposed(&spec.convolution)?,
            },
            rule: DeltaRule {
                key_heads,
                value_heads,
                key_dim,
                value_dim,
                a_log: b.small(&spec.a_log.name)?,
                dt_bias: b.small(&spec.dt_bias.name)?,
                gates: Gates { width, b: columns(2), a: columns(3) },
            },
            norm: GatedNorm {
                heads: value_heads,
                dim: value_dim,
                eps: norm.eps,
                weight: norm.weight,
                gate_width: width,
                gate: columns(1),
            },
            input,
            output: Projection::mixer_output(&spec.output, layer, b)?,
            buffers: GatedDeltaBuffers::default(),
        })
    }

    fn projected(&self, pass: &Pass<'_>) -> Region {
        pass.rows(self.buffers.projected.values, self.convolution.width)
    }

    fn qkv(&self, pass: &Pass<'_>) -> Region {
        pass.rows(self.buffers.qkv, self.convolution.channels)
    }

    fn said(&self, pass: &Pass<'_>) -> Region {
        pass.rows(self.buffers.said.values, self.norm.width())
    }

    /// The convolution and the rule over the tokens of the pass.
    fn mix(&self, dev: &mut Device, pass: &Pass<'_>) {
        let (projected, qkv, said) = (self.projected(pass), self.qkv(pass), self.said(pass));
        let kept = self.buffers.kept;
        let (convolution, rule) = (&self.convolution, &self.rule);
        let (segments, slots) = match &pass.reads {
            Reads::Texts(segments) => (segments, None),
            Reads::Prompts(segments, places) => (segments, Some(places.slots)),
            Reads::Sequences(_, places) => {
                let [window, state] = kept.expect("states are planned for decoding");
                let slots = places.slots;
                let windows = Windows { region: window, slots };
                short_convolution::step(dev, convolution, projected, qkv, windows);
                delta_rule::step(dev, rule, [qkv, projected], said, States { region: state, slots });
                return;
            }
        };
        let kept = kept.zip(slots);
        let windows = kept.map(|([region, _], slots)| Windows { region, slots });
        let states = kept.map(|([_, region], slots)| States { region, slots });
        short_convolution::forward(dev, convolution, segments, projected, qkv, windows);
        delta_rule::forward(dev, rule, segments, [qkv, projected], said, states);
    }

    fn normalise(&self, dev: &mut Device, pass: &Pass<'_>) {
        let normed = pass.rows(self.buffers.normed, self.norm.width());
        gated_norm::forward(dev, &self.norm, self.said(pass), self.projected(pass), normed);
    }
}

impl Block for GatedDeltaBlock {
    fn groups(&self) -> Vec<&Group> {
        vec![&self.input.group, &self.output.group]
    }

    fn plan(&mut self, b: &mut Buffers<'_>) {
        use Storage::{Activation, F32};
        let (width, qkv, out) = (self.convolution.width, self.convolution.channels, self.norm.width());
        let window = b.state(Activation, self.convolution.window_len());
        let state = b.state(F32, self.rule.state_len());
        self.buffers = GatedDeltaBuffers {
            projected: b.saved(width),
            qkv: b.work(Activation, qkv),
            said: b.saved(out),
            normed: b.work(Activation, out),
            kept: window.zip(state).map(|(window, state)| [window, state]),
            dprojected: b.gradient(Activation, width),
            dqkv: b.gradient(Activation, qkv),
            dsaid: b.gradient(Activation, out),
        };
        let shared = SharedBuffers::plan(b, &[&self.input.group, &self.output.group]);
        self.input.plan(b, shared);
        self.output.plan(b, shared);
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Forward) {
        self.input.forward(dev, pass, o.x, &self.buffers.projected);
        self.mix(dev, pass);
        self.buffers.said.save(dev, pass);
        self.normalise(dev, pass);
        self.output.forward_onto(dev, pass, self.buffers.normed, o.y, o.residual);
    }

    fn backward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Backward, stop: Option<usize>) {
        let Reads::Texts(segments) = &pass.reads else { unreachable!("a backward pass is over whole texts") };
        let buffers = &self.buffers;
        buffers.projected.restore(dev, pass);
        buffers.said.restore(dev, pass);
        if self.output.group.rank_sum() > 0 {
            self.normalise(dev, pass);
        }
        let below = stop != Some(1);
        self.output.backward(dev, pass, buffers.normed, o.dy, below.then_some(buffers.dsaid));
        if !below {
            return;
        }
        let (projected, qkv) = (self.projected(pass), self.qkv(pass));
        let dprojected = pass.rows(buffers.dprojected, self.convolution.width);
        let dqkv = pass.rows(buffers.dqkv, self.convolution.channels);
        let dsaid = pass.rows(buffers.dsaid, self.norm.width());
        gated_norm::backward(dev, &self.norm, [self.said(pass), projected], dsaid, dprojected);
        short_convolution::forward(dev, &self.convolution, segments, projected, qkv, None);
        let operands = delta_rule::Backward { qkv, projected, dout: dsaid, dqkv, dprojected };
        delta_rule::backward(dev, &self.rule, segments, &operands);
        short_convolution::backward(dev, &self.convolution, segments, projected, dqkv, dprojected);
        self.input.backward(dev, pass, o.x, buffers.dprojected, (stop != Some(0)).then_some(o.dx));
    }
}
