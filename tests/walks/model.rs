//! The small model: what a run was asked to be, and from that alone every state it may have.

use super::toy::{self, Numbers};
use qwentune::checkpoint::state::{PlanOrigin, State};
use qwentune::config::{Settings, Strategy};
use qwentune::report::line::{EvalLine, LogLine, StepLine};
use qwentune::train::run_file::RunFile;

pub const SEED: u64 = 7;
pub const WARMUP: u64 = 2;

/// What a run was asked to be. Lengths and evaluations count from a step on.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub lr: f64,
    pub batch: usize,
    pub lengths: Vec<(u64, u64)>,
    pub evals: Vec<(u64, u64)>,
    /// The run and step it branched off.
    pub parent: Option<(Box<Recipe>, u64)>,
}

/// A state as it must be.
#[derive(Clone, Debug)]
pub struct Expected {
    pub numbers: Numbers,
    pub log: Vec<LogLine>,
    pub best: Option<(f64, u64)>,
    /// The best before the evaluation that ends the log.
    best_before: Option<(f64, u64)>,
    pub samples: u64,
    origin: PlanOrigin,
}

fn at(pieces: &[(u64, u64)], done: u64) -> u64 {
    pieces.iter().rev().find(|(from, _)| *from <= done).expect("the first is from 0").1
}

fn change(pieces: &mut Vec<(u64, u64)>, step: u64, value: u64) {
    if pieces.last().expect("never empty").1 == value {
        return;
    }
    pieces.retain(|(from, _)| *from == 0 || *from < step);
    if step == 0 {
        *pieces = vec![(0, value)];
    } else if pieces.last().expect("never empty").1 != value {
        pieces.push((step, value));
    }
}

impl Recipe {
    pub fn new(lr: f64, batch: usize, total: u64, every: u64) -> Self {
        Recipe { lr, batch, lengths: vec![(0, total)], evals: vec![(0, every)], parent: None }
    }

    pub fn total(&self) -> u64 {
        self.lengths.last().expect("never empty").1
    }

    pub fn every(&self) -> u64 {
        self.evals.last().expect("never empty").1
    }

    /// The same run, longer or evaluated otherwise after `step` steps.
    pub fn changed(&self, step: u64, total: Option<u64>, every: Option<u64>) -> Self {
        let mut recipe = self.clone();
        let other = |new: Option<u64>, old: u64| new.is_some_and(|new| new != old);
        if step == 0 && (other(total, self.total()) || other(every, self.every())) {
            // It begins again, as something else.
            recipe.lengths = vec![(0, total.unwrap_or(self.total()))];
            recipe.evals = vec![(0, every.unwrap_or(self.every()))];
            return recipe;
        }
        if let Some(total) = total {
            change(&mut recipe.lengths, step, total);
        }
        if let Some(every) = every {
            change(&mut recipe.evals, step, every);
        }
        recipe
    }

    /// A branch off the state of `step` steps, which is this run's own, or that of its parent while it has saved nothing.
    pub fn branch(&self, step: u64, own: bool, lr: f64, batch: usize) -> Self {
        let parent = self.parent.as_ref().filter(|_| !own).map_or(self, |(parent, _)| parent);
        let mut recipe = Recipe::new(lr, batch, self.total(), 0);
        recipe.evals = parent.evals.iter().filter(|(from, _)| *from == 0 || *from < step).copied().collect();
        change(&mut recipe.evals, step, self.every());
        Recipe { parent: Some((Box::new(parent.clone()), step)), ..recipe }
    }

    pub fn settings(&self) -> Settings {
        Settings {
            learning_rate: self.lr,
            per_device_train_batch_size: self.batch,
            max_steps: Some(self.total()),
            warmup_steps: WARMUP as f64,
            seed: SEED,
            save_steps: 1000.0,
            save_total_limit: 2,
            eval_strategy: Strategy::Steps,
            eval_steps: Some(self.every() as f64),
            load_best_model_at_end: true,
            ..Settings::default()
        }
    }

    /// Whether `run.json` says the same.
    pub fn is_that_of(&self, run: &RunFile) -> bool {
        let lengths: Vec<(u64, u64)> =
            run.history.lengths.iter().map(|length| (length.from_step, length.total_steps)).collect();
        let evals: Vec<(u64, u64)> = run
            .history
            .changes
            .iter()
            .filter(|change| change.setting == "eval_steps")
            .map(|change| (change.from_step, change.value.parse().expect("a number")))
            .collect();
        let steps = |recipe: &Recipe| {
            let mut steps = Vec::new();
            let mut at = recipe;
            while let Some((parent, step)) = &at.parent {
                steps.insert(0, *step);
                at = parent;
            }
            steps
        };
        let lineage: Vec<u64> = run.history.lineage.iter().map(|ancestor| ancestor.step).collect();
        lengths == self.lengths
            && evals == self.evals
            && lineage == steps(self)
            && run.settings.learning_rate == self.lr
            && run.settings.per_device_train_batch_size == self.batch
    }

