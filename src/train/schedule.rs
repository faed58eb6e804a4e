//! Learning rate as a pure function of the step: the values of Hugging Face's `get_scheduler`
//! (transformers, `optimization.py`), in f64.

use crate::checkpoint::state::Length;
use crate::config::{Scheduler, Settings};
use crate::error::{Error, Result};
use serde_json::Value;
use std::f64::consts::PI;

/// A schedule with its keyword arguments read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    base: f64,
    shape: Shape,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Linear,
    Cosine {
        cycles: f64,
    },
    Constant,
    ConstantWithWarmup,
    Polynomial {
        lr_end: f64,
        power: f64,
    },
    CosineWithRestarts {
        cycles: f64,
    },
    InverseSqrt {
        timescale: Option<f64>,
    },
    /// `rate` is the least learning rate over the base rate.
    CosineWithMinLr {
        cycles: f64,
        rate: f64,
    },
    /// The same one step ahead; `warmup` is where the rise begins, over the base rate.
    CosineWarmupWithMinLr {
        cycles: f64,
        rate: f64,
        warmup: Option<f64>,
    },
    WarmupStableDecay(Stable),
}

/// The arguments of warmup-stable-decay.
#[derive(Clone, Debug, PartialEq)]
struct Stable {
    decay_steps: f64,
    stable_steps: Option<f64>,
    warmup: Curve,
    decay: Curve,
    min_ratio: f64,
    cycles: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Curve {
    Linear,
    Cosine,
    OneMinusSqrt,
}

/// Takes the keyword arguments one by one, so that what is left is unknown.
struct Arguments {
    left: serde_json::Map<String, Value>,
}

impl Arguments {
    fn number(&mut self, name: &str) -> Result<Option<f64>> {
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v.as_f64().filter(|x| x.is_finite()).map(Some).ok_or_else(|| {
                Error::usage(format!("--lr-scheduler-kwargs: {name} must be a number, not {v}"))
            }),
        }
    }

    fn curve(&mut self, name: &str, default: Curve) -> Result<Curve> {
        match self.left.remove(name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::String(s)) if s == "linear" => Ok(Curve::Linear),
            Some(Value::String(s)) if s == "cosine" => Ok(Curve::Cosine),
            Some(Value::String(s)) if s == "1-sqrt" => Ok(Curve::OneMinusSqrt),
            Some(v) => Err(Error::usage(format!(
                "--lr-scheduler-kwargs: {name} is linear, cosine or 1-sqrt, not {v}"
            ))),
        }
    }

    fn finish(self, shape: Shape) -> Result<Shape> {
        match self.left.keys().next() {
            None => Ok(shape),
            Some(name) => Err(Error::usage(format!(
                "--lr-scheduler-kwargs: {name} is not an argument of this schedule"
            ))),
        }
    }
}

/// `min_lr` or `min_lr_rate`, as a share of the base rate.
fn least_rate(arguments: &mut Arguments, base: f64) -> Result<f64> {
    match (arguments.number("min_lr")?, arguments.number("min_lr_rate")?) {
        (Some(least), None) => Ok(least / base),
        (None, Some(rate)) => Ok(rate),
        (Some(_), Some(_)) => Err(Error::usage(
            "--lr-scheduler-kwargs: min_lr and min_lr_rate are two ways to say one thing: give one",
        )),
        (None, None) => Err(Error::usage(
            "--lr-scheduler-type cosine_with_min_lr needs the least learning rate",
        )
        .hint("add --lr-scheduler-kwargs '{\"min_lr\": X}', or min_lr_rate as a share of --learning-rate")),
    }
}

