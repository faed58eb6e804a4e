//! The operations of the registry on their own, at the shapes of a model: how long each call takes, beside the least that a
//! known device would need for its bytes and products, and beside the fastest product of this size.

use super::Case;
use crate::bench::report::{Better, Measurement};
use crate::bench::roofline::{self, Card};
use crate::bench::sampling::{Pass, Workload};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::check::{self, Cost, Rig, described};
use crate::ops::linear;
use crate::ops::{self, OPERATIONS};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Instant;

/// Side of the square matrix whose product is the peak, at most; models with less use their own inner size.
const PEAK_SIDE: usize = 4096;

/// Passes of which the fastest is the peak.
const PEAK_PASSES: usize = 5;

/// An operation's case as `--operations` takes it.
pub(super) fn name((operation, number): (usize, usize)) -> String {
    format!("{}:{number}", OPERATIONS[operation].name)
}

/// The cases of the operations that `names` has; all without names.
pub(super) fn chosen(case: &Case, names: &[String]) -> Result<Vec<(usize, usize)>> {
    if let Some(wrong) = names.iter().find(|name| !OPERATIONS.iter().any(|o| o.name == stem(name))) {
        let known: Vec<&str> = OPERATIONS.iter().map(|operation| operation.name).collect();
        return Err(Error::usage(format!("--operations {wrong}: there is no such operation"))
            .hint(format!("known are {}", known.join(", "))));
    }
    let device = case.chosen()?.capabilities();
    let shape = case.shape(device)?;
    let mut found = Vec::new();
    for (at, operation) in OPERATIONS.iter().enumerate() {
        let cases = (operation.in_model)(&shape);
        let runs =
            cases.iter().enumerate().filter(|(_, c)| c.runs_on(device)).map(|(number, _)| (at, number));
        let wanted = |one: &(usize, usize)| {
            names.is_empty() || names.iter().any(|n| *n == operation.name || *n == name(*one))
        };
        found.extend(runs.filter(wanted));
    }
    match found.is_empty() {
        true => Err(Error::usage(format!("--operations {}: the model has no such case", names.join(",")))),
        false => Ok(found),
    }
}

fn stem(name: &str) -> &str {
    name.split(':').next().unwrap_or_default()
}

/// A case on its device.
struct Ready {
    rig: Rig,
    device: Device,
    digest: String,
    card: Option<Card>,
}

struct OneCall {
    labels: Measurement,
    ready: Rc<RefCell<Ready>>,
    /// Place among the case's calls.
    at: usize,
}

fn of_model(case: &Case) -> Result<(Box<dyn check::Case>, &'static str)> {
    let (operation, number) = case.operation.ok_or_else(|| Error::usage("bench ops without an operation"))?;
    let shape = case.shape(case.chosen()?.capabilities())?;
    let found = (OPERATIONS[operation].in_model)(&shape).into_iter().nth(number);
    let found =
        found.ok_or_else(|| Error::usage(format!("the model has no {}", name((operation, number)))))?;
    Ok((found, OPERATIONS[operation].name))
}

/// The calls to be measured: those of one name do the same.
fn calls(rig: &Rig) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    rig.calls().iter().enumerate().filter(|(_, call)| seen.insert(call.name)).map(|(at, _)| at).collect()
}

/// How many calls the case has.
pub(super) fn parts(case: &Case) -> Result<usize> {
    let (of_model, _) = of_model(case)?;
    Ok(calls(&Rig::to_measure(&*of_model, case.chosen()?.capabilities())).len())
}

/// Sets the case's operands up; a workload for each call.
pub(super) fn build(case: &Case) -> Result<Vec<Box<dyn Workload>>> {
    let (of_model, operation) = of_model(case)?;
    let chosen = case.chosen()?;
    let rig = Rig::to_measure(&*of_model, chosen.capabilities());
    let mut device = ops::device(chosen, rig.plan(), case.threads)?;
    rig.load(&mut device)?;
    let digest = rig.run(&mut device)?.digest();
    let (names, calls): (Vec<_>, _) = (rig.calls().iter().map(|call| call.name).collect(), calls(&rig));
    let ready = Rc::new(RefCell::new(Ready { rig, device, digest, card: case.card()? }));
    let one = |at: usize| -> Box<dyn Workload> {
        let mut labels = case.labels("seconds", "s", Better::Lower);
        for (key, value) in [("operation", operation), ("call", names[at]), ("case", &described(&*of_model))]
        {
            labels.parameters.insert(key.into(), json!(value));
        }
        Box::new(OneCall { labels, ready: Rc::clone(&ready), at })
    };
    Ok(calls.into_iter().map(one).collect())
}

/// Seconds of a call on the first values, which are put back before.
fn timed(rig: &Rig, device: &mut Device, at: usize) -> Result<f64> {
    rig.reset(device)?;
    rig.with_lists(device, |device, lists| {
        device.begin_timing()?;
        let begin = Instant::now();
        rig.calls()[at].run(device, lists)?;
        let own = begin.elapsed().as_secs_f64();
        Ok(device.end_timing()?.unwrap_or(own))
    })
}

impl Workload for OneCall {
    fn labels(&self) -> Measurement {
        self.labels.clone()
    }

    fn pass(&mut self) -> Result<Pass> {
        let Ready { rig, device, .. } = &mut *self.ready.borrow_mut();
        Ok(Pass { work: 1.0, seconds: timed(rig, device, self.at)? })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        Ok(Some(self.ready.borrow().digest.clone()))
    }

    fn details(&mut self, median: f64) -> Result<BTreeMap<String, Value>> {
        let ready = self.ready.borrow();
        let Cost { flops, .. } = ready.rig.calls()[self.at].cost;
        let bytes = ready.rig.calls()[self.at].cost.bytes(ready.rig.device()) as f64;
        let mut details = BTreeMap::from([
            ("ms".to_owned(), json!(1e3 * median)),
            ("bytes".into(), json!(bytes)),
            ("gb_per_second".into(), json!(bytes / median / 1e9)),
        ]);
        if flops > 0.0 {
            details.insert("flops".into(), json!(flops));
            details.insert("tflops_per_second".into(), json!(flops / median / 1e12));
        }
        if let Some(card) = &ready.card {
            let bound = roofline::least(card, flops, bytes);
            details.insert("bound_ms".into(), json!(1e3 * bound.seconds));
            details.insert("of_bound".into(), json!(bound.seconds / median));
            details.insert("limiter".into(), json!(bound.limiter));
        }
        Ok(details)
    }
}

/// TFLOP/s of the fastest of some products without adapters.
pub(super) fn matmul_peak(case: &Case) -> Result<f64> {
    let chosen = case.chosen()?;
    let shape = case.shape(chosen.capabilities())?;
    let side = shape.intermediate.next_power_of_two().min(PEAK_SIDE);
    let layers = vec![(side, 0, false)].into();
    let product =
        linear::check::Case { tokens: case.tokens, input: side, layers, residual: false, dropout: 0.0 };
    let rig = Rig::to_measure(&product, chosen.capabilities());
    let mut device = ops::device(chosen, rig.plan(), case.threads)?;
    rig.load(&mut device)?;
    let forward = rig.calls().iter().position(|call| call.name == "forward").expect("linear layers have one");
    let mut fastest = f64::INFINITY;
    for _ in 0..=PEAK_PASSES {
        fastest = fastest.min(timed(&rig, &mut device, forward)?);
    }
    Ok(rig.calls()[forward].cost.flops / fastest / 1e12)
}
