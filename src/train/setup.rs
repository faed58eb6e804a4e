//! From settings to a trainer: model, data, plan, identity, memory. Shared by `run` and `plan`.

use super::PlanReport;
use super::devices::Chosen;
use super::initial::initial_adapter;
use super::trainer::{Source, Trainer, eval_rules, train_rules};
use crate::checkpoint::state::State;
use crate::config::{self, Recompute, Settings, Strategy};
use crate::data::dataset::{self, Rows};
use crate::data::plan::Plan;
use crate::device::{Planner, Purpose};
use crate::element::Element;
use crate::error::{Error, Kind, Result};
use crate::identity::{BaseModel, Identity};
use crate::model::{AdapterSpec, Layout, Network, Spec, Weights};
use crate::report::event::{Event, Observer};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything known before memory is allocated.
pub struct Setup {
    /// The settings, with what an adapter folder decides filled in.
    pub settings: Settings,
    /// The model's shapes.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights,
    /// The adapter.
    pub adapter: AdapterSpec,
    /// Its places in the flat buffers.
    pub layout: Layout,
    /// Training rows and their plan.
    pub train: Source,
    /// Evaluation rows and their plan.
    pub eval: Option<Source>,
    /// What decides the result.
    pub identity: Identity,
    /// Flat initial values.
    initial: Vec<f32>,
    tokens: usize,
    device: Chosen,
}

/// What needs no file to be refused, so that a refused run leaves no folder behind.
///
/// # Errors
/// Settings this version cannot follow.
pub fn refuse_unsupported(s: &Settings, rows: Option<&Rows>) -> Result<()> {
    config::check_values(s)?;
    if s.fresh_optimizer && super::exchange::trainer_checkpoint(s).is_none() {
        return Err(Error::usage("--fresh-optimizer is for a Hugging Face checkpoint without moments")
            .hint("give its folder with --resume-from-checkpoint, or start at step 0 from its weights with --init-adapter"));
    }
    if rows.is_some() && (!s.train_files.is_empty() || s.valid_file.is_some()) {
        return Err(Error::usage("rows were handed over, and the settings name data files as well")
            .hint("leave train_files and valid_file empty"));
    }
    let evaluates =
        s.valid_file.is_some() || s.val_set_size > 0.0 || rows.is_some_and(|r| !r.eval.is_empty());
    if s.load_best_model_at_end && !evaluates {
        return Err(Error::usage("--load-best-model-at-end needs evaluation rows")
            .hint("give --valid-file or --val-set-size, and --eval-strategy"));
    }
    Ok(())
}

fn cache_folder(s: &Settings) -> Option<PathBuf> {
    s.cache_dir.clone()
}

impl Setup {
    /// Reads and checks everything the run on `device` reads; `rows` stand in for data files, `resumed` is the checkpoint
    /// it continues from.
    ///
    /// # Errors
    /// Wrong settings or inputs, each named.
    pub fn open(
        settings: &Settings,
        rows: Option<Rows>,
        resumed: Option<&State>,
        device: Chosen,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        refuse_unsupported(settings, rows.as_ref())?;
        let mut settings = settings.clone();
        if settings.eval_strategy == Strategy::Steps {
            // Frozen here: how often the console is written to may change later, evaluations may not.
            settings.eval_steps.get_or_insert(settings.logging_steps as f64);
        }
        let spec = Spec::read(&settings.model)?;
        let mut weights = Weights::open(&settings.model, &spec)?;
        let mut identity = Identity::default();
        let (adapter, layout, initial) =
            initial_adapter(&mut settings, &spec, &mut weights, resumed, &mut identity.adapter)?;
        let prepared = match rows {
            Some(rows) => dataset::prepare_rows(rows, &settings, spec.vocab, observer)?,
            None => dataset::prepare(&settings, spec.vocab, observer)?,
        };
        identity.data = prepared.identity;
        identity.settings = config::math_identity(&settings);
        identity.engine = device.engine()?;
        identity.model = base_model(&settings, &weights, observer)?;
        let train = Source {
            plan: Plan::new(prepared.train.lengths(), train_rules(&settings))?,
            rows: prepared.train,
        };
        let eval = match prepared.eval {
            Some(rows) => Some(Source { plan: Plan::new(rows.lengths(), eval_rules(&settings))?, rows }),
            None => None,
        };
        let tokens = train.plan.max_tokens().max(eval.as_ref().map_or(0, |e| e.plan.max_tokens()));
        check_positions(&spec, &train)?;
        Ok(Setup { settings, spec, weights, adapter, layout, train, eval, identity, initial, tokens, device })
    }

    /// What evaluating one file reads: the model, with the adapter that `init_adapter` names or with one that
    /// changes nothing. The rows are those of `train_files`, read with the settings of data and batches.
    ///
    /// # Errors
    /// Wrong settings or inputs, each named.
    pub fn for_evaluation(settings: &Settings, device: Chosen, observer: &mut dyn Observer) -> Result<Self> {
        refuse_unsupported(settings, None)?;
        let mut settings = Settings { recompute: Recompute::Full, ..settings.clone() };
        let spec = Spec::read(&settings.model)?;
        let mut weights = Weights::open(&settings.model, &spec)?;
        let mut identity = Identity::default();
        let (adapter, layout, initial) =
            initial_adapter(&mut settings, &spec, &mut weights, None, &mut identity.adapter)?;
        let rows = dataset::prepare(&settings, spec.vocab, observer)?.train;
        let plan = || Plan::new(rows.lengths(), eval_rules(&settings));
        let (train, eval) = (plan()?, plan()?);
        let tokens = eval.max_tokens();
        let train = Source { plan: train, rows: rows.clone() };
        let eval = Some(Source { plan: eval, rows });
        check_positions(&spec, &train)?;
        Ok(Setup { settings, spec, weights, adapter, layout, train, eval, identity, initial, tokens, device })
    }

