//! From settings to a trainer: model, data, plan, identity, memory. Shared by `run` and `plan`.

use super::PlanReport;
use super::engine::{NetworkEngine, Parts};
use super::initial::initial_adapter;
use super::objective;
use super::trainer::{Source, Trainer, eval_rules, train_rules};
use crate::checkpoint::state::{History, PlanOrigin, State};
use crate::config::{self, Recompute, Settings, Strategy};
use crate::data::dataset::{self, Rows};
use crate::data::plan::Plan;
use crate::device::{Chosen, Devices};
use crate::device::{Planner, Purpose};
use crate::element::Element;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::formats::digest_cache::DigestCache;
use crate::formats::publish::MadeFrom;
use crate::identity::{BaseModel, Identity};
use crate::model::{AdapterSpec, Layout, Network, Spec, Weights};
use crate::ops::reduce::Sums;
use crate::report::event::{Event, Observer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    work: Work,
    device: Chosen,
}

/// A base model before anything is put on top of it.
pub struct Base {
    /// Its shapes.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights,
}

impl Base {
    /// Reads a model folder.
    ///
    /// # Errors
    /// Names the key, file or tensor that is wrong.
    pub fn open(folder: &Path) -> Result<Self> {
        let spec = Spec::read(folder)?;
        let weights = Weights::open(folder, &spec)?;
        Ok(Base { spec, weights })
    }
}

/// What memory is planned for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Training,
    /// Losses alone.
    Evaluation,
}

