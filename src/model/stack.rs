//! The whole model on a device's planned memory: embedding, layers, head. Training and decoding are passes over it.

use super::block::{Pass, Sublayer};
use super::buffers::{Buffers, Passes};
use super::builder::{Builder, Uploads};
use super::head::Head;
use super::spec::{LayerSpec, Spec};
use super::state::Adapters;
use super::weights::Weights;
use crate::config::Recompute;
use crate::device::{Device, Matrix, Planner, Purpose, Region, Storage};
use crate::error::Result;
use crate::ops::embedding;

pub(super) struct Stack {
    embedding: Matrix,
    layers: Vec<Layer>,
    pub head: Head,
    hidden: usize,
    /// The residual stream before the first layer and after the last.
    first: Region,
    last: Region,
    /// Gradient of the residual stream.
    dx: Region,
    pub uploads: Uploads,
}

struct Layer {
    mixer: Sublayer,
    mlp: Sublayer,
}

/// The first thing of the model that is trained.
#[derive(Clone, Copy)]
struct Lowest {
    layer: usize,
    /// Group of the mixer or, where that has no adapter, of the MLP.
    mixer: Option<usize>,
    mlp: Option<usize>,
}

impl Layer {
    fn new(spec: &LayerSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Ok(Layer {
            mixer: Sublayer::mixer(&spec.mixer_norm, &spec.mixer, layer, b)?,
            mlp: Sublayer::mlp(&spec.mlp_norm, &spec.mlp, layer, b)?,
        })
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>) {
        self.mixer.forward(dev, pass);
        self.mlp.forward(dev, pass);
    }
}

impl Stack {
    /// Plans constants, matrices and all buffers of `passes`.
    pub fn plan(
        planner: &mut Planner,
        spec: &Spec,
        weights: &Weights,
        adapters: Adapters<'_>,
        passes: Passes,
    ) -> Result<Self> {
        let mut b = Builder::new(planner, spec, weights, adapters, passes);
        b.check_width("hidden_size", spec.hidden)?;
        let layers = spec.layers.iter().enumerate().map(|(i, layer)| Layer::new(layer, i, &mut b));
        let layers = layers.collect::<Result<_>>()?;
        let [embedding, head] = b.ends();
        let head = Head::new(head, b.norm(&spec.norm)?);
        let uploads = b.uploads();
        let [first, last, dx] = [Region::default(); 3];
        let mut stack = Stack { embedding, layers, head, hidden: spec.hidden, first, last, dx, uploads };
        Buffers::plan(planner, passes, |buffers| stack.buffers(buffers));
        Ok(stack)
    }

    fn buffers(&mut self, b: &mut Buffers<'_>) {
        let hidden = self.hidden;
        let stream = |b: &mut Buffers<'_>| b.own(Purpose::SavedActivations, Storage::Activation, hidden);
        self.first = stream(b);
        let mut x = self.first;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            b.begin_layer(index);
            let middle = b.kept(Storage::Activation, hidden);
            // A stream that nobody goes back to is written over.
            let y = if b.goes_back_to(index + 1) { stream(b) } else { x };
            layer.mixer.plan(b, x, middle);
            layer.mlp.plan(b, middle, y);
            x = y;
        }
        self.last = x;
        self.dx = if b.trains() { b.own(Purpose::Workspace, Storage::Activation, hidden) } else { x };
        self.head.plan(b);
    }

    /// The residual stream after the last layer.
    pub fn output(&self, pass: &Pass<'_>) -> Region {
        pass.rows(self.last, self.hidden)
    }

    /// Its gradient.
    pub fn output_gradient(&self, pass: &Pass<'_>) -> Region {
        pass.rows(self.dx, self.hidden)
    }

    /// The residual stream after the last layer. `None` when cancelled.
    pub fn forward(&self, dev: &mut Device, pass: &Pass<'_>, cancelled: &dyn Fn() -> bool) -> Option<()> {
        embedding::forward(dev, &self.embedding, pass.ids, pass.rows(self.first, self.hidden));
        for layer in &self.layers {
            if cancelled() {
                return None;
            }
            layer.forward(dev, pass);
        }
        Some(())
    }

    fn lowest(&self) -> Option<Lowest> {
        self.layers.iter().enumerate().find_map(|(layer, Layer { mixer, mlp })| {
            let (mixer, mlp) = (mixer.first_adapted(), mlp.first_adapted());
            (mixer.is_some() || mlp.is_some()).then_some(Lowest { layer, mixer, mlp })
        })
    }

    /// Takes the gradient of the residual stream from after the last layer down to the first that is trained, and adds the
    /// adapters' gradients. `None` when cancelled.
    pub fn backward(
        &self,
        dev: &mut Device,
        pass: &Pass<'_>,
        recompute: Recompute,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<()> {
        let Some(lowest) = self.lowest() else { return Some(()) };
        for (index, layer) in self.layers.iter().enumerate().skip(lowest.layer).rev() {
            if cancelled() {
                return None;
            }
            match recompute {
                Recompute::Full => layer.forward(dev, pass),
                Recompute::Mlp => layer.mlp.recompute(dev, pass),
                Recompute::None | Recompute::Auto => {}
            }
            let end = Some(lowest).filter(|lowest| lowest.layer == index);
            let in_mlp = end.filter(|end| end.mixer.is_none()).and_then(|end| end.mlp);
            layer.mlp.backward(dev, pass, self.dx, in_mlp);
            if in_mlp.is_none() {
                layer.mixer.backward(dev, pass, self.dx, end.and_then(|end| end.mixer));
            }
        }
        Some(())
    }
}
