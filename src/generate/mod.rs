//! Text generation: prompts go through a batch of slots, each answered token by token until it ends. What a row
//! answers depends on its prompt, its number and the settings alone, never on the rows beside it.

pub mod defaults;
#[cfg(feature = "text")]
pub mod job;
pub mod sampling;
#[cfg(feature = "text")]
pub mod text;

pub use defaults::Defaults;
pub use sampling::Sampling;

use crate::config::{CpuIsa, DeviceChoice, Dtype, Settings};
use crate::device::{Chosen, Devices};
use crate::device::{Device, Planner};
use crate::error::{Error, Result};
use crate::formats::publish::MadeFrom;
use crate::model::decode::Limits;
use crate::model::{Adapter, Decoder, Spec, Weights};
use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

/// Tokens of prompts that are read in one pass when they are short; a longer prompt is read alone.
const PREFILL: usize = 2048;

/// A model folder and the adapter to use with it.
pub struct Model {
    /// Shapes.
    pub spec: Spec,
    /// Frozen weights.
    pub weights: Weights,
    /// The adapter; one without matrices when there is none.
    pub adapter: Adapter,
    /// Tokens that end a text, as `generation_config.json` and `config.json` have them.
    pub ends: Vec<u32>,
    /// What else `generation_config.json` says.
    pub defaults: Defaults,
}

impl Model {
    /// Reads and checks the folders.
    ///
    /// # Errors
    /// Names the file, key or tensor that is wrong.
    pub fn open(folder: &Path, adapter: Option<&Path>) -> Result<Self> {
        let spec = Spec::read(folder)?;
        let adapter = adapter.map_or_else(|| Ok(Adapter::none()), |path| Adapter::read(path, &spec))?;
        let defaults = Defaults::read(folder)?;
        let ends = defaults.ends.iter().chain(&spec.eos).copied().collect();
        let weights = Weights::open(folder, &spec)?;
        Ok(Model { spec, weights, adapter, ends, defaults })
    }
}

impl MadeFrom for Model {
    fn check_unchanged(&self) -> Result<()> {
        self.weights.map.check_unchanged()
    }
}

/// How texts are generated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Decides what is drawn.
    pub seed: u64,
    /// Rows at once.
    pub batch: usize,
    /// Tokens that end an answer; they are no part of it.
    pub ends: Vec<u32>,
    /// Threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Where it is computed.
    pub device: DeviceChoice,
    /// Arithmetic of products with the model's weights.
    pub dtype: Dtype,
    /// Vector instructions of the CPU; all give the same bits.
    pub cpu_isa: CpuIsa,
    /// How GPUs are found.
    pub devices: Devices,
}

impl Options {
    fn chosen(&self) -> Result<Chosen> {
        let (device, dtype, cpu_isa) = (self.device, self.dtype, self.cpu_isa);
        self.devices.choose(&Settings { device, dtype, cpu_isa, ..Settings::default() }, None)
    }
}

/// What happens while texts are generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A row's answer has one token more.
    Token {
        /// The row.
        row: usize,
        /// The token.
        id: u32,
    },
    /// A row's answer is complete.
    Answer {
        /// The row.
        row: usize,
        /// Its tokens.
        ids: Vec<u32>,
        /// Whether it ended by itself, not by its length.
        ended: bool,
    },
}

/// A model on a device, ready for prompts.
pub struct Generator {
    device: Device,
    decoder: Decoder,
    options: Options,
    vocab: usize,
    longest: usize,
}

/// A row that is being answered.
struct Active {
    slot: usize,
    row: usize,
    ids: Vec<u32>,
    room: usize,
    /// The tokens of prompt and answer so far, where a repetition counts.
    said: BTreeSet<u32>,
}

impl Generator {
    /// Allocates memory for prompts of up to `longest` tokens, `rows` of them in all.
    ///
    /// # Errors
    /// There is too little memory, or the model reads no text of that length.
    pub fn new(model: &Model, options: Options, longest: usize, rows: usize) -> Result<Self> {
        let most = model.spec.longest_text();
        if longest >= most {
            return Err(Error::input(format!(
                "a prompt has {longest} tokens; the model reads {most}, answer included"
            )));
        }
        let slots = options.batch.min(rows).max(1);
        let capacity = longest.saturating_add(options.max_new_tokens).min(most);
        let rows = longest.max(slots).max(PREFILL.min(slots.saturating_mul(longest)));
        if slots.checked_mul(capacity).is_none_or(|all| all > u32::MAX as usize) {
            return Err(Error::usage("more tokens at once than can be counted; give a smaller --batch-size"));
        }
        let chosen = options.chosen()?;
        let mut planner = Planner::new(chosen.capabilities());
        let limits = Limits { slots, capacity, rows };
        let mut decoder = Decoder::plan(&mut planner, &model.spec, &model.weights, &model.adapter, limits)?;
        let (need, available) = (planner.bytes() as u64, chosen.available()?);
        if need > available {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            return Err(Error::device(format!(
                "generating needs {:.1} GiB, {:.1} GiB are available on the device",
                gib(need),
                gib(available)
            ))
            .hint("make it fit with a smaller --batch-size or --max-new-tokens"));
        }
        let mut device = crate::ops::device(chosen, &planner, options.threads)?;
        decoder.upload(&mut device, &model.adapter)?;
        Ok(Generator { device, decoder, options, vocab: model.spec.vocab, longest: most })
    }