/// What needs no file to be refused, so that a refused run leaves no folder behind.
///
/// # Errors
/// Settings this version cannot follow.
pub fn refuse_unsupported(s: &Settings, rows: Option<&Rows>) -> Result<()> {
    config::check_values(s)?;
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
    /// it continues from, and `origin` says for the run's identity where its plan of the data begins.
    ///
    /// # Errors
    /// Wrong settings or inputs, each named.
    pub fn open(
        settings: &Settings,
        rows: Option<Rows>,
        resumed: Option<&State>,
        origin: &dyn Fn(&Identity) -> PlanOrigin,
        device: Chosen,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        refuse_unsupported(settings, rows.as_ref())?;
        Self::over(Base::open(&settings.model)?, settings, rows, resumed, origin, device, observer)
    }

    /// As [`Setup::open`], over a base that was read already, or that no file holds.
    ///
    /// # Errors
    /// Wrong settings or inputs, each named.
    pub fn over(
        base: Base,
        settings: &Settings,
        rows: Option<Rows>,
        resumed: Option<&State>,
        origin: &dyn Fn(&Identity) -> PlanOrigin,
        device: Chosen,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let Base { spec, mut weights } = base;
        let mut settings = settings.clone();
        if settings.eval_strategy == Strategy::Steps {
            // Frozen here: how often the console is written to may change later, evaluations may not.
            settings.eval_steps.get_or_insert(settings.logging_steps as f64);
        }
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
        if !weights.map.files().is_empty() {
            identity.model = base_model(&settings, &weights, observer)?;
        }
        let train = Source {
            plan: Plan::new(prepared.train.lengths(), train_rules(&settings, origin(&identity)))?,
            rows: prepared.train,
        };
        let eval = match prepared.eval {
            Some(rows) => Some(Source { plan: Plan::new(rows.lengths(), eval_rules(&settings))?, rows }),
            None => None,
        };
        let tokens = train.plan.max_tokens().max(eval.as_ref().map_or(0, |e| e.plan.max_tokens()));
        check_positions(&spec, &train)?;
        let work = Work::Training;
        Ok(Setup {
            settings,
            spec,
            weights,
            adapter,
            layout,
            train,
            eval,
            identity,
            initial,
            tokens,
            work,
            device,
        })
    }

    /// What evaluating one file reads: the model, with the adapter that `init_adapter` names or with one that
    /// changes nothing. The rows are those of `train_files`, read with the settings of data and batches.
    ///
    /// # Errors
    /// Wrong settings or inputs, each named.
    pub fn for_evaluation(settings: &Settings, device: Chosen, observer: &mut dyn Observer) -> Result<Self> {
        refuse_unsupported(settings, None)?;
        let mut settings = settings.clone();
        let Base { spec, mut weights } = Base::open(&settings.model)?;
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
        let work = Work::Evaluation;
        Ok(Setup {
            settings,
            spec,
            weights,
            adapter,
            layout,
            train,
            eval,
            identity,
            initial,
            tokens,
            work,
            device,
        })
    }

    /// Plans memory with the settings' recomputation, or with the least that fits.
    fn network(&self) -> Result<(Planner, Network, Sums)> {
        let (available, device) = (self.device.available()?, self.device.capabilities());
        let copies = self.work == Work::Training && !device.own_memory;
        let beside = if copies { snapshot_bytes(&self.layout) } else { 0 };
        let choices: &[Recompute] = match self.settings.recompute {
            Recompute::Auto if self.work == Work::Training => {
                &[Recompute::None, Recompute::Mlp, Recompute::Full]
            }
            ref given => std::slice::from_ref(given),
        };
        let mut smallest = u64::MAX;
        for &recompute in choices {
            let mut planner = Planner::new(device);
            let network = self.planned(&mut planner, self.work, self.tokens, recompute)?;
            let sums = Sums::plan(&mut planner, self.settings.gradient_accumulation_steps, self.tokens);
            let need = planner.bytes() as u64 + beside;
            smallest = smallest.min(need);
            if need <= available {
                return Ok((planner, network, sums));
            }
        }
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let mapped = if device.own_memory { "" } else { " beside the mapped weights" };
        let remedy = match self.largest_that_fits(available.saturating_sub(beside))? {
            Some(tokens) => format!(
                "micro-batches of {tokens} tokens fit with --recompute full, these have {}: make them smaller with --per-device-train-batch-size (and more --gradient-accumulation-steps), --cutoff-len or --tokens-per-micro-batch",
                self.tokens
            ),
            None => "not even a micro-batch of one token fits: a smaller --lora-r, a smaller model or more memory is needed".into(),
        };
        Err(Error::device(format!(
            "the run needs {:.1} GiB{mapped}, {:.1} GiB are available on the device",
            gib(smallest),
            gib(available)
        ))
        .hint(remedy))
    }

    /// The largest half, quarter, … of this run's micro-batches that fits into `available` bytes when everything is
    /// computed again.
    fn largest_that_fits(&self, available: u64) -> Result<Option<usize>> {
        for tokens in
            std::iter::successors(Some(self.tokens), |tokens| Some(tokens / 2)).take_while(|t| *t > 0)
        {
            let mut planner = Planner::new(self.device.capabilities());
            self.planned(&mut planner, self.work, tokens, Recompute::Full)?;
            Sums::plan(&mut planner, self.settings.gradient_accumulation_steps, tokens);
            if planner.bytes() as u64 <= available {
                return Ok(Some(tokens));
            }
        }
        Ok(None)
    }

    fn planned(
        &self,
        planner: &mut Planner,
        work: Work,
        tokens: usize,
        recompute: Recompute,
    ) -> Result<Network> {
        let (spec, weights, layout) = (&self.spec, &self.weights, &self.layout);
        match work {
            Work::Training => Network::plan(planner, spec, weights, layout, &self.adapter, tokens, recompute),
            Work::Evaluation => Network::plan_evaluation(planner, spec, weights, layout, tokens),
        }
    }

    /// What the run would need.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn report(&self) -> Result<PlanReport> {
        let (planner, _, _) = self.network()?;
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
        let mut evaluation = Planner::new(self.device.capabilities());
        self.planned(&mut evaluation, Work::Evaluation, self.tokens, Recompute::None)?;
        let lengths = self.train.rows.lengths();
        let snapshot = snapshot_bytes(&self.layout);
        let device: u64 = arena.iter().map(|(_, b)| b).sum();
        let process = if self.device.capabilities().own_memory { 2 * snapshot } else { device + snapshot };
        Ok(PlanReport {
            device: self.device.describe(),
            base_weights: self.weights.bytes,
            peak: process + self.weights.bytes,
            arena,
            evaluation: evaluation.bytes() as u64,
            checkpoint: snapshot,
            steps: self.train.plan.total_steps(),
            rows: lengths.len() as u64,
            tokens_per_epoch: lengths.iter().map(|&l| u64::from(l)).sum(),
            trainable: self.layout.len as u64,
            micro_batch_tokens: self.tokens as u64,
            available: Some(self.device.available()?).filter(|bytes| *bytes < u64::MAX),
            own_memory: self.device.capabilities().own_memory,
            seconds_per_step: None,
        })
    }

    /// Allocates the memory and copies the model there.
    ///
    /// # Errors
    /// When it does not fit, or threads cannot be had.
    pub fn allocate(self, observer: &mut dyn Observer) -> Result<Ready> {
        let (planner, network, sums) = self.network()?;
        observer.on_event(&Event::Note(format!("device: {}", self.device.describe())));
        if let (Element::Bf16, Some(text)) = (planner.capabilities().activation, self.weights.rounding()) {
            observer.on_event(&Event::Warning(text));
        }
        let device = crate::ops::device(self.device, &planner, self.settings.threads)?;
        let mut progress = |done, total| {
            observer.on_event(&Event::Progress { what: "copying the model to the device", done, total });
        };
        let objective = objective::named(self.identity.objective);
        let (layout, adapter) = (self.layout, self.adapter);
        let parts = Parts { device, network, objective, layout, adapter, sums };
        let engine = NetworkEngine::new(parts, &self.settings, &self.initial, &mut progress)?;
        Ok(Ready {
            engine,
            settings: self.settings,
            identity: self.identity,
            train: self.train,
            eval: self.eval,
            weights: self.weights,
        })
    }
}

