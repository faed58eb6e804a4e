//! Reading a prompt and writing an answer, one text at a time.

use super::{Case, SEED};
use crate::bench::report::{Better, Measurement};
use crate::bench::sampling::{Pass, Workload};
use crate::device::{Device, Planner};
use crate::error::Result;
use crate::model::decode::Limits;
use crate::model::{Adapter, Decoder, Weights};
use crate::philox::{Stream, uniform};
use crate::train::setup::Base;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// Workloads of a case.
pub const PARTS: usize = 2;

/// Tokens of an answer.
const ANSWER: usize = 16;

/// A model that decodes; both measurements use it.
struct Text {
    device: Device,
    decoder: Decoder,
    _weights: Weights,
    prompt: Vec<u32>,
    weight_bytes: u64,
    /// Floating-point operations of the products with frozen weights, for each token.
    flops_per_token: f64,
}

impl Text {
    fn build(case: &Case) -> Result<Self> {
        let Base { spec, weights } = case.model()?;
        let chosen = case.chosen()?;
        let adapter = Adapter::none();
        let limits = Limits { slots: 1, capacity: case.tokens + ANSWER, rows: case.tokens };
        let mut planner = Planner::new(chosen.capabilities());
        let mut decoder = Decoder::plan(&mut planner, &spec, &weights, &adapter, limits)?;
        let mut device = crate::ops::device(chosen, &planner, case.threads)?;
        device.record(case.graphs);
        decoder.upload(&mut device, &adapter)?;
        let draw = |i: usize| (uniform(SEED, Stream::Benchmark, i as u64) * spec.vocab as f64) as u32;
        let prompt = (0..case.tokens).map(draw).collect();
        let weight_bytes = weights.bytes;
        let elements = |[output, input]: [usize; 2]| (output * input) as f64;
        let flops_per_token = 2.0 * spec.linears().map(|(_, linear)| elements(linear.shape)).sum::<f64>();
        Ok(Text { device, decoder, _weights: weights, prompt, weight_bytes, flops_per_token })
    }

    fn read(&mut self) -> Result<Vec<f32>> {
        let logits = self.decoder.prefill(&mut self.device, &[(0, &self.prompt)], &|| false)?;
        Ok(logits.expect("nobody cancels a benchmark"))
    }

    /// One token more, and what follows it.
    fn write(&mut self, token: u32) -> Result<Vec<f32>> {
        let logits = self.decoder.step(&mut self.device, &[(0, token)], &|| false)?;
        Ok(logits.expect("nobody cancels a benchmark"))
    }

    fn digest(&mut self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut logits = self.read()?;
        for _ in 0..ANSWER {
            logits.iter().for_each(|v| _ = hasher.update(&v.to_bits().to_le_bytes()));
            logits = self.write(greedy(&logits))?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

fn greedy(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best });
    best.0 as u32
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Prefill,
    Decode,
}

struct Generate {
    labels: Measurement,
    text: Rc<RefCell<Text>>,
    part: Part,
}

/// Both parts, which share the model.
///
/// # Errors
/// As `qwentune generate`.
pub fn build(case: &Case) -> Result<Vec<Box<dyn Workload>>> {
    let text = Rc::new(RefCell::new(Text::build(case)?));
    let one = |name: &str, part| -> Box<dyn Workload> {
        let labels = case.labels(name, "tokens/s", Better::Higher);
        Box::new(Generate { labels, text: Rc::clone(&text), part })
    };
    Ok(vec![one("prefill_tokens_per_second", Part::Prefill), one("decode_tokens_per_second", Part::Decode)])
}

impl Workload for Generate {
    fn labels(&self) -> Measurement {
        self.labels.clone()
    }

    fn pass(&mut self) -> Result<Pass> {
        let mut text = self.text.borrow_mut();
        let mut begin = Instant::now();
        let mut logits = text.read()?;
        if self.part == Part::Prefill {
            return Ok(Pass { work: text.prompt.len() as f64, seconds: begin.elapsed().as_secs_f64() });
        }
        begin = Instant::now();
        for _ in 0..ANSWER {
            logits = text.write(greedy(&logits))?;
        }
        Ok(Pass { work: ANSWER as f64, seconds: begin.elapsed().as_secs_f64() })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        self.text.borrow_mut().digest().map(Some)
    }

    fn details(&mut self, median: f64) -> Result<BTreeMap<String, Value>> {
        let text = self.text.borrow();
        Ok(BTreeMap::from([match self.part {
            // Every weight is read once a token.
            Part::Decode => ("weights_gb_per_second".into(), json!(text.weight_bytes as f64 * median / 1e9)),
            Part::Prefill => ("tflops_per_second".into(), json!(text.flops_per_token * median / 1e12)),
        }]))
    }
}
