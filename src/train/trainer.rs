//! The training step, evaluation, and the state between two steps: what is trained on when, at which rate, and what is
//! due. The numbers are the engine's; files are the run's.

use super::engine::{Engine, Gradients, Update};
use super::schedule::Schedule;
use super::start::history::{recorded, settings_at};
use crate::checkpoint::state::{Best, History, PlanOrigin, State, digest_of};
use crate::config::{Settings, Strategy};
use crate::data::batch::MicroBatch;
use crate::data::dataset::Dataset;
use crate::data::plan::{Origin, Plan, Rules, StepPlan};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::report::line::StepLine;

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

/// A step that the engine is at work on.
pub struct StepUnderWay {
    plan: StepPlan,
    batches: Vec<MicroBatch>,
}

/// Rows, and the plan that batches them.
pub struct Source {
    /// The rows.
    pub rows: Dataset,
    /// Which of them make up which step.
    pub plan: Plan,
}

/// A run's state and what decides how it goes on.
pub struct Trainer {
    settings: Settings,
    schedule: Schedule,
    engine: Box<dyn Engine>,
    train: Source,
    eval: Option<Source>,
    /// All of the state between two steps but its arrays, which the engine holds.
    state: State,
}

/// The plan's rules for training.
#[must_use]
pub fn train_rules(s: &Settings, origin: PlanOrigin) -> Rules {
    Rules {
        batch_size: s.per_device_train_batch_size,
        accumulation: s.gradient_accumulation_steps,
        packing: s.packing,
        tokens_per_micro_batch: s.tokens_per_micro_batch,
        shuffle: s.shuffle,
        seed: s.seed,
        epochs: s.num_train_epochs,
        max_steps: s.max_steps,
        origin: Origin { step: origin.step, epoch: origin.epoch, samples: origin.samples },
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
        ..train_rules(s, PlanOrigin::default())
    }
}

/// Sum in f64, first to last: the order is part of the result.
fn sum(losses: &[f32]) -> f64 {
    losses.iter().fold(0.0, |total, &loss| total + f64::from(loss))
}

