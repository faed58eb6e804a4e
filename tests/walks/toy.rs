//! An engine of four parameters, and the same numbers once more as a plain loop: what every state must be, however its
//! run was cut.

use crate::checkpoint::disk::Rng;
use qwentune::checkpoint::state::{PlanOrigin, State, TensorEntry};
use qwentune::config::{self, Settings};
use qwentune::data::batch::{self, MicroBatch};
use qwentune::data::dataset::{self, Dataset, Row, Rows};
use qwentune::data::plan::Plan;
use qwentune::error::Result;
use qwentune::formats::peft::{Adapter, AdapterConfig, AdapterTensor};
use qwentune::formats::publish::{MadeFrom, Memory};
use qwentune::identity::Identity;
use qwentune::report::event::{Event, Observer};
use qwentune::train::engine::{Copied, Engine, Gradients, Update};
use qwentune::train::setup::{Prepare, Prepared};
use qwentune::train::trainer::{Source, Trainer, eval_rules, train_rules};

const MODULE: &str = "base_model.model.model.layers.0.self_attn.q_proj";
const VOCABULARY: usize = 64;

/// Weights and both moments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    pub weights: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

impl Numbers {
    pub fn initial(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let weights = (0..4).map(|_| rng.below(1000) as f32 / 500.0 - 1.0).collect();
        Numbers { weights, m: vec![0.0; 4], v: vec![0.0; 4] }
    }

    /// The loss of each scored token.
    pub fn losses(&self, batch: &MicroBatch) -> Vec<f32> {
        let loss = |target: &u32| {
            let away = self.weights[*target as usize % 4] - *target as f32 / 32.0;
            away * away + 0.5
        };
        batch.targets.iter().map(loss).collect()
    }

    /// The gradient of the mean loss, with noise that depends on seed and step as dropout does.
    pub fn gradient(&self, batches: &[MicroBatch], seed: u64, step: u64) -> Vec<f32> {
        let tokens: usize = batches.iter().map(|b| b.targets.len()).sum();
        let mut gradient = vec![0.0; 4];
        for target in batches.iter().flat_map(|batch| &batch.targets) {
            let place = *target as usize % 4;
            gradient[place] += 2.0 * (self.weights[place] - *target as f32 / 32.0) / tokens as f32;
        }
        let mut rng = Rng(seed ^ (step << 20));
        gradient.iter_mut().for_each(|g| *g += rng.below(100) as f32 * 1e-4);
        gradient
    }

    /// AdamW, as plain as can be.
    pub fn update(&mut self, gradient: &[f32], lr: f64, count: u64, scale: f32) {
        for (i, gradient) in gradient.iter().enumerate() {
            let g = gradient * scale;
            self.m[i] = 0.9 * self.m[i] + 0.1 * g;
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g;
            let m = self.m[i] / (1.0 - libm::powf(0.9, count as f32));
            let v = self.v[i] / (1.0 - libm::powf(0.999, count as f32));
            self.weights[i] -= lr as f32 * m / (v.sqrt() + 1e-8);
        }
    }
}

pub fn norm(gradient: &[f32]) -> f64 {
    gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt()
}

/// Rows for training and evaluation.
pub fn rows() -> Rows {
    let row = |n: u32| {
        let ids: Vec<u32> = (0..3 + n % 3).map(|i| (n * 7 + i * i * 5) % VOCABULARY as u32).collect();
        Row { labels: ids.iter().map(|id| *id as i32).collect(), ids }
    };
    Rows { train: (0..7).map(row).collect(), eval: (20..22).map(row).collect() }
}

pub fn identity(settings: &Settings, data: qwentune::identity::Data) -> Identity {
    let mut identity = Identity { data, settings: config::math_identity(settings), ..Identity::default() };
    identity.adapter.initial = format!("seed {}", settings.seed);
    identity.engine.device = "toy".into();
    identity
}

/// What stands for reading model and data.
pub struct Toy;

struct Ready {
    settings: Settings,
    identity: Identity,
    train: Source,
    eval: Option<Source>,
}

pub fn sources(settings: &Settings, origin: PlanOrigin) -> Result<(Source, Option<Source>)> {
    let read = dataset::prepare_rows(rows(), settings, VOCABULARY, &mut |_: &Event| {})?;
    let plan = Plan::new(read.train.lengths(), train_rules(settings, origin))?;
    let train = Source { plan, rows: read.train };
    let eval = read.eval.map(|rows| -> Result<Source> {
        Ok(Source { plan: Plan::new(rows.lengths(), eval_rules(settings))?, rows })
    });
    Ok((train, eval.transpose()?))
}

impl Prepare for Toy {
    fn check(&self, _: &Settings) -> Result<()> {
        Ok(())
    }

