//! The numbers of a run: gradients, updates, losses, and copies of the trainable state. Knows no plan of the data, no
//! schedule and no files; the trainer, which does, knows no device.

use super::objective::{Objective, Pass};
use crate::checkpoint::state::TensorEntry;
use crate::config::Settings;
use crate::data::batch::MicroBatch;
use crate::data::dataset::Dataset;
use crate::device::{Device, Region};
use crate::error::Result;
use crate::formats::peft;
use crate::model::network::{DropoutKey, Network};
use crate::model::{AdapterSpec, Layout};
use crate::ops::adamw::{self, AdamW};
use crate::ops::reduce::Sums;
use crate::ops::rows;

/// The gradients of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// Sum of the tokens' losses of each micro-batch, in order.
    pub losses: Vec<f64>,
    /// What their sum is divided by to give the step's loss.
    pub divisor: f64,
    /// Norm of all gradients.
    pub norm: f64,
}

/// Numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Updates with this one: AdamW's t.
    pub count: u64,
    /// Factor of the gradients.
    pub grad_scale: f32,
}

/// What can be saved while training goes on: weights and both moments.
pub trait Copied {
    /// Starts copying weights and both moments, as they stand after all work that was begun, into the memory of `into`. What
    /// is begun from now on and would change them waits by itself.
    ///
    /// # Errors
    /// When the device failed.
    fn begin_copy(&mut self, into: [Vec<f32>; 3]) -> Result<()>;

    /// Waits for the copy begun last.
    ///
    /// # Errors
    /// When the device failed.
    fn end_copy(&mut self) -> Result<[Vec<f32>; 3]>;

    /// Whether a copy takes time beside other work; else it is complete when it was begun.
    fn copies_beside(&self) -> bool;
}

/// Asked now and then whether work is to be given up.
pub type Cancelled<'a> = &'a dyn Fn() -> bool;

/// The numbers of a run.
pub trait Engine: Copied {
    /// A micro-batch of these rows.
    ///
    /// # Errors
    /// I/O errors of the token cache.
    fn batch(&self, rows: &Dataset, indices: &[u32]) -> Result<MicroBatch>;

