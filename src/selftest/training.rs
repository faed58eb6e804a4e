//! Tiny models as a whole: training and generation beside the CPU device, and interrupted against uninterrupted runs.

use super::tiny;
use super::{Row, Settings as Options};
use crate::checkpoint::state::PlanOrigin;
use crate::config::{Recompute, ResumeFrom, Settings};
use crate::device::cpu::Rounding;
use crate::device::{Chosen, OnCpu};
use crate::device::{Device, Planner};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::model::decode::Limits;
use crate::model::{Adapter, Decoder, Spec, Weights};
use crate::report::event::Event;
use crate::train::setup::Setup;
use crate::train::start::history;
use crate::train::trainer::Trainer;
use crate::train::{self, Control, Request};
use std::path::Path;

/// Steps beside the CPU device.
const STEPS: u64 = 20;

/// What a short run gave: loss and gradient norm of each step, and the adapter at the end.
struct Course {
    losses: Vec<f64>,
    norms: Vec<f64>,
    adapter: Vec<f32>,
}

impl Course {
    fn of(trainer: &mut Trainer) -> Result<Self> {
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        while !trainer.finished() {
            let Some(step) = trainer.train_step(&|| false)? else { break };
            losses.push(step.line.loss);
            norms.push(step.line.grad_norm);
        }
        Ok(Course { losses, norms, adapter: trainer.engine().parameters()? })
    }
}

/// A trainer on a device that was adjusted.
fn trainer(settings: &Settings, chosen: Chosen, adjust: impl FnOnce(&mut Device)) -> Result<Trainer> {
    let mut silent = |_: &Event| {};
    let mut ready = Setup::open(settings, None, None, &|_| PlanOrigin::default(), chosen, &mut silent)?
        .allocate(&mut silent)?;
    adjust(&mut ready.engine.device);
    let history = history::new(&ready.settings, ready.train.plan.total_steps());
    Ok(ready.trainer(history)?.0)
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-300)
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Writes the model and rows of `family` and gives the settings of a run of `steps` steps on them.
fn prepare(family: &tiny::Family, folder: &Path, steps: u64) -> Result<Settings> {
    tiny::write_model(family, &folder.join("model"))?;
    tiny::write_rows(&folder.join("rows.jsonl"), 8, 5)?;
    Ok(tiny::settings(folder, steps))
}

/// A tiny model of each family, 20 steps: the device's losses, gradient norms and adapter beside those of the CPU device in
/// its bf16-rounding mode.
pub(super) fn beside_the_cpu(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for family in tiny::FAMILIES {
        let settings = prepare(family, &folder.join(family.name), options.steps.unwrap_or(STEPS))?;
        let mut reference = trainer(&settings, Chosen::Cpu(OnCpu::f32()), |device| {
            if let Some(cpu) = device.cpu_mut() {
                cpu.rounding = Rounding::Bf16;
            }
        })?;
        let want = Course::of(&mut reference)?;
        let got = Course::of(&mut trainer(&settings, options.chosen()?, |_| ())?)?;
        let mut row = |what: &str, error: f64, limit: f64| {
            rows.push(Row::compared("training", format!("{} {what}", family.name), error, limit));
        };
        row("loss", distance(&got.losses, &want.losses), 1e-3);
        row("gradient norm", distance(&got.norms, &want.norms), 5e-3);
        row("adapter", distance(&wide(&got.adapter), &wide(&want.adapter)), 4e-2);
    }
    Ok(rows)
}

/// The same bits without recorded work, and under every policy of recomputation.
pub(super) fn policies(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let family = &tiny::FAMILIES[2];
    let settings = prepare(family, &folder.join("policies"), 4)?;
    let run = |recompute, graphs: bool| -> Result<Vec<u32>> {
        let settings = Settings { recompute, ..settings.clone() };
        let mut trainer = trainer(&settings, options.chosen()?, |device| device.record(graphs))?;
        let course = Course::of(&mut trainer)?;
        let losses = course.losses.iter().flat_map(|l| [l.to_bits() as u32, (l.to_bits() >> 32) as u32]);
        Ok(losses.chain(course.adapter.iter().map(|v| v.to_bits())).collect())
    };
    let plain = run(Recompute::None, true)?;
    for (what, recompute, graphs) in [
        ("recompute mlp", Recompute::Mlp, true),
        ("recompute full", Recompute::Full, true),
        ("without recorded work", Recompute::None, false),
    ] {
        rows.push(Row::identical("training", what.to_owned(), run(recompute, graphs)? == plain));
    }
    Ok(rows)
}

