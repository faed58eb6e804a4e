//! Text to ids, on one thread.

use super::{Case, SEED};
use crate::bench::report::{Better, Measurement};
use crate::bench::sampling::{Pass, Workload};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::philox::{Stream, uniform};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Tokens of the text.
const TOKENS: usize = 20_000;

/// A tokenizer and a text of random tokens of its own vocabulary.
pub struct Tokenize {
    labels: Measurement,
    tokenizer: Tokenizer,
    text: String,
    ids: usize,
}

impl Tokenize {
    /// Reads the folder's tokenizer and makes the text.
    ///
    /// # Errors
    /// Without a folder, or one without a tokenizer.
    pub fn build(case: &Case) -> Result<Self> {
        let folder = case.model_folder().ok_or_else(|| {
            Error::usage("bench tokenize needs the folder of a tokenizer").hint("give --model DIR")
        })?;
        let tokenizer = Tokenizer::open(folder)?;
        let size = tokenizer.size() as f64;
        let draw = |i: usize| (uniform(SEED, Stream::Benchmark, i as u64) * size) as u32;
        let ids: Vec<u32> = (0..TOKENS).map(draw).filter(|id| !tokenizer.is_control(*id)).collect();
        let text = tokenizer.decode(&ids);
        let labels = case.labels("tokenize_bytes_per_second", "B/s", Better::Higher);
        Ok(Tokenize { labels, tokenizer, text, ids: 0 })
    }
}

impl Workload for Tokenize {
    fn labels(&self) -> Measurement {
        self.labels.clone()
    }

    fn pass(&mut self) -> Result<Pass> {
        let begin = Instant::now();
        self.ids = self.tokenizer.encode(&self.text)?.len();
        Ok(Pass { work: self.text.len() as f64, seconds: begin.elapsed().as_secs_f64() })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        let mut hasher = blake3::Hasher::new();
        for id in self.tokenizer.encode(&self.text)? {
            hasher.update(&id.to_le_bytes());
        }
        Ok(Some(hasher.finalize().to_hex().to_string()))
    }

    fn details(&mut self, median: f64) -> Result<BTreeMap<String, Value>> {
        let ids = self.ids as f64 / self.text.len() as f64;
        Ok(BTreeMap::from([("tokens_per_second".to_owned(), json!(median * ids))]))
    }
}