    /// Queues or does what gives the gradients of the step after `step` steps. False when cancelled: there are none then.
    ///
    /// # Errors
    /// When the device failed.
    fn begin_step(&mut self, step: u64, batches: &[MicroBatch], cancelled: Cancelled<'_>) -> Result<bool>;

    /// Waits for what [`Engine::begin_step`] began.
    ///
    /// # Errors
    /// When the device failed.
    fn end_step(&mut self) -> Result<Gradients>;

    /// The first tensor of which a gradient is not finite; `None` when all are.
    ///
    /// # Errors
    /// When the device failed.
    fn broken_gradient(&mut self) -> Result<Option<String>>;

    /// Updates weights and moments.
    ///
    /// # Errors
    /// When the device failed.
    fn update(&mut self, update: &Update) -> Result<()>;

    /// Losses of a micro-batch's tokens, without dropout. `None` when cancelled.
    ///
    /// # Errors
    /// When the device failed.
    fn losses(&mut self, batch: &MicroBatch, cancelled: Cancelled<'_>) -> Result<Option<Vec<f32>>>;

    /// The adapter's tensors, in the order of the flat values.
    fn tensors(&self) -> Vec<TensorEntry>;

    /// The flat values of the adapter.
    ///
    /// # Errors
    /// When the device failed.
    fn parameters(&mut self) -> Result<Vec<f32>>;

    /// Puts weights and both moments in place of the present ones.
    ///
    /// # Errors
    /// When the device failed.
    fn restore(&mut self, weights: &[f32], m: &[f32], v: &[f32]) -> Result<()>;

    /// Flat values as an adapter of the model `base`.
    fn to_peft(&self, values: &[f32], base: &str) -> peft::Adapter;

    /// The adapter's flat values; `None` where a tensor of it is missing or does not fit.
    fn values_of(&self, adapter: &peft::Adapter) -> Option<Vec<f32>>;
}

/// A model under training on a device.
pub struct NetworkEngine {
    /// The device.
    pub device: Device,
    network: Network,
    objective: Box<dyn Objective>,
    layout: Layout,
    adapter: AdapterSpec,
    /// Losses of the micro-batches of a step.
    sums: Sums,
    divisor: f64,
    optimizer: Optimizer,
}

/// What of the settings the numbers of a step need.
#[derive(Clone, Copy, Debug)]
struct Optimizer {
    seed: u64,
    /// AdamW without what changes from step to step.
    adamw: AdamW,
    loraplus_lr_ratio: f64,
}

/// What an engine is made of.
pub struct Parts {
    /// The device, its memory allocated.
    pub device: Device,
    /// The model, planned on it.
    pub network: Network,
    /// What is minimised.
    pub objective: Box<dyn Objective>,
    /// Where each tensor lies in the flat values.
    pub layout: Layout,
    /// What the adapter is.
    pub adapter: AdapterSpec,
    /// Planned for the micro-batches of a step.
    pub sums: Sums,
}

impl NetworkEngine {
    /// Copies the model and the flat values `initial` to the device. `progress` gets the bytes of frozen weights that were
    /// copied, and those in all.
    ///
    /// # Errors
    /// When the device failed.
    pub fn new(
        parts: Parts,
        s: &Settings,
        initial: &[f32],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let Parts { mut device, mut network, objective, layout, adapter, sums } = parts;
        network.upload(&mut device, progress)?;
        device.write(network.state.params, initial)?;
        let adamw = AdamW {
            lr: 0.0,
            beta1: s.adam_beta1,
            beta2: s.adam_beta2,
            epsilon: s.adam_epsilon,
            weight_decay: s.weight_decay,
            step: 0,
            grad_scale: 1.0,
        };
        let optimizer = Optimizer { seed: s.seed, adamw, loraplus_lr_ratio: s.loraplus_lr_ratio };
        Ok(NetworkEngine { device, network, objective, layout, adapter, sums, divisor: 1.0, optimizer })
    }
}

impl NetworkEngine {
    /// Puts flat adapter values in place of the current ones; zeros are the base model alone.
    ///
    /// # Errors
    /// When the device failed.
    pub fn set_parameters(&mut self, values: &[f32]) -> Result<()> {
        self.device.write(self.network.state.params, values)
    }
}

impl Copied for NetworkEngine {
    fn begin_copy(&mut self, into: [Vec<f32>; 3]) -> Result<()> {
        self.device.begin_copy(self.network.state.kept(), into)
    }

    fn end_copy(&mut self) -> Result<[Vec<f32>; 3]> {
        self.device.end_copy()
    }

    fn copies_beside(&self) -> bool {
        self.device.capabilities().queued
    }
}

impl Engine for NetworkEngine {
    fn batch(&self, rows: &Dataset, indices: &[u32]) -> Result<MicroBatch> {
        self.objective.batch(rows, indices)
    }

    fn begin_step(&mut self, step: u64, batches: &[MicroBatch], cancelled: Cancelled<'_>) -> Result<bool> {
        let divisor = self.objective.divisor(batches);
        self.divisor = divisor;
        rows::zero(&mut self.device, self.network.state.grads);
        self.sums.clear();
        for (index, batch) in batches.iter().enumerate() {
            if cancelled() {
                return Ok(false);
            }
            let dropout = DropoutKey { seed: self.optimizer.seed, step, micro_batch: index as u32 };
            let pass = Pass { batch, divisor, dropout };
            match self.objective.accumulate(&self.network, &mut self.device, &pass, cancelled)? {
                Some(losses) => self.sums.add(&mut self.device, losses),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn end_step(&mut self) -> Result<Gradients> {
        let norm = self.network.gradient_square(&mut self.device)?.sqrt();
        let losses = self.sums.read(&mut self.device)?;
        Ok(Gradients { losses, divisor: self.divisor, norm })
    }

    fn broken_gradient(&mut self) -> Result<Option<String>> {
        let grads = self.device.read(self.network.state.grads)?;
        let broken = |start: usize, len: usize| grads[start..start + len].iter().any(|g| !g.is_finite());
        let tensors = self.layout.tensors().into_iter();
        let mut broken = tensors.filter(|(_, shape, start)| broken(*start, shape[0] * shape[1]));
        Ok(broken.next().map(|(name, _, _)| name))
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        let Update { lr, count, grad_scale } = *update;
        let numbers = AdamW { lr, step: count, grad_scale, ..self.optimizer.adamw };
        let state = self.network.state;
        let mut run = |numbers: &AdamW, start: usize, len: usize| {
            let part = |r: Region| r.slice(start, len);
            let (params, grads) = (part(state.params), part(state.grads));
            adamw::step(&mut self.device, numbers, params, grads, part(state.m), part(state.v));
        };
        let ratio = self.optimizer.loraplus_lr_ratio;
        if ratio == 1.0 {
            run(&numbers, 0, self.layout.len);
            return Ok(());
        }
        // LoRA+ (Hayou et al. 2024): B learns faster than A.
        let faster = AdamW { lr: lr * ratio, ..numbers };
        for slot in &self.layout.slots {
            run(&numbers, slot.a, slot.b - slot.a);
            run(&faster, slot.b, slot.lens()[1]);
        }
        Ok(())
    }

    fn losses(&mut self, batch: &MicroBatch, cancelled: Cancelled<'_>) -> Result<Option<Vec<f32>>> {
        self.objective.losses(&self.network, &mut self.device, batch, cancelled)
    }

    fn tensors(&self) -> Vec<TensorEntry> {
        let entry = |(name, shape, offset)| TensorEntry { name, shape, offset };
        self.layout.tensors().into_iter().map(entry).collect()
    }

    fn parameters(&mut self) -> Result<Vec<f32>> {
        self.device.read(self.network.state.params)
    }

    fn restore(&mut self, weights: &[f32], m: &[f32], v: &[f32]) -> Result<()> {
        let state = self.network.state;
        self.device.write(state.params, weights)?;
        self.device.write(state.m, m)?;
        self.device.write(state.v, v)
    }

    fn to_peft(&self, values: &[f32], base: &str) -> peft::Adapter {
        self.layout.to_peft(&self.adapter, base, values)
    }

    fn values_of(&self, adapter: &peft::Adapter) -> Option<Vec<f32>> {
        self.layout.values_of(adapter).ok()
    }
}