    /// Answers `prompts`, which are the rows from `first` on, and tells of every token and answer; answers come
    /// in the order they end. False when cancelled.
    ///
    /// # Errors
    /// A token outside the vocabulary; logits that are not finite.
    ///
    /// # Panics
    /// When a prompt is longer than the generator was made for, or empty.
    pub fn run(
        &mut self,
        prompts: &[&[u32]],
        first: usize,
        tell: &mut dyn FnMut(Event) -> Result<()>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<bool> {
        for (index, prompt) in prompts.iter().enumerate() {
            if let Some(id) = prompt.iter().find(|id| **id as usize >= self.vocab) {
                let row = first + index + 1;
                return Err(Error::input(format!("prompt {row}: the model has no token {id}")));
            }
        }
        let mut waiting: VecDeque<(usize, &[u32])> = prompts.iter().copied().enumerate().collect();
        let mut active: Vec<Active> = Vec::new();
        while !waiting.is_empty() || !active.is_empty() {
            let started = self.start(&active, &mut waiting, first);
            let logits = if started.is_empty() {
                let next: Vec<(usize, u32)> =
                    active.iter().map(|a| (a.slot, a.ids.last().copied().unwrap_or_default())).collect();
                self.decoder.step(&mut self.device, &next, cancelled)
            } else {
                let read: Vec<(usize, &[u32])> =
                    started.iter().map(|(a, prompt)| (a.slot, *prompt)).collect();
                self.decoder.prefill(&mut self.device, &read, cancelled)
            };
            let Some(logits) = logits? else { return Ok(false) };
            let mut rest = Vec::new();
            let answered = if started.is_empty() {
                std::mem::take(&mut active)
            } else {
                rest = std::mem::take(&mut active);
                started.into_iter().map(|(a, _)| a).collect()
            };
            active = self.append(answered, &logits, tell)?;
            active.extend(rest);
        }
        Ok(true)
    }

    /// Rows that fill the free slots, as many as are read in one pass.
    fn start<'a>(
        &self,
        active: &[Active],
        waiting: &mut VecDeque<(usize, &'a [u32])>,
        first: usize,
    ) -> Vec<(Active, &'a [u32])> {
        let limits = self.decoder.limits();
        let free = (0..limits.slots).filter(|slot| active.iter().all(|a| a.slot != *slot));
        let (mut started, mut tokens) = (Vec::new(), 0);
        for slot in free {
            let fits = |(_, prompt): &&(usize, &[u32])| tokens + prompt.len() <= limits.rows;
            let Some(&(index, prompt)) = waiting.front().filter(fits) else { break };
            waiting.pop_front();
            tokens += prompt.len();
            let room = self.options.max_new_tokens.min(self.longest - prompt.len());
            let penalises = self.options.sampling.repetition_penalty != 1.0;
            let said = if penalises { prompt.iter().copied().collect() } else { BTreeSet::new() };
            started.push((Active { slot, row: first + index, ids: Vec::new(), room, said }, prompt));
        }
        started
    }

    /// Chooses each row's next token; gives the rows that go on.
    fn append(
        &self,
        rows: Vec<Active>,
        logits: &[f32],
        tell: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Vec<Active>> {
        let mut going = Vec::with_capacity(rows.len());
        for (mut active, logits) in rows.into_iter().zip(logits.chunks_exact(self.vocab)) {
            let row = active.row;
            let draw = sampling::draw(self.options.seed, row as u64, active.ids.len() as u64);
            let mut logits = Cow::Borrowed(logits);
            if !active.said.is_empty() {
                self.options.sampling.penalise(logits.to_mut(), &active.said);
            }
            let Some(id) = self.options.sampling.choose(&logits, draw) else {
                return Err(Error::input(format!("row {}: the model's logits are not finite", row + 1))
                    .hint("model or adapter is damaged or from a diverged run"));
            };
            let ended = self.options.ends.contains(&id);
            if !ended {
                active.ids.push(id);
                if self.options.sampling.repetition_penalty != 1.0 {
                    active.said.insert(id);
                }
                tell(Event::Token { row, id })?;
            }
            if ended || active.ids.len() >= active.room {
                tell(Event::Answer { row, ids: active.ids, ended })?;
            } else {
                going.push(active);
            }
        }
        Ok(going)
    }
}