fn stable(arguments: &mut Arguments) -> Result<Stable> {
    let decay_steps = arguments.number("num_decay_steps")?.ok_or_else(|| {
        Error::usage("--lr-scheduler-type warmup_stable_decay needs the steps of its decay")
            .hint("add --lr-scheduler-kwargs '{\"num_decay_steps\": N}'")
    })?;
    Ok(Stable {
        decay_steps,
        stable_steps: arguments.number("num_stable_steps")?,
        warmup: arguments.curve("warmup_type", Curve::Linear)?,
        decay: arguments.curve("decay_type", Curve::Cosine)?,
        min_ratio: arguments.number("min_lr_ratio")?.unwrap_or(0.0),
        cycles: arguments.number("num_cycles")?.unwrap_or(0.5),
    })
}

impl Schedule {
    /// The schedule the settings ask for.
    ///
    /// # Errors
    /// An unknown, missing or ill-typed keyword argument.
    pub fn new(settings: &Settings) -> Result<Self> {
        let mut a = Arguments { left: settings.lr_scheduler_kwargs.clone() };
        let shape = match settings.lr_scheduler_type {
            Scheduler::Linear => Shape::Linear,
            Scheduler::Cosine => Shape::Cosine { cycles: a.number("num_cycles")?.unwrap_or(0.5) },
            Scheduler::Constant => Shape::Constant,
            Scheduler::ConstantWithWarmup => Shape::ConstantWithWarmup,
            Scheduler::Polynomial => Shape::Polynomial {
                lr_end: a.number("lr_end")?.unwrap_or(1e-7),
                power: a.number("power")?.unwrap_or(1.0),
            },
            Scheduler::CosineWithRestarts => {
                Shape::CosineWithRestarts { cycles: a.number("num_cycles")?.unwrap_or(1.0) }
            }
            Scheduler::InverseSqrt => Shape::InverseSqrt { timescale: a.number("timescale")? },
            Scheduler::CosineWithMinLr => Shape::CosineWithMinLr {
                cycles: a.number("num_cycles")?.unwrap_or(0.5),
                rate: least_rate(&mut a, settings.learning_rate)?,
            },
            Scheduler::CosineWarmupWithMinLr => Shape::CosineWarmupWithMinLr {
                cycles: a.number("num_cycles")?.unwrap_or(0.5),
                rate: least_rate(&mut a, settings.learning_rate)?,
                warmup: a.number("warmup_lr_rate")?,
            },
            Scheduler::WarmupStableDecay => Shape::WarmupStableDecay(stable(&mut a)?),
        };
        if let Shape::Polynomial { lr_end, .. } = shape
            && settings.learning_rate <= lr_end
        {
            return Err(Error::usage(format!(
                "--lr-scheduler-type polynomial: lr_end {lr_end} must be below the learning rate {}",
                settings.learning_rate
            )));
        }
        Ok(Schedule { base: settings.learning_rate, shape: a.finish(shape)? })
    }

    /// Learning rate of the step after `done` steps in a run of these lengths: that of one schedule over the length
    /// that counts for the step, as Hugging Face's Trainer has it after a run was made longer.
    #[must_use]
    pub fn learning_rate(&self, done: u64, lengths: &[Length]) -> f64 {
        let Some(length) = lengths.iter().rev().find(|l| l.from_step <= done).or(lengths.first()) else {
            return self.base;
        };
        self.base * self.factor(done as f64, length.warmup_steps as f64, length.total_steps as f64)
    }

    /// Whether it begins with a warm-up, where one is asked for.
    #[must_use]
    pub fn has_warmup(&self) -> bool {
        self.shape != Shape::Constant
    }