/// A model in its place, and what a trainer needs beside it.
pub struct Ready {
    /// The model with its adapter.
    pub engine: NetworkEngine,
    /// As [`Setup::settings`].
    pub settings: Settings,
    /// As [`Setup::identity`].
    pub identity: Identity,
    /// As [`Setup::train`].
    pub train: Source,
    /// As [`Setup::eval`].
    pub eval: Option<Source>,
    /// The base stays mapped as long as the model is in use.
    pub weights: Weights,
}

impl Ready {
    /// The trainer of a run with this history, and the base.
    ///
    /// # Errors
    /// Wrong schedule arguments; a history that this build cannot read.
    pub fn trainer(self, history: History) -> Result<(Trainer, Weights)> {
        let Ready { engine, settings, identity, train, eval, weights } = self;
        Ok((Trainer::new(settings, identity, history, Box::new(engine), train, eval)?, weights))
    }
}

/// What reads a run's model and data.
pub trait Prepare {
    /// Whether the device that was asked for is there; takes nothing, and comes before any folder is touched.
    ///
    /// # Errors
    /// What is missing.
    fn check(&self, settings: &Settings) -> Result<()>;

    /// Reads and checks them, as [`Setup::open`]; nothing is allocated on a device yet.
    ///
    /// # Errors
    /// Wrong settings or inputs, each named.
    fn prepare(
        &self,
        settings: &Settings,
        rows: Option<Rows>,
        resumed: Option<&State>,
        origin: &dyn Fn(&Identity) -> PlanOrigin,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Prepared>>;
}

/// Model and data that were read and checked.
pub trait Prepared {
    /// The settings, with what files decide filled in.
    fn settings(&self) -> &Settings;
    /// What decides the result.
    fn identity(&self) -> &Identity;
    /// Steps of the run by its settings.
    fn total_steps(&self) -> u64;
    /// Bytes of one checkpoint, but for its log.
    fn checkpoint_bytes(&self) -> u64;
    /// The trainer of a run with this history, and the base, which must not change.
    ///
    /// # Errors
    /// When memory cannot be had; wrong schedule arguments.
    fn trainer(
        self: Box<Self>,
        history: History,
        observer: &mut dyn Observer,
    ) -> Result<(Trainer, Box<dyn MadeFrom>)>;
}

impl Prepare for Devices {
    fn check(&self, settings: &Settings) -> Result<()> {
        Devices::check(self, settings)
    }

    fn prepare(
        &self,
        settings: &Settings,
        rows: Option<Rows>,
        resumed: Option<&State>,
        origin: &dyn Fn(&Identity) -> PlanOrigin,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Prepared>> {
        let device = self.choose(settings, resumed.map(|state| &state.identity))?;
        Ok(Box::new(Setup::open(settings, rows, resumed, origin, device, observer)?))
    }
}

impl Prepared for Setup {
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
        snapshot_bytes(&self.layout)
    }

    fn trainer(
        self: Box<Self>,
        history: History,
        observer: &mut dyn Observer,
    ) -> Result<(Trainer, Box<dyn MadeFrom>)> {
        let (trainer, weights) = self.allocate(observer)?.trainer(history)?;
        Ok((trainer, Box::new(weights.map)))
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

/// Where digests of the base are kept, unless it is to be digested again or others could have put them there.
fn digest_cache(s: &Settings, observer: &mut dyn Observer) -> Option<DigestCache> {
    let folder = cache_folder(s).filter(|_| !s.verify_base)?;
    let opened = DigestCache::open(&folder);
    opened.map_err(|e| observer.on_event(&Event::Warning(format!("{e}; the base is digested again")))).ok()
}

/// Digests of the model folder's files that decide the result.
fn base_model(s: &Settings, weights: &Weights, observer: &mut dyn Observer) -> Result<BaseModel> {
    let cache = digest_cache(s, observer);
    let mut progress =
        |done, total| observer.on_event(&Event::Progress { what: "digesting the model", done, total });
    let mut files: BTreeMap<String, String> =
        weights.map.digests(cache.as_ref(), &mut progress)?.into_iter().collect();
    let config = files::read(&s.model.join("config.json"), crate::model::MAX_CONFIG_BYTES)?;
    files.insert("config.json".into(), blake3::hash(&config).to_hex().to_string());
    let encoding = weights.encodings().into_iter().collect::<Vec<_>>().join(", ");
    Ok(BaseModel { files, encoding })
}
