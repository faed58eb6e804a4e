//! The training step, evaluation, and the state between two steps. Knows no files but the base and the data.

use super::schedule::{Schedule, warmup_steps};
use crate::checkpoint::state::{Best, Cursor, History, Length, State, TensorEntry, digest_of};
use crate::config::{Settings, Strategy};
use crate::data::batch::{self, MicroBatch};
use crate::data::dataset::Dataset;
use crate::data::plan::{Plan, Rules, StepPlan};
use crate::device::{Device, Region};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::model::network::{DropoutKey, Input, Network};
use crate::model::{AdapterSpec, Layout};
use crate::ops::adamw::{self, AdamW};
use crate::ops::attention::Segment;
use crate::ops::rows;
use crate::report::line::{LogLine, StepLine};

/// What one optimizer step gave.
#[derive(Clone, Copy, Debug)]
pub struct StepResult {
    /// The step's line, without its clock.
    pub line: StepLine,
    /// Tokens processed, padding left out.
    pub real_tokens: u64,
    /// Whether it was the last step of its epoch.
    pub last_in_epoch: bool,
}

/// Rows, and the plan that batches them.
pub struct Source {
    /// The rows.
    pub rows: Dataset,
    /// Which of them make up which step.
    pub plan: Plan,
}

/// A model under training on a device.
pub struct Trainer {
    settings: Settings,
    schedule: Schedule,
    device: Device,
    network: Network,
    layout: Layout,
    adapter: AdapterSpec,
    train: Source,
    eval: Option<Source>,
    cursor: Cursor,
    history: History,
    step: u64,
    snapshot: Option<Snapshot>,
}

/// A state on its way to the host.
struct Snapshot {
    state: State,
    under_way: bool,
    /// Whether all of it is finite; known when it has come.
    finite: bool,
}

/// The plan's rules for training.
#[must_use]
pub fn train_rules(s: &Settings) -> Rules {
    Rules {
        batch_size: s.per_device_train_batch_size,
        accumulation: s.gradient_accumulation_steps,
        packing: s.packing,
        tokens_per_micro_batch: s.tokens_per_micro_batch,
        shuffle: s.shuffle,
        seed: s.seed,
        epochs: s.num_train_epochs,
        max_steps: s.max_steps,
    }
}

/// The plan's rules for evaluation: once through, in file order.
#[must_use]
pub fn eval_rules(s: &Settings) -> Rules {
    Rules {
        batch_size: s.per_device_eval_batch_size,
        accumulation: 1,
        shuffle: false,
        epochs: 1.0,
        max_steps: None,
        ..train_rules(s)
    }
}

fn segments(batch: &MicroBatch) -> Vec<Segment> {
    batch.segments.iter().map(|&(start, len)| Segment { start, len }).collect()
}

fn input<'a>(batch: &'a MicroBatch, segments: &'a [Segment]) -> Input<'a> {
    Input {
        ids: &batch.ids,
        positions: &batch.positions,
        segments,
        scored: &batch.scored,
        targets: &batch.targets,
    }
}

/// Sum in f64, first to last: the order is part of the result.
fn sum(losses: &[f32]) -> f64 {
    losses.iter().fold(0.0, |total, &loss| total + f64::from(loss))
}

