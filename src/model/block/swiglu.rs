//! The dense MLP: `down(silu(gate(x)) * up(x))`.

use super::projection::{Projection, SharedBuffers};
use super::{Backward, Block, Forward, Pass};
use crate::device::{Device, Region, Storage};
use crate::error::Result;
use crate::model::buffers::{Buffers, Saved};
use crate::model::builder::Builder;
use crate::model::spec::SwiGluSpec;
use crate::ops::linear::Group;
use crate::ops::swiglu;

pub(super) struct SwiGluBlock {
    width: usize,
    input: Projection,
    output: Projection,
    buffers: SwiGluBuffers,
}

#[derive(Clone, Copy, Default)]
struct SwiGluBuffers {
    /// Gate and up; in the backward pass their gradients.
    gate_up: Saved,
    inner: Region,
    dinner: Region,
}

impl SwiGluBlock {
    pub fn new(spec: &SwiGluSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        b.check_width("intermediate_size", spec.width)?;
        Ok(SwiGluBlock {
            width: spec.width,
            input: Projection::mlp_input(&spec.input, layer, b)?,
            output: Projection::mlp_output(&spec.output, layer, b)?,
            buffers: SwiGluBuffers::default(),
        })
    }

    fn activate(&self, dev: &mut Device, pass: &Pass<'_>) {
        let gate_up = pass.rows(self.buffers.gate_up.values, 2 * self.width);
        swiglu::forward(dev, gate_up, self.width, pass.rows(self.buffers.inner, self.width));
    }
}

impl Block for SwiGluBlock {
    fn groups(&self) -> Vec<&Group> {
        vec![&self.input.group, &self.output.group]
    }

    fn plan(&mut self, b: &mut Buffers<'_>) {
        self.buffers = SwiGluBuffers {
            gate_up: b.saved_of_mlp(2 * self.width),
            inner: b.work(Storage::Activation, self.width),
            dinner: b.gradient(Storage::Activation, self.width),
        };
        let shared = SharedBuffers::plan(b, &[&self.input.group, &self.output.group]);
        self.input.plan(b, shared);
        self.output.plan(b, shared);
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Forward) {
        self.recompute(dev, pass, o.x);
        self.activate(dev, pass);
        self.output.forward_onto(dev, pass, self.buffers.inner, o.y, o.residual);
    }

    fn recompute(&self, dev: &mut Device, pass: &Pass<'_>, x: Region) {
        self.input.forward(dev, pass, x, &self.buffers.gate_up);
    }

    fn backward(&self, dev: &mut Device, pass: &Pass<'_>, o: &Backward, stop: Option<usize>) {
        let SwiGluBuffers { gate_up, inner, dinner } = self.buffers;
        gate_up.restore(dev, pass);
        let gate_up = gate_up.values;
        if self.output.group.rank_sum() > 0 {
            self.activate(dev, pass);
        }
        let below = stop != Some(1);
        self.output.backward(dev, pass, inner, o.dy, below.then_some(dinner));
        if below {
            let dinner = pass.rows(dinner, self.width);
            swiglu::backward(dev, pass.rows(gate_up, 2 * self.width), self.width, dinner);
            self.input.backward(dev, pass, o.x, gate_up, (stop != Some(0)).then_some(o.dx));
        }
    }
}