/// Runs to the end or to the step `stop`, with the checkpoints and the resume of a user's run.
fn run_until(options: &Options, settings: &Settings, stop: Option<u64>) -> Result<()> {
    let control = Control::default();
    let asker = control.clone();
    let mut observer = move |event: &Event| {
        if let Event::Step { line, .. } = event
            && Some(line.step) == stop
        {
            asker.request_stop();
        }
    };
    let command_line = vec!["selftest".into()];
    let request = Request { devices: options.devices, command_line, ..Request::new(settings) };
    match train::train(request, &control, &mut observer) {
        Err(error) if error.kind == Kind::Stopped && stop.is_some() => Ok(()),
        done => done.map(|_| ()),
    }
}

/// The final adapter and the last checkpoint.
fn results(run: &Path, steps: u64) -> Result<Vec<Vec<u8>>> {
    let files = ["adapter/adapter_model.safetensors".into(), format!("checkpoints/step-{steps:08}.qckpt")];
    files.iter().map(|f| files::read(&run.join(f), 1 << 30)).collect()
}

/// A run that is stopped twice, once of them thrown back to an older checkpoint as by a kill, ends in the same bytes.
pub(super) fn resume(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let steps = 6;
    let mut settings = prepare(&tiny::FAMILIES[3], &folder.join("resume"), steps)?;
    settings.device = options.choice;
    run_until(options, &settings, None)?;
    let whole = results(&settings.output_dir, steps)?;
    settings.output_dir = folder.join("resume/interrupted");
    run_until(options, &settings, Some(2))?;
    settings.resume_from_checkpoint = Some(ResumeFrom::Auto);
    run_until(options, &settings, Some(4))?;
    let newest = settings.output_dir.join("checkpoints/step-00000004.qckpt");
    std::fs::remove_file(&newest).map_err(|e| Error::io("removing", &newest, e))?;
    run_until(options, &settings, None)?;
    let same = results(&settings.output_dir, steps)? == whole;
    rows.push(Row::identical("training", "resumed run, adapter and checkpoint".into(), same));
    Ok(rows)
}

/// The logits of two prompts read together and of three more tokens of each.
fn generated(model: &Path, device: Chosen, rounding: Rounding, prompts: &[&[u32]]) -> Result<Vec<f32>> {
    let spec = Spec::read(model)?;
    let weights = Weights::open(model, &spec)?;
    let limits = Limits { slots: 2, capacity: 100, rows: 200 };
    let mut planner = Planner::new(device.capabilities());
    let adapter = Adapter::none();
    let mut decoder = Decoder::plan(&mut planner, &spec, &weights, &adapter, limits)?;
    let mut dev = crate::ops::device(device, &planner, None)?;
    if let Some(cpu) = dev.cpu_mut() {
        cpu.rounding = rounding;
    }
    decoder.upload(&mut dev, &adapter)?;
    let read: Vec<(usize, &[u32])> = prompts.iter().copied().enumerate().collect();
    let mut logits = decoder.prefill(&mut dev, &read, &|| false)?.unwrap_or_default();
    for token in [3, 50, 99] {
        let next: Vec<(usize, u32)> = (0..prompts.len()).map(|slot| (slot, token + slot as u32)).collect();
        logits.extend(decoder.step(&mut dev, &next, &|| false)?.unwrap_or_default());
    }
    Ok(logits)
}

/// Generation of each family's tiny model: the logits beside those of the CPU device, and the same bits for a text alone and
/// beside another.
pub(super) fn generation(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let first: Vec<u32> = (0..70).map(|i| i * 31 % tiny::VOCAB as u32).collect();
    for family in tiny::FAMILIES {
        let model = folder.join(family.name);
        tiny::write_model(family, &model)?;
        let prompts: [&[u32]; 2] = [&first, &first[..5]];
        let want = generated(&model, Chosen::Cpu(OnCpu::f32()), Rounding::Bf16, &prompts)?;
        let got = generated(&model, options.chosen()?, Rounding::None, &prompts)?;
        let error = distance(&wide(&got), &wide(&want));
        rows.push(Row::compared("generation", format!("{} logits", family.name), error, 2e-2));
        let alone = generated(&model, options.chosen()?, Rounding::None, &prompts[..1])?;
        let mine = |all: &[f32]| {
            all.chunks(tiny::VOCAB).step_by(2).flatten().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let same = mine(&got) == alone.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        rows.push(Row::identical("generation", format!("{} alone and beside another", family.name), same));
    }
    Ok(rows)
}