/// Token-weighted loss over all rows of `source`; `None` when cancelled.
///
/// # Errors
/// I/O errors of the token cache; a device that failed.
pub fn mean_loss(
    engine: &mut dyn Engine,
    source: &mut Source,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<f64>> {
    let (mut total, mut tokens) = (0.0, 0usize);
    for step in 0..source.plan.total_steps() {
        for rows in source.plan.step(step).micro_batches {
            let batch = engine.batch(&source.rows, &rows)?;
            let Some(losses) = engine.losses(&batch, cancelled)? else { return Ok(None) };
            total += sum(&losses);
            tokens += losses.len();
        }
    }
    Ok(Some(total / tokens as f64))
}

impl Trainer {
    /// A trainer at step 0, with the values the engine holds. `history` is all of the run's, also what counts only from
    /// a later step on; its recorded settings win over those in `settings`.
    ///
    /// # Errors
    /// Wrong schedule arguments.
    pub fn new(
        settings: Settings,
        identity: Identity,
        history: History,
        engine: Box<dyn Engine>,
        train: Source,
        eval: Option<Source>,
    ) -> Result<Self> {
        let schedule = Schedule::new(&settings)?;
        let state = State { identity, history, tensors: engine.tensors(), ..State::default() };
        let mut trainer = Trainer { settings, schedule, engine, train, eval, state };
        trainer.follow_history(0)?;
        Ok(trainer)
    }

    /// The state without its arrays: step, identity, history, counters, log.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// As [`Trainer::state`], to be added to.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// State and engine at once, for saving.
    pub fn saving(&mut self) -> (&State, &mut dyn Engine) {
        (&self.state, &mut *self.engine)
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut dyn Engine {
        &mut *self.engine
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Steps of the run as now planned.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.train.plan.total_steps()
    }

    /// Whether nothing is left to do: all steps done, or evaluation stopped improving.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.step() >= self.total_steps() || self.out_of_patience()
    }

    /// Whether early stopping ended the run.
    #[must_use]
    pub fn out_of_patience(&self) -> bool {
        self.patience().is_some_and(|p| self.state.cursor.stale_evaluations >= p)
    }

    /// Evaluations without a better one after which the run ends, as it counts for the next step.
    #[must_use]
    pub fn patience(&self) -> Option<u64> {
        let ahead = recorded(&self.state.history, "early_stopping_patience", self.step());
        // Nothing is written as a word.
        ahead.map_or(self.settings.early_stopping_patience, |text| text.parse().ok())
    }

    /// Takes the recorded settings as they count after `done` steps. What was made after a step follows those of the
    /// step; the next step those that count from there on.
    fn follow_history(&mut self, done: u64) -> Result<()> {
        let settings = settings_at(&self.settings, &self.state.history, done)?;
        if settings.per_device_eval_batch_size != self.settings.per_device_eval_batch_size
            && let Some(eval) = &mut self.eval
        {
            eval.plan = Plan::new(eval.rows.lengths(), eval_rules(&settings))?;
        }
        self.settings = settings;
        Ok(())
    }

    /// Whether recorded settings change with the step after `done`.
    fn changes_after(&self, done: u64) -> bool {
        self.state.history.changes.iter().any(|change| change.from_step == done)
    }

    /// Steps of the run as planned when the step just done was made.
    fn total_so_far(&self) -> u64 {
        let length = self.state.history.at(self.step().saturating_sub(1));
        length.map_or_else(|| self.total_steps(), |length| length.total_steps)
    }

    /// Runs the next optimizer step. `None` when cancelled: the state is then still that of the last step.
    ///
    /// # Errors
    /// As [`Trainer::begin_step`] and [`Trainer::end_step`].
    pub fn train_step(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<StepResult>> {
        let begun = self.begin_step(cancelled)?;
        begun.map(|step| self.end_step(step)).transpose()
    }

    /// Begins the next optimizer step. `None` when cancelled: the state is then still that of the last step.
    ///
    /// # Errors
    /// I/O errors of the token cache; a device that failed.
    pub fn begin_step(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<StepUnderWay>> {
        if self.step() > 0 && self.changes_after(self.step()) {
            self.follow_history(self.step())?;
        }
        let plan = self.train.plan.step(self.state.step);
        let batch = |rows: &Vec<u32>| self.engine.batch(&self.train.rows, rows);
        let batches: Vec<MicroBatch> = plan.micro_batches.iter().map(batch).collect::<Result<_>>()?;
        let begun = self.engine.begin_step(self.state.step, &batches, cancelled)?;
        Ok(begun.then_some(StepUnderWay { plan, batches }))
    }

    /// Ends a step that was begun: waits for its gradients, updates the weights.
    ///
    /// # Errors
    /// [`crate::error::Kind::Diverged`] when a loss or gradient is not finite, with step, rows and tensor.
    pub fn end_step(&mut self, step: StepUnderWay) -> Result<StepResult> {
        let StepUnderWay { plan, batches } = step;
        let gradients = self.engine.end_step()?;
        self.check(&plan, &gradients)?;
        let Gradients { losses, divisor, norm: grad_norm } = gradients;
        let lr = self.schedule.learning_rate(self.step(), &self.state.history.lengths);
        self.update(lr, grad_norm)?;
        let real_tokens = batches.iter().map(|b| b.real_tokens as u64).sum();
        let tokens = batches.iter().map(|b| b.scored.len() as u64).sum();
        let state = &mut self.state;
        state.step += 1;
        state.cursor.samples += plan.micro_batches.iter().map(|r| r.len() as u64).sum::<u64>();
        state.cursor.tokens += real_tokens;
        let loss = losses.iter().fold(0.0, |total, loss| total + loss) / divisor;
        let line = StepLine { step: state.step, epoch: plan.epochs_done(), loss, grad_norm, lr, tokens };
        Ok(StepResult { line, real_tokens, last_in_epoch: plan.last_in_epoch })
    }

    fn check(&mut self, plan: &StepPlan, gradients: &Gradients) -> Result<()> {
        let step = self.step() + 1;
        if let Some(index) = gradients.losses.iter().position(|loss| !loss.is_finite()) {
            return Err(Error::diverged(format!(
                "step {step}: the loss of micro-batch {} is {}, rows {:?}",
                index + 1,
                gradients.losses[index],
                plan.micro_batches[index]
            ))
            .hint("lower --learning-rate, or look at those rows"));
        }
        if gradients.norm.is_finite() {
            return Ok(());
        }
        let tensor = self.engine.broken_gradient()?.unwrap_or_else(|| "the norm overflows".into());
        let what = format!("step {step}: the gradient is not finite: {tensor}");
        Err(Error::diverged(what).hint("lower --learning-rate"))
    }

    /// Clips by norm (PyTorch's `clip_grad_norm_`) and updates the parameters.
    fn update(&mut self, lr: f64, grad_norm: f64) -> Result<()> {
        let most = self.settings.max_grad_norm;
        let clip = if most > 0.0 { (most / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let count = self.step() + 1 - self.state.cursor.updates_behind;
        self.engine.update(&Update { lr, count, grad_scale: clip as f32 })
    }

    /// Token-weighted loss over the evaluation rows; `None` without rows or when cancelled.
    ///
    /// # Errors
    /// I/O errors of the token cache; [`crate::error::Kind::Diverged`] when it is not finite.
    pub fn evaluate(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<f64>> {
        let Some(source) = &mut self.eval else { return Ok(None) };
        match mean_loss(&mut *self.engine, source, cancelled)? {
            Some(loss) if !loss.is_finite() => {
                Err(Error::diverged(format!("step {}: the evaluation loss is {loss}", self.state.step)))
            }
            other => Ok(other),
        }
    }

    /// Takes an evaluation into account; the adapter's values when it is the best so far.
    ///
    /// # Errors
    /// When the device failed.
    pub fn note_evaluation(&mut self, loss: f64) -> Result<Option<Vec<f32>>> {
        let cursor = &mut self.state.cursor;
        if cursor.best.is_some_and(|best| loss >= best.loss) {
            cursor.stale_evaluations += 1;
            return Ok(None);
        }
        let values = self.engine.parameters()?;
        cursor.best = Some(Best { loss, step: self.state.step, adapter: digest_of(&values) });
        cursor.stale_evaluations = 0;
        Ok(Some(values))
    }

    /// Loss of the next step's first micro-batch: something to compare a continuation with. `None` when
    /// cancelled.
    ///
    /// # Errors
    /// I/O errors of the token cache.
    pub fn next_loss(&mut self, cancelled: &dyn Fn() -> bool) -> Result<Option<f64>> {
        let plan = self.train.plan.step(self.state.step);
        let batch = self.engine.batch(&self.train.rows, &plan.micro_batches[0])?;
        Ok(self.engine.losses(&batch, cancelled)?.map(|losses| sum(&losses)))
    }

    /// Takes over a checkpoint's state, all but its identity and history, which the trainer has.
    ///
    /// # Errors
    /// Names the tensor that does not fit the model and adapter.
    pub fn restore(&mut self, mut state: State) -> Result<()> {
        let expected = &self.state.tensors;
        if state.tensors.len() != expected.len() {
            return Err(Error::input(format!(
                "checkpoint holds {} adapter tensors, this model has {}",
                state.tensors.len(),
                expected.len()
            )));
        }
        if let Some((have, want)) = state.tensors.iter().zip(expected).find(|(have, want)| have != want) {
            return Err(Error::input(format!(
                "checkpoint has {} {:?} where this model expects {} {:?}",
                have.name, have.shape, want.name, want.shape
            )));
        }
        let samples = self.train.plan.samples_before(state.step);
        if samples != state.cursor.samples {
            return Err(Error::input(format!(
                "checkpoint at step {} has consumed {} rows, the data plan says {samples}",
                state.step, state.cursor.samples
            )));
        }
        let [weights, m, v] = [&mut state.weights, &mut state.m, &mut state.v].map(std::mem::take);
        self.engine.restore(&weights, &m, &v)?;
        state.identity = std::mem::take(&mut self.state.identity);
        state.history = std::mem::take(&mut self.state.history);
        self.state = state;
        self.follow_history(self.step().saturating_sub(1))
    }

    /// Whether an evaluation is due after the step just done.
    #[must_use]
    pub fn evaluation_due(&self, last_in_epoch: bool) -> bool {
        if self.eval.is_none() || self.settings.eval_strategy == Strategy::No {
            return false;
        }
        let every = self.settings.eval_steps.unwrap_or(self.settings.logging_steps as f64);
        self.due(self.settings.eval_strategy, every, last_in_epoch) || self.step() >= self.total_so_far()
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
        self.step() > 0 && self.train.plan.step(self.step() - 1).last_in_epoch
    }

    /// A value of `every` below 1 is a ratio of all steps, rounded up, as in Hugging Face.
    fn due(&self, strategy: Strategy, every: f64, last_in_epoch: bool) -> bool {
        let steps = if every < 1.0 { (every * self.total_so_far() as f64).ceil() } else { every };
        match strategy {
            Strategy::Steps => self.step().is_multiple_of(steps.max(1.0) as u64),
            Strategy::Epoch => last_in_epoch,
            Strategy::No => false,
        }
    }
}