    fn prepare(
        &self,
        settings: &Settings,
        rows: Option<Rows>,
        _: Option<&State>,
        origin: &dyn Fn(&Identity) -> PlanOrigin,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Prepared>> {
        let read = dataset::prepare_rows(rows.unwrap_or_default(), settings, VOCABULARY, observer)?;
        let identity = identity(settings, read.identity);
        let (train, eval) = sources(settings, origin(&identity))?;
        Ok(Box::new(Ready { settings: settings.clone(), identity, train, eval }))
    }
}

impl Prepared for Ready {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn total_steps(&self) -> u64 {
        self.train.plan.total_steps()
    }

    fn checkpoint_bytes(&self) -> u64 {
        0
    }

    fn trainer(
        self: Box<Self>,
        history: qwentune::checkpoint::state::History,
        _: &mut dyn Observer,
    ) -> Result<(Trainer, Box<dyn MadeFrom>)> {
        let seed = self.settings.seed;
        let engine = ToyEngine { seed, numbers: Numbers::initial(seed), ..ToyEngine::default() };
        let trainer =
            Trainer::new(self.settings, self.identity, history, Box::new(engine), self.train, self.eval)?;
        Ok((trainer, Box::new(Memory)))
    }
}

#[derive(Default)]
struct ToyEngine {
    seed: u64,
    numbers: Numbers,
    gradient: Vec<f32>,
    losses: Vec<f64>,
    divisor: f64,
    copied: [Vec<f32>; 3],
}

fn sum(losses: &[f32]) -> f64 {
    losses.iter().fold(0.0, |total, loss| total + f64::from(*loss))
}

impl Copied for ToyEngine {
    fn begin_copy(&mut self, mut into: [Vec<f32>; 3]) -> Result<()> {
        let Numbers { weights, m, v } = &self.numbers;
        for (to, from) in into.iter_mut().zip([weights, m, v]) {
            to.clone_from(from);
        }
        self.copied = into;
        Ok(())
    }

    fn end_copy(&mut self) -> Result<[Vec<f32>; 3]> {
        Ok(std::mem::take(&mut self.copied))
    }

    fn copies_beside(&self) -> bool {
        false
    }
}

impl Engine for ToyEngine {
    fn batch(&self, rows: &Dataset, indices: &[u32]) -> Result<MicroBatch> {
        batch::assemble(rows, indices)
    }

    fn begin_step(
        &mut self,
        step: u64,
        batches: &[MicroBatch],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool> {
        if cancelled() {
            return Ok(false);
        }
        self.losses = batches.iter().map(|batch| sum(&self.numbers.losses(batch))).collect();
        self.divisor = batches.iter().map(|batch| batch.targets.len()).sum::<usize>() as f64;
        self.gradient = self.numbers.gradient(batches, self.seed, step);
        Ok(true)
    }

    fn end_step(&mut self) -> Result<Gradients> {
        Ok(Gradients { losses: self.losses.clone(), divisor: self.divisor, norm: norm(&self.gradient) })
    }

    fn broken_gradient(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        let gradient = std::mem::take(&mut self.gradient);
        self.numbers.update(&gradient, update.lr, update.count, update.grad_scale);
        Ok(())
    }

    fn losses(&mut self, batch: &MicroBatch, cancelled: &dyn Fn() -> bool) -> Result<Option<Vec<f32>>> {
        Ok((!cancelled()).then(|| self.numbers.losses(batch)))
    }

    fn tensors(&self) -> Vec<TensorEntry> {
        ["A", "B"]
            .into_iter()
            .enumerate()
            .map(|(i, matrix)| TensorEntry {
                name: format!("{MODULE}.lora_{matrix}.weight"),
                shape: if i == 0 { [1, 2] } else { [2, 1] },
                offset: 2 * i,
            })
            .collect()
    }

    fn parameters(&mut self) -> Result<Vec<f32>> {
        Ok(self.numbers.weights.clone())
    }

    fn restore(&mut self, weights: &[f32], m: &[f32], v: &[f32]) -> Result<()> {
        self.numbers = Numbers { weights: weights.to_vec(), m: m.to_vec(), v: v.to_vec() };
        Ok(())
    }

    fn to_peft(&self, values: &[f32], base: &str) -> Adapter {
        let tensor = |t: &TensorEntry| AdapterTensor {
            name: t.name.clone(),
            shape: t.shape,
            values: values[t.offset..t.offset + 2].to_vec(),
        };
        Adapter { config: adapter_config(base), tensors: self.tensors().iter().map(tensor).collect() }
    }

    fn values_of(&self, adapter: &Adapter) -> Option<Vec<f32>> {
        Some(adapter.tensors.iter().flat_map(|t| t.values.iter().copied()).collect())
    }
}

fn adapter_config(base: &str) -> AdapterConfig {
    AdapterConfig {
        r: 1,
        lora_alpha: 2.0,
        lora_dropout: 0.0,
        exclude_modules: None,
        target_modules: qwentune::config::Targets::Names(vec!["q_proj".into()]),
        use_rslora: false,
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        layers_to_transform: None,
        base_model_name_or_path: base.into(),
    }
}