    /// One schedule over the length that counts for the step: linear with a warm-up.
    fn rate(&self, done: u64) -> f64 {
        let (total, done, warmup) = (at(&self.lengths, done) as f64, done as f64, WARMUP as f64);
        let factor =
            if done < warmup { done / warmup } else { ((total - done) / (total - warmup).max(1.0)).max(0.0) };
        self.lr * factor
    }

    /// The state after `step` steps.
    pub fn expected(&self, step: u64) -> Expected {
        let (begin, mut state) = match &self.parent {
            Some((parent, at)) if step < *at => return parent.expected(step),
            Some((parent, at)) => (*at, parent.expected(*at)),
            None => {
                let numbers = Numbers::initial(SEED);
                let origin = PlanOrigin::default();
                (0, Expected { numbers, log: Vec::new(), best: None, best_before: None, samples: 0, origin })
            }
        };
        if let Some((parent, step)) = &self.parent
            && parent.batch != self.batch
        {
            let rows = toy::rows().train.len() as u64;
            let epochs = (state.samples - state.origin.samples).div_ceil(rows);
            let epoch = state.origin.epoch + epochs;
            state.origin = PlanOrigin { step: *step, epoch, samples: state.samples };
        }
        let (mut train, eval) = toy::sources(&self.settings(), state.origin).expect("rows");
        let mut eval = eval.expect("rows");
        for done in begin..step {
            let plan = train.plan.step(done);
            let assemble =
                |rows: &Vec<u32>| qwentune::data::batch::assemble(&train.rows, rows).expect("rows");
            let batches: Vec<_> = plan.micro_batches.iter().map(assemble).collect();
            let tokens: usize = batches.iter().map(|batch| batch.targets.len()).sum();
            let sum = |losses: &[f32]| losses.iter().fold(0.0, |total, loss| total + f64::from(*loss));
            let losses: Vec<f64> = batches.iter().map(|batch| sum(&state.numbers.losses(batch))).collect();
            let gradient = state.numbers.gradient(&batches, SEED, done);
            let (lr, grad_norm) = (self.rate(done), toy::norm(&gradient));
            let scale = (1.0 / (grad_norm + 1e-6)).min(1.0) as f32;
            state.numbers.update(&gradient, lr, done + 1, scale);
            state.samples += plan.micro_batches.iter().map(|rows| rows.len() as u64).sum::<u64>();
            let loss = losses.iter().fold(0.0, |total, loss| total + loss) / tokens as f64;
            let (step, epoch, tokens) = (done + 1, plan.epochs_done(), tokens as u64);
            state.log.push(LogLine::Step(StepLine { step, epoch, loss, grad_norm, lr, tokens }));
            if step.is_multiple_of(at(&self.evals, done)) || step >= at(&self.lengths, done) {
                let rows = eval.plan.step(0).micro_batches[0].clone();
                let batch = qwentune::data::batch::assemble(&eval.rows, &rows).expect("rows");
                let losses = state.numbers.losses(&batch);
                let eval_loss = sum(&losses) / losses.len() as f64;
                state.best_before = state.best;
                if state.best.is_none_or(|(best, _)| eval_loss < best) {
                    state.best = Some((eval_loss, step));
                }
                state.log.push(LogLine::Eval(EvalLine { step, epoch, eval_loss }));
            }
        }
        state
    }

    /// What is wrong with a state of this run.
    pub fn fault_of(&self, state: &State) -> Option<String> {
        let expected = self.expected(state.step);
        let numbers = Numbers { weights: state.weights.clone(), m: state.m.clone(), v: state.v.clone() };
        let best = state.cursor.best.map(|best| (best.loss, best.step));
        if numbers != expected.numbers {
            return Some(format!("step {}: other numbers", state.step));
        }
        // A stop may have come before the evaluation of its step.
        let owed = expected.log.len() - usize::from(matches!(expected.log.last(), Some(LogLine::Eval(_))));
        let (log, wanted) = if state.log.len() == owed && owed < expected.log.len() {
            (&expected.log[..owed], expected.best_before)
        } else {
            (&expected.log[..], expected.best)
        };
        if state.log != log {
            return Some(format!("step {}: another log", state.step));
        }
        if best != wanted {
            return Some(format!("step {}: best is {best:?}, expected {wanted:?}", state.step));
        }
        None
    }
}