    fn factor(&self, step: f64, warmup: f64, total: f64) -> f64 {
        if let Shape::WarmupStableDecay(s) = &self.shape {
            return s.factor(step, warmup, total);
        }
        if let Shape::CosineWarmupWithMinLr { cycles, rate, warmup: begins } = self.shape {
            return one_ahead(step, warmup, total, cycles, rate, begins);
        }
        if step < warmup && self.shape != Shape::Constant {
            return step / warmup.max(1.0);
        }
        let progress = (step - warmup) / (total - warmup).max(1.0);
        match self.shape {
            Shape::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
            Shape::Cosine { cycles } => (0.5 * (1.0 + libm::cos(PI * cycles * 2.0 * progress))).max(0.0),
            Shape::Polynomial { lr_end, power } => self.polynomial(step, warmup, total, lr_end, power),
            Shape::CosineWithRestarts { cycles } => {
                let phase = libm::fmod(cycles * progress, 1.0);
                if progress >= 1.0 { 0.0 } else { (0.5 * (1.0 + libm::cos(PI * phase))).max(0.0) }
            }
            Shape::InverseSqrt { timescale } => {
                let scale = timescale.unwrap_or(if warmup > 0.0 { warmup } else { 10_000.0 });
                1.0 / ((step + scale - warmup) / scale).sqrt()
            }
            Shape::CosineWithMinLr { cycles, rate } => cosine_above(cycles, progress, rate),
            // The last two have returned above.
            Shape::Constant
            | Shape::ConstantWithWarmup
            | Shape::CosineWarmupWithMinLr { .. }
            | Shape::WarmupStableDecay(_) => 1.0,
        }
    }

    fn polynomial(&self, step: f64, warmup: f64, total: f64, lr_end: f64, power: f64) -> f64 {
        if step > total {
            return lr_end / self.base;
        }
        let remaining = 1.0 - (step - warmup) / (total - warmup).max(1.0);
        ((self.base - lr_end) * libm::pow(remaining, power) + lr_end) / self.base
    }
}

/// The cosine between 1 and `rate`.
fn cosine_above(cycles: f64, progress: f64, rate: f64) -> f64 {
    let factor = 0.5 * (1.0 + libm::cos(PI * cycles * 2.0 * progress));
    (factor * (1.0 - rate) + rate).max(0.0)
}

/// `cosine_warmup_with_min_lr`: its first step is no step of rate 0, and its last one has the least rate.
fn one_ahead(step: f64, warmup: f64, total: f64, cycles: f64, rate: f64, begins: Option<f64>) -> f64 {
    if step < warmup {
        return match begins {
            None => (step + 1.0) / warmup.max(1.0),
            Some(begins) => begins + (1.0 - begins) * step / (warmup - 1.0).max(1.0),
        };
    }
    cosine_above(cycles, (step - warmup + 1.0) / (total - warmup).max(1.0), rate)
}

impl Stable {
    fn factor(&self, step: f64, warmup: f64, total: f64) -> f64 {
        let stable = self.stable_steps.unwrap_or(total - warmup - self.decay_steps);
        let shaped = |factor: f64| (factor * (1.0 - self.min_ratio) + self.min_ratio).max(0.0);
        if step < warmup {
            let progress = step / warmup.max(1.0);
            return shaped(match self.warmup {
                Curve::Linear => progress,
                Curve::Cosine => 0.5 * (1.0 - libm::cos(PI * progress)),
                Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            });
        }
        if step < warmup + stable {
            return 1.0;
        }
        if step < warmup + stable + self.decay_steps {
            let progress = (step - warmup - stable) / self.decay_steps.max(1.0);
            return shaped(match self.decay {
                Curve::Linear => 1.0 - progress,
                Curve::Cosine => 0.5 * (1.0 + libm::cos(PI * self.cycles * 2.0 * progress)),
                Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
            });
        }
        self.min_ratio
    }
}

/// Warm-up steps of a run of `total` steps: a count, or below 1 a ratio rounded up, as in Hugging Face.
#[must_use]
pub fn warmup_steps(settings: &Settings, total: u64) -> u64 {
    let ratio = |r: f64| (r * total as f64).ceil() as u64;
    match (settings.warmup_steps, settings.warmup_ratio) {
        (steps, _) if steps >= 1.0 => steps as u64,
        (steps, _) if steps > 0.0 => ratio(steps),
        (_, Some(r)) => ratio(r),
        _ => 0,
    }
}
