//! From a model folder to a device that is ready: mapping, checks, copies.

use super::Case;
use crate::bench::report::{Better, Measurement};
use crate::bench::sampling::{Pass, Workload};
use crate::device::Planner;
use crate::error::{Error, Result};
use crate::model::decode::Limits;
use crate::model::{Adapter, Decoder};
use crate::train::setup::Base;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// Loading, from the beginning each time; the files are in the system's cache from the second time on.
pub struct Load {
    case: Case,
    bytes: u64,
}

impl Load {
    /// Checks that there is a folder to load.
    ///
    /// # Errors
    /// Without a folder.
    pub fn build(case: &Case) -> Result<Self> {
        if case.model_folder().is_none() {
            return Err(Error::usage("bench load reads a model's files").hint("give --model DIR"));
        }
        Ok(Load { case: case.clone(), bytes: 0 })
    }
}

impl Workload for Load {
    fn labels(&self) -> Measurement {
        self.case.labels("load_seconds", "s", Better::Lower)
    }

    fn pass(&mut self) -> Result<Pass> {
        let begin = Instant::now();
        let Base { spec, weights } = self.case.model()?;
        let chosen = self.case.chosen()?;
        let adapter = Adapter::none();
        let mut planner = Planner::new(chosen.capabilities());
        let limits = Limits { slots: 1, capacity: 16, rows: 16 };
        let mut decoder = Decoder::plan(&mut planner, &spec, &weights, &adapter, limits)?;
        let mut device = crate::ops::device(chosen, &planner, self.case.threads)?;
        decoder.upload(&mut device, &adapter)?;
        self.bytes = weights.bytes;
        Ok(Pass { work: 1.0, seconds: begin.elapsed().as_secs_f64() })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    fn details(&mut self, median: f64) -> Result<BTreeMap<String, Value>> {
        Ok(BTreeMap::from([
            ("weight_bytes".to_owned(), json!(self.bytes)),
            ("gb_per_second".into(), json!(self.bytes as f64 / median / 1e9)),
        ]))
    }
}