    /// Plans memory with the settings' recomputation, or with the least that fits.
    fn network(&self) -> Result<(Planner, Network)> {
        let (available, device) = (self.device.available()?, self.device.capabilities());
        let beside = if device.own_memory { 0 } else { snapshot_bytes(&self.layout) };
        let choices: &[Recompute] = match self.settings.recompute {
            Recompute::Auto => &[Recompute::None, Recompute::Mlp, Recompute::Full],
            ref given => std::slice::from_ref(given),
        };
        let mut smallest = u64::MAX;
        for &recompute in choices {
            let mut planner = Planner::new(device);
            let network = Network::plan(
                &mut planner,
                &self.spec,
                &self.weights,
                &self.layout,
                &self.adapter,
                self.tokens,
                recompute,
            )?;
            let need = planner.bytes() as u64 + beside;
            smallest = smallest.min(need);
            if need <= available {
                return Ok((planner, network));
            }
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let mapped = if device.own_memory { "" } else { " beside the mapped weights" };
        Err(Error::device(format!(
            "the run needs {:.1} GiB{mapped}, {:.1} GiB are available on the device",
            gib(smallest),
            gib(available)
        ))
        .hint("make it fit with --recompute full, a smaller --per-device-train-batch-size (and more --gradient-accumulation-steps), --cutoff-len, --tokens-per-micro-batch or --lora-r"))
    }

    /// What the run would need.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn report(&self) -> Result<PlanReport> {
        let (planner, _) = self.network()?;
        let purpose = |p: Purpose| match p {
            Purpose::BaseWeights => "base weights",
            Purpose::Inputs => "token ids, positions, work lists",
            Purpose::TrainableState => "LoRA parameters, gradients, moments",
            Purpose::SmallWeights => "norms, biases, RoPE table",
            Purpose::SavedActivations => "activations kept for the backward pass",
            Purpose::Workspace => "workspace",
            Purpose::Logits => "logits, one chunk",
        };
        let arena: Vec<(String, u64)> =
            planner.bytes_by_purpose().into_iter().map(|(p, b)| (purpose(p).to_owned(), b as u64)).collect();
        let lengths = self.train.rows.lengths();
        let snapshot = snapshot_bytes(&self.layout);
        let device: u64 = arena.iter().map(|(_, b)| b).sum();
        let process = if self.device.capabilities().own_memory { 2 * snapshot } else { device + snapshot };
        Ok(PlanReport {
            device: self.device.describe(),
            base_weights: self.weights.bytes,
            peak: process + self.weights.bytes,
            arena,
            checkpoint: snapshot,
            steps: self.train.plan.total_steps(),
            rows: lengths.len() as u64,
            tokens_per_epoch: lengths.iter().map(|&l| u64::from(l)).sum(),
            trainable: self.layout.len as u64,
            micro_batch_tokens: self.tokens as u64,
        })
    }

    /// Allocates the memory and builds the trainer. The weights stay mapped as long as the trainer lives.
    ///
    /// # Errors
    /// When it does not fit, or threads cannot be had.
    pub fn trainer(self, observer: &mut dyn Observer) -> Result<(Trainer, Weights, Identity)> {
        let (planner, network) = self.network()?;
        observer.on_event(&Event::Note(format!("device: {}", self.device.describe())));
        if let (Element::Bf16, Some(text)) = (planner.capabilities().activation, self.weights.rounding()) {
            observer.on_event(&Event::Warning(text));
        }
        let device = self.device.device(&planner, self.settings.threads)?;
        let mut progress = |done, total| {
            observer.on_event(&Event::Progress { what: "copying the model to the device", done, total });
        };
        let trainer = Trainer::new(
            self.settings,
            device,
            network,
            self.layout,
            self.adapter,
            self.train,
            self.eval,
            &self.initial,
            &mut progress,
        )?;
        Ok((trainer, self.weights, self.identity))
    }
}

/// Weights and both moments, as one checkpoint holds them.
fn snapshot_bytes(layout: &Layout) -> u64 {
    12 * layout.len as u64 + 8 * 4096
}

fn check_positions(spec: &Spec, train: &Source) -> Result<()> {
    let longest = train.rows.lengths().iter().copied().max().unwrap_or(0) as usize;
    if longest <= spec.max_positions {
        return Ok(());
    }
    Err(Error::new(
        Kind::Input,
        format!("a row has {longest} tokens, the model was trained for {} positions", spec.max_positions),
    )
    .hint(format!("give --cutoff-len {} or less", spec.max_positions)))
}

/// Digests of the model folder's files that decide the result.
fn base_model(s: &Settings, weights: &Weights, observer: &mut dyn Observer) -> Result<BaseModel> {
    let cache = cache_folder(s);
    let mut progress =
        |done, total| observer.on_event(&Event::Progress { what: "digesting the model", done, total });
    let mut files: BTreeMap<String, String> =
        weights.map.digests(cache.as_deref(), &mut progress)?.into_iter().collect();
    let path = s.model.join("config.json");
    let config = std::fs::read(&path).map_err(|e| Error::reading(&path, e))?;
    files.insert("config.json".into(), blake3::hash(&config).to_hex().to_string());
    let encoding = format!("{:?}", weights.embedding.element()).to_lowercase();
    Ok(BaseModel { files, encoding })
}