impl Trainer {
    /// A trainer at step 0 with the given flat adapter values. `progress` gets the bytes of frozen weights that were copied
    /// to the device, and those in all.
    ///
    /// # Errors
    /// Wrong schedule arguments; a device that failed.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        settings: Settings,
        device: Device,
        network: Network,
        layout: Layout,
        adapter: AdapterSpec,
        train: Source,
        eval: Option<Source>,
        initial: &[f32],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let schedule = Schedule::new(&settings)?;
        let total_steps = train.plan.total_steps();
        let history = History::new(total_steps, warmup_steps(&settings, total_steps));
        let mut trainer = Trainer {
            settings,
            schedule,
            device,
            network,
            layout,
            adapter,
            train,
            eval,
            cursor: Cursor::default(),
            history,
            step: 0,
            snapshot: None,
        };
        trainer.network.upload(&mut trainer.device, progress)?;
        let params = trainer.network.state.params;
        trainer.device.write(params, initial)?;
        Ok(trainer)
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps of the run as now planned.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.train.plan.total_steps()
    }

    /// Counters and best evaluation.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Whether nothing is left to do: all steps done, or evaluation stopped improving.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.step >= self.total_steps() || self.out_of_patience()
    }

    /// Whether early stopping ended the run.
    #[must_use]
    pub fn out_of_patience(&self) -> bool {
        self.settings.early_stopping_patience.is_some_and(|p| self.cursor.stale_evaluations >= p)
    }

    /// The flat adapter values.
    ///
    /// # Errors
    /// When the device failed.
    pub fn parameters(&mut self) -> Result<Vec<f32>> {
        self.device.read(self.network.state.params)
    }

    /// Puts flat adapter values in place of the current ones; zeros are the base model alone.
    ///
    /// # Errors
    /// When the device failed.
    pub fn set_parameters(&mut self, values: &[f32]) -> Result<()> {
        let params = self.network.state.params;
        self.device.write(params, values)
    }

    /// The evaluation rows.
    #[must_use]
    pub fn evaluation_rows(&self) -> Option<&Dataset> {
        self.eval.as_ref().map(|source| &source.rows)
    }

    /// The device, for its own settings.
    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    /// Where each tensor lies in the flat values.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the adapter is.
    #[must_use]
    pub fn adapter(&self) -> &AdapterSpec {
        &self.adapter
    }

    /// Runs the next optimizer step. `None` when cancelled: the state is then still that of the last step.
    ///
    /// # Errors
    /// [`crate::error::Kind::Diverged`] when a loss or gradient is not finite, with step, rows and tensor.
    pub fn train_step(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<StepResult>> {
        let plan = self.train.plan.step(self.step);
        let batches: Vec<MicroBatch> =
            plan.micro_batches.iter().map(|r| batch::assemble(&self.train.rows, r)).collect::<Result<_>>()?;
        let tokens: usize = batches.iter().map(|b| b.scored.len()).sum();
        let Some(total) = self.gradients(&plan, &batches, tokens, cancelled)? else { return Ok(None) };
        let loss = total / tokens as f64;
        let grad_norm = self.network.gradient_square(&mut self.device)?.sqrt();
        if !grad_norm.is_finite() {
            return Err(self.diverged_gradient()?);
        }
        let lr = self.schedule.learning_rate(self.step, &self.history.lengths);
        self.update(lr, grad_norm);
        let real_tokens = batches.iter().map(|b| b.real_tokens as u64).sum();
        self.step += 1;
        self.cursor.samples += plan.micro_batches.iter().map(|r| r.len() as u64).sum::<u64>();
        self.cursor.tokens += real_tokens;
        let epoch = plan.epoch as f64 + (plan.step_in_epoch + 1) as f64 / plan.steps_in_epoch as f64;
        let line = StepLine { step: self.step, epoch, loss, grad_norm, lr, tokens: tokens as u64 };
        Ok(Some(StepResult { line, real_tokens, last_in_epoch: plan.last_in_epoch }))
    }

    /// Sums losses and gradients over the step's micro-batches, in order.
    fn gradients(
        &mut self,
        plan: &StepPlan,
        batches: &[MicroBatch],
        tokens: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<f64>> {
        rows::zero(&mut self.device, self.network.state.grads);
        let scale = (1.0 / tokens as f64) as f32;
        let mut total = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            if cancelled() {
                return Ok(None);
            }
            let segments = segments(batch);
            let key = DropoutKey { seed: self.settings.seed, step: self.step, micro_batch: index as u32 };
            let input = input(batch, &segments);
            if self.network.accumulate(&mut self.device, input, scale, key, cancelled)?.is_none() {
                return Ok(None);
            }
            self.end_snapshot()?;
            let loss = sum(&self.network.losses(&mut self.device, batch.targets.len())?);
            if !loss.is_finite() {
                return Err(Error::diverged(format!(
                    "step {}: the loss of micro-batch {} is {loss}, rows {:?}",
                    self.step + 1,
                    index + 1,
                    plan.micro_batches[index]
                ))
                .hint("the last saved checkpoint stands; lower --learning-rate, or look at those rows"));
            }
            total += loss;
        }
        Ok(Some(total))
    }

    fn diverged_gradient(&mut self) -> Result<Error> {
        let grads = self.device.read(self.network.state.grads)?;
        let broken = |start: usize, len: usize| grads[start..start + len].iter().any(|g| !g.is_finite());
        let tensors = self.layout.tensors();
        let first = tensors.iter().find(|(_, shape, start)| broken(*start, shape[0] * shape[1]));
        let name = first.map_or("the norm overflows", |(name, _, _)| name);
        Ok(Error::diverged(format!("step {}: the gradient is not finite: {name}", self.step + 1))
            .hint("the last saved checkpoint stands; lower --learning-rate"))
    }

    /// Clips by norm (PyTorch's `clip_grad_norm_`) and updates the parameters.
    fn update(&mut self, lr: f64, grad_norm: f64) {
        let s = &self.settings;
        let clip = if s.max_grad_norm > 0.0 { (s.max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let numbers = AdamW {
            lr,
            beta1: s.adam_beta1,
            beta2: s.adam_beta2,
            epsilon: s.adam_epsilon,
            weight_decay: s.weight_decay,
            step: self.step + 1 - self.cursor.updates_behind,
            grad_scale: clip as f32,
        };
        let ratio = s.loraplus_lr_ratio;
        let state = self.network.state;
        let mut run = |numbers: &AdamW, start: usize, len: usize| {
            let part = |r: Region| r.slice(start, len);
            let (params, grads) = (part(state.params), part(state.grads));
            adamw::step(&mut self.device, numbers, params, grads, part(state.m), part(state.v));
        };
        if ratio == 1.0 {
            return run(&numbers, 0, self.layout.len);
        }
        // LoRA+ (Hayou et al. 2024): B learns faster than A.
        let faster = AdamW { lr: lr * ratio, ..numbers };
        for slot in &self.layout.slots {
            run(&numbers, slot.a, slot.b - slot.a);
            run(&faster, slot.b, slot.lens()[1]);
        }
    }

    /// Token-weighted loss over the evaluation rows; `None` without rows or when cancelled.
    ///
    /// # Errors
    /// I/O errors of the token cache; [`crate::error::Kind::Diverged`] when it is not finite.
    pub fn evaluate(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<f64>> {
        let Some(source) = &mut self.eval else { return Ok(None) };
        let (mut total, mut tokens) = (0.0, 0usize);
        for step in 0..source.plan.total_steps() {
            for rows in source.plan.step(step).micro_batches {
                let batch = batch::assemble(&source.rows, &rows)?;
                let segments = segments(&batch);
                let losses = self.network.loss(&mut self.device, input(&batch, &segments), cancelled)?;
                let Some(losses) = losses else { return Ok(None) };
                total += sum(&losses);
                tokens += losses.len();
            }
        }
        let loss = total / tokens as f64;
        if loss.is_finite() {
            return Ok(Some(loss));
        }
        Err(Error::diverged(format!("step {}: the evaluation loss is {loss}", self.step)))
    }

    /// Takes an evaluation into account; the adapter's values when it is the best so far.
    ///
    /// # Errors
    /// When the device failed.
    pub fn note_evaluation(&mut self, loss: f64) -> Result<Option<Vec<f32>>> {
        if self.cursor.best.is_some_and(|best| loss >= best.loss) {
            self.cursor.stale_evaluations += 1;
            return Ok(None);
        }
        let values = self.parameters()?;
        self.cursor.best = Some(Best { loss, step: self.step, adapter: digest_of(&values) });
        self.cursor.stale_evaluations = 0;
        Ok(Some(values))
    }

    /// Loss of the next step's first micro-batch: something to compare a continuation with. `None` when
    /// cancelled.
    ///
    /// # Errors
    /// I/O errors of the token cache.
    pub fn next_loss(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<f64>> {
        let plan = self.train.plan.step(self.step);
        let batch = batch::assemble(&self.train.rows, &plan.micro_batches[0])?;
        let segments = segments(&batch);
        let losses = self.network.loss(&mut self.device, input(&batch, &segments), cancelled)?;
        Ok(losses.map(|l| sum(&l)))
    }

    /// Starts copying the state out for a checkpoint, into the memory of `spare` where there is one. A GPU copies it beside
    /// the next step's work; it is whole when [`Trainer::take_snapshot`] gives it. An older one that nobody took is
    /// dropped.
    ///
    /// # Errors
    /// When the device failed.
    pub fn begin_snapshot(
        &mut self,
        spare: Option<State>,
        identity: &Identity,
        tainted: bool,
        log: &[LogLine],
    ) -> Result<()> {
        self.end_snapshot()?;
        let mut state = spare.unwrap_or_default();
        state.step = self.step;
        state.tainted = tainted;
        state.identity = identity.clone();
        let entry = |(name, shape, offset)| TensorEntry { name, shape, offset };
        state.tensors = self.layout.tensors().into_iter().map(entry).collect();
        state.cursor = self.cursor.clone();
        state.history = self.history.clone();
        state.log = log.to_vec();
        self.device.begin_snapshot(&self.network.state.kept())?;
        self.snapshot = Some(Snapshot { state, under_way: true, finite: false });
        Ok(())
    }

    /// Waits for a copy that is under way and looks through it; the state may change again. On a GPU this is done while the
    /// next micro-batch is computed.
    fn end_snapshot(&mut self) -> Result<()> {
        let Some(snapshot) = self.snapshot.as_mut().filter(|s| s.under_way) else { return Ok(()) };
        snapshot.under_way = false;
        let State { weights, m, v, .. } = &mut snapshot.state;
        for values in [&mut *weights, &mut *m, &mut *v] {
            values.clear();
        }
        self.device.end_snapshot(&self.network.state.kept(), [&mut *weights, &mut *m, &mut *v])?;
        // Without branches within a piece: the compiler makes vector code of it.
        let all = |piece: &[f32]| piece.iter().fold(true, |all, v| all & v.is_finite());
        snapshot.finite = [weights, m, v].into_iter().all(|values| values.chunks(4096).all(all));
        Ok(())
    }

    /// The state whose copying was begun last, whole; waits for it when `wait`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Diverged`] when a parameter or moment is not finite: nothing such is published.
    pub fn take_snapshot(&mut self, wait: bool) -> Result<Option<State>> {
        if wait || !self.device.capabilities().queued {
            self.end_snapshot()?;
        }
        let Some(Snapshot { state, finite, .. }) = self.snapshot.take_if(|s| !s.under_way) else {
            return Ok(None);
        };
        if finite {
            return Ok(Some(state));
        }
        let what = format!("step {}: a parameter or moment is not finite", state.step);
        Err(Error::diverged(what).hint("the last saved checkpoint stands; lower --learning-rate"))
    }

    /// Takes over a checkpoint's state.
    ///
    /// # Errors
    /// Names the tensor that does not fit the model and adapter.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let expected = self.layout.tensors();
        if state.tensors.len() != expected.len() {
            return Err(Error::input(format!(
                "checkpoint holds {} adapter tensors, this model has {}",
                state.tensors.len(),
                expected.len()
            )));
        }
        for (have, (name, shape, offset)) in state.tensors.iter().zip(&expected) {
            if have.name != *name || have.shape != *shape || have.offset != *offset {
                return Err(Error::input(format!(
                    "checkpoint has {} {:?} where this model expects {name} {shape:?}",
                    have.name, have.shape
                )));
            }
        }
        let samples = self.train.plan.samples_before(state.step);
        if samples != state.cursor.samples {
            return Err(Error::input(format!(
                "checkpoint at step {} has consumed {} rows, the data plan says {samples}",
                state.step, state.cursor.samples
            )));
        }
        let places = self.network.state;
        self.device.write(places.params, &state.weights)?;
        self.device.write(places.m, &state.m)?;
        self.device.write(places.v, &state.v)?;
        self.step = state.step;
        self.cursor = state.cursor.clone();
        self.history = state.history.clone();
        Ok(())
    }

    /// Records that the run now ends at another step: a new piece of schedule, without warm-up, from here to
    /// the new horizon. Returns whether anything changed.
    pub fn extend_schedule(&mut self) -> bool {
        let total_steps = self.total_steps();
        let unchanged = self.history.length().is_some_and(|l| l.total_steps == total_steps);
        if unchanged || total_steps <= self.step {
            return false;
        }
        if self.step == 0 {
            self.history = History::new(total_steps, warmup_steps(&self.settings, total_steps));
        } else {
            self.history.lengths.push(Length { from_step: self.step, total_steps, warmup_steps: 0 });
        }
        true
    }

    /// Whether an evaluation is due after the step just done.
    #[must_use]
    pub fn evaluation_due(&self, last_in_epoch: bool) -> bool {
        if self.eval.is_none() || self.settings.eval_strategy == Strategy::No {
            return false;
        }
        let every = self.settings.eval_steps.unwrap_or(self.settings.logging_steps as f64);
        self.due(self.settings.eval_strategy, every, last_in_epoch) || self.step >= self.total_steps()
    }

    /// Whether a checkpoint is due after the step just done.
    #[must_use]
    pub fn save_due(&self, last_in_epoch: bool) -> bool {
        let s = &self.settings;
        let last = s.save_strategy != Strategy::No && self.finished();
        self.due(s.save_strategy, s.save_steps, last_in_epoch) || last
    }

    /// [`Trainer::evaluation_due`] for the step the state stands at.
    pub fn evaluation_due_now(&mut self) -> bool {
        let ended = self.epoch_just_ended();
        self.evaluation_due(ended)
    }

    /// [`Trainer::save_due`] for the step the state stands at.
    pub fn save_due_now(&mut self) -> bool {
        let ended = self.epoch_just_ended();
        self.save_due(ended)
    }

    fn epoch_just_ended(&mut self) -> bool {
        self.step > 0 && self.train.plan.step(self.step - 1).last_in_epoch
    }

    /// A value of `every` below 1 is a ratio of all steps, rounded up, as in Hugging Face.
    fn due(&self, strategy: Strategy, every: f64, last_in_epoch: bool) -> bool {
        let steps = if every < 1.0 { (every * self.total_steps() as f64).ceil() } else { every };
        match strategy {
            Strategy::Steps => self.step.is_multiple_of(steps.max(1.0) as u64),
            Strategy::Epoch => last_in_epoch,
            Strategy::No => false,
        }
    }
}
