//! Training steps of a model on random tokens.

use super::{Case, SEED, split};
use crate::bench::conditions;
use crate::bench::report::{Better, Measurement};
use crate::bench::sampling::{Pass, Workload};
use crate::checkpoint::state::PlanOrigin;
use crate::config::{Scheduler, Settings, Strategy};
use crate::data::dataset::{Row, Rows};
use crate::error::Result;
use crate::identity::Identity;
use crate::model::spec::MixerSpec;
use crate::model::{Spec, Weights};
use crate::philox::{Stream, uniform};
use crate::report::event::Event;
use crate::train::setup::Setup;
use crate::train::start::history;
use crate::train::trainer::Trainer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Steps whose losses and adapter are digested; they are part of the warm-up.
const DIGESTED: usize = 3;

/// Rows in memory; an epoch of them comes again and again.
const ROWS: usize = 64;

/// A model under training.
pub struct Train {
    labels: Measurement,
    trainer: Trainer,
    _weights: Weights,
    flops_per_token: f64,
    planned_bytes: u64,
    digest: Option<String>,
    /// Of the steps so far: (processed with padding, real, scored) tokens a step.
    tokens: [u64; 3],
}

/// Settings of a run over [`rows`] that never ends.
pub(super) fn settings(case: &Case) -> Settings {
    let (row, rows) = split(case.tokens);
    Settings {
        model: case.model_folder().cloned().unwrap_or_default(),
        per_device_train_batch_size: rows,
        num_train_epochs: 1e6,
        learning_rate: 1e-4,
        lr_scheduler_type: Scheduler::Constant,
        cutoff_len: row,
        lora_r: case.rank,
        lora_alpha: 2.0 * case.rank as f64,
        save_strategy: Strategy::No,
        device: case.device,
        dtype: case.dtype,
        recompute: case.recompute,
        threads: case.threads,
        ..Settings::default()
    }
}

/// Rows of random tokens, all scored but the first of each.
pub(super) fn rows(case: &Case, spec: &Spec) -> Rows {
    let (row, rows) = split(case.tokens);
    let draw = |at: usize| (uniform(SEED, Stream::Benchmark, at as u64) * spec.vocab as f64) as u32;
    let ids = |index: usize| (0..row).map(|i| draw(index * row + i)).collect::<Vec<u32>>();
    Rows { train: (0..ROWS.max(rows)).map(|index| row_of(ids(index))).collect(), eval: Vec::new() }
}

impl Train {
    /// Reads or makes the model and allocates everything.
    ///
    /// # Errors
    /// As a run of these settings.
    pub fn build(case: &Case) -> Result<Self> {
        let (base, settings) = (case.model()?, settings(case));
        let rows = rows(case, &base.spec);
        let flops_per_token = flops_per_token(&base.spec, case.rank, split(case.tokens).0);
        let mut silent = |_: &Event| {};
        let origin = |_: &Identity| PlanOrigin::default();
        let setup = Setup::over(base, &settings, Some(rows), None, &origin, case.chosen()?, &mut silent)?;
        let planned_bytes = setup.report()?.arena.iter().map(|(_, bytes)| bytes).sum();
        let mut ready = setup.allocate(&mut silent)?;
        ready.engine.device.record(case.graphs);
        let history = history::new(&ready.settings, ready.train.plan.total_steps());
        let (trainer, weights) = ready.trainer(history)?;
        let labels = case.labels("tokens_per_second", "tokens/s", Better::Higher);
        let tokens = [case.tokens as u64, 0, 0];
        Ok(Train { labels, trainer, _weights: weights, flops_per_token, planned_bytes, digest: None, tokens })
    }

    /// The trainer.
    pub(super) fn trainer(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    /// One optimizer step of one micro-batch; its loss and gradient norm.
    fn step(&mut self) -> Result<[f64; 2]> {
        let done = self.trainer.train_step(&|| false)?.expect("nobody cancels a benchmark");
        self.tokens[1] = done.real_tokens;
        self.tokens[2] = done.line.tokens;
        Ok([done.line.loss, done.line.grad_norm])
    }
}

/// A row whose tokens are all scored but the first.
fn row_of(ids: Vec<u32>) -> Row {
    let labels = ids.iter().map(|id| *id as i32).collect();
    Row { ids, labels }
}

/// Floating-point operations of a step for each token: a frozen matrix is multiplied forward and for the gradient of its
/// input, 2 × 2 operations an element; LoRA's matrices also for their own gradients, 3 × 2; causal attention takes two
/// products over half of the row forward and five backward. What is computed again is not counted.
fn flops_per_token(spec: &Spec, rank: usize, row: usize) -> f64 {
    let mut total = 4.0 * (spec.vocab * spec.hidden) as f64;
    for (_, linear) in spec.linears() {
        let [output, input] = linear.shape;
        total += 4.0 * (output * input) as f64 + 6.0 * (rank * (output + input)) as f64;
    }
    for layer in &spec.layers {
        let MixerSpec::Attention(attention) = &layer.mixer;
        total += 7.0 * 2.0 * (row as f64 / 2.0) * (attention.heads * attention.head_dim) as f64;
    }
    total
}

impl Workload for Train {
    fn labels(&self) -> Measurement {
        self.labels.clone()
    }

    fn pass(&mut self) -> Result<Pass> {
        let begin = Instant::now();
        self.step()?;
        Ok(Pass { work: self.tokens[1] as f64, seconds: begin.elapsed().as_secs_f64() })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        if self.digest.is_none() {
            let mut hasher = blake3::Hasher::new();
            for _ in 0..DIGESTED {
                for number in self.step()? {
                    hasher.update(&number.to_bits().to_le_bytes());
                }
            }
            for value in self.trainer.engine().parameters()? {
                hasher.update(&value.to_bits().to_le_bytes());
            }
            self.digest = Some(hasher.finalize().to_hex().to_string());
        }
        Ok(self.digest.clone())
    }

    fn details(&mut self, median: f64) -> Result<BTreeMap<String, Value>> {
        let [processed, real, scored] = self.tokens.map(|n| n as f64);
        let step = real / median;
        let mut details = BTreeMap::from([
            ("processed_tokens_per_second".to_owned(), json!(processed / step)),
            ("real_tokens_per_second".into(), json!(median)),
            ("scored_tokens_per_second".into(), json!(scored / step)),
            ("step_seconds".into(), json!(step)),
            ("model_flops_per_token".into(), json!(self.flops_per_token)),
            ("tflops_per_second".into(), json!(self.flops_per_token * median / 1e12)),
            ("planned_bytes".into(), json!(self.planned_bytes)),
        ]);
        if let Some(peak) = conditions::peak_memory() {
            details.insert("process_peak_bytes".into(), json!(peak));
        }
        Ok(details)
    }
}
