//! The CPU device in both arithmetics: every instruction set and number of threads, interrupted or not, ends in the same
//! bytes, for each family; and bf16 trains, continues, evaluates, answers and is exported as f32 is.

use crate::common::{
    assert_same, metrics_without_clock, results, scratch, tiny_settings, train, train_until,
};
use qwentune::checkpoint::state::PlanOrigin;
use qwentune::config::{CpuIsa, DeviceChoice, Dtype, Recompute, ResumeFrom, Settings, Strategy};
use qwentune::data::dataset::{Row, Rows};
use qwentune::device::cpu::{Arithmetic, Cpu, Isa};
use qwentune::device::{Device, Planner};
use qwentune::error::Kind;
use qwentune::generate::sampling::Sampling;
use qwentune::generate::{Event as Told, Generator, Model, Options};
use qwentune::identity::Identity;
use qwentune::model::decode::Limits;
use qwentune::model::{Decoder, Spec, Weights};
use qwentune::report::event::Event;
use qwentune::selftest::tiny;
use qwentune::train::Devices;
use qwentune::train::engine::{Engine, NetworkEngine};
use qwentune::train::evaluate::evaluate;
use qwentune::train::setup::{Base, Setup};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The ways to compute that this processor has; what it lacks is told by name.
fn paths() -> Vec<CpuIsa> {
    let here: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    let all = [CpuIsa::Portable, CpuIsa::Avx2, CpuIsa::Avx512, CpuIsa::Avx512Bf16];
    let has = |path: &CpuIsa| {
        let name = path.name().expect("a named path");
        let there = here.contains(&name);
        if !there {
            println!("{name} is left out: this processor lacks it");
        }
        there
    };
    all.into_iter().filter(has).collect()
}

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Steps of a run; it is stopped after the first.
const STEPS: u64 = 2;

fn family_settings(family: &tiny::Family, name: &str) -> Settings {
    let folder = scratch(&format!("cpu-{name}-{}", family.name));
    tiny::write_model(family, &folder.join("model")).unwrap();
    let row = |len: usize| serde_json::json!({ "input_ids": (0..len).map(|i| (i * i + len) % tiny::VOCAB).collect::<Vec<_>>() });
    let rows: String = [50, 3, 9, 4, 2, 17, 5, 7].map(|len| format!("{}\n", row(len))).concat();
    std::fs::write(folder.join("rows.jsonl"), rows).unwrap();
    Settings { per_device_train_batch_size: 1, ..tiny::settings(&folder, STEPS) }
}

#[test]
fn every_family_ends_in_the_same_bytes_on_every_path() {
    let paths = paths();
    for family in tiny::FAMILIES {
        let base = family_settings(family, "paths");
        for dtype in DTYPES {
            let run = |isa: CpuIsa, threads, name: &str| Settings {
                cpu_isa: isa,
                threads: Some(threads),
                dtype,
                output_dir: base.output_dir.with_file_name(format!("{dtype:?}-{name}")),
                ..base.clone()
            };
            let first = run(paths[0], 1, "first");
            train(&first).unwrap();
            let expected = results(&first.output_dir).unwrap();
            for (i, isa) in paths.iter().enumerate() {
                for threads in [1, 2, 4] {
                    let name = format!("{isa:?}-{threads}");
                    let whole = run(*isa, threads, &name);
                    train(&whole).unwrap();
                    let what = format!("{} {dtype:?} {name}", family.name);
                    assert_same(&expected, &results(&whole.output_dir).unwrap(), &what);
                }
                // Begun on this path, continued on the next.
                let begun = run(*isa, 2, &format!("{isa:?}-stopped"));
                let first = |e: &Event| matches!(e, Event::Step { line, .. } if line.step == 1);
                assert_eq!(train_until(&begun, first).unwrap_err().kind, Kind::Stopped);
                let next = paths[(i + 1) % paths.len()];
                let resume_from_checkpoint = Some(ResumeFrom::Auto);
                train(&Settings { resume_from_checkpoint, cpu_isa: next, threads: Some(4), ..begun.clone() })
                    .unwrap();
                let what = format!("{} {dtype:?}, begun on {isa:?}, continued on {next:?}", family.name);
                assert_same(&expected, &results(&begun.output_dir).unwrap(), &what);
            }
        }
    }
}

/// The bits of all logits of prompts of 1 to 9 rows together, and of tokens after them.
fn logits(model: &Model, arithmetic: Arithmetic, isa: Isa, threads: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for rows in [1, 2, 3, 4, 7, 9] {
        let mut planner = Planner::new(Cpu::capabilities_in(arithmetic));
        let limits = Limits { slots: rows, capacity: 24, rows: 20 * rows };
        let Model { spec, weights, adapter, .. } = model;
        let mut decoder = Decoder::plan(&mut planner, spec, weights, adapter, limits).unwrap();
        let mut cpu = Cpu::new(&planner, Some(threads)).unwrap();
        (cpu.arithmetic, cpu.isa) = (arithmetic, isa);
        let mut dev = Device::Cpu(cpu);
        decoder.upload(&mut dev, adapter).unwrap();
        let id = |row: usize, at: usize| ((row * 31 + at * 17 + 5) % tiny::VOCAB) as u32;
        let prompts: Vec<Vec<u32>> =
            (0..rows).map(|row| (0..1 + (row * 7) % 20).map(|at| id(row, at)).collect()).collect();
        let all: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
        let mut found = decoder.prefill(&mut dev, &all, &|| false).unwrap().unwrap();
        for step in 0..2 {
            let next: Vec<(usize, u32)> = (0..rows).map(|row| (row, id(step, row))).collect();
            found.extend(decoder.step(&mut dev, &next, &|| false).unwrap().unwrap());
        }
        bits.extend(found.iter().map(|v| v.to_bits()));
    }
    bits
}

#[test]
fn every_family_has_the_same_logits_on_every_path() {
    paths();
    for family in tiny::FAMILIES {
        let settings = family_settings(family, "logits");
        train(&Settings { threads: Some(2), ..settings.clone() }).unwrap();
        let model = Model::open(&settings.model, Some(&settings.output_dir.join("adapter"))).unwrap();
        let mut by_arithmetic = Vec::new();
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            let expected = logits(&model, arithmetic, Isa::available()[0], 1);
            for isa in Isa::available() {
                for threads in [1, 2, 4] {
                    let found = logits(&model, arithmetic, isa, threads);
                    assert!(found == expected, "{} {arithmetic:?} {} {threads}", family.name, isa.name());
                }
            }
            by_arithmetic.push(expected);
        }
        assert_ne!(by_arithmetic[0], by_arithmetic[1], "{}: bf16 is another arithmetic", family.name);
    }
}

fn answers(model: &Model, dtype: Dtype, cpu_isa: CpuIsa, threads: usize, batch: usize) -> Vec<Vec<u32>> {
    let sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let options = Options {
        max_new_tokens: 12,
        sampling,
        seed: 42,
        batch,
        ends: Vec::new(),
        threads: Some(threads),
        device: DeviceChoice::Cpu,
        dtype,
        cpu_isa,
        devices: Devices::default(),
    };
    let prompts: [&[u32]; 5] = [&[1, 2, 3], &[9], &[17, 40, 8, 8, 100, 3, 2], &[5, 6], &[150, 3]];
    let mut found = vec![Vec::new(); prompts.len()];
    let mut tell = |event| {
        if let Told::Answer { row, ids, .. } = event {
            found[row] = ids;
        }
        Ok(())
    };
    let mut generator = Generator::new(model, options, 7, prompts.len()).unwrap();
    assert!(generator.run(&prompts, 0, &mut tell, &|| false).unwrap());
    found
}

#[test]
fn every_family_draws_the_same_answers_on_every_path() {
    let paths = paths();
    for family in tiny::FAMILIES {
        let settings = family_settings(family, "answers");
        let model = Model::open(&settings.model, None).unwrap();
        for dtype in DTYPES {
            let expected = answers(&model, dtype, paths[0], 1, 1);
            assert!(expected.iter().all(|answer| answer.len() == 12));
            for isa in &paths {
                for (threads, batch) in [(1, 1), (2, 5), (4, 2)] {
                    let found = answers(&model, dtype, *isa, threads, batch);
                    assert_eq!(found, expected, "{} {dtype:?} {isa:?} {threads} {batch}", family.name);
                }
            }
        }
    }
}

fn logged(run: &Path, key: &str) -> Vec<f64> {
    let lines = metrics_without_clock(run);
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.filter_map(|value| value[key].as_f64()).collect()
}

fn program(words: &[&str], paths: &[&Path]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    let done = command.args(words).args(paths).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn in_bf16(name: &str) -> (Settings, PathBuf) {
    let folder = scratch(name);
    let settings = Settings {
        dtype: Dtype::Bf16,
        valid_file: Some(folder.join("dev.jsonl")),
        eval_strategy: Strategy::Epoch,
        eval_on_start: true,
        ..tiny_settings(&folder)
    };
    train(&settings).unwrap();
    (settings, folder)
}

#[test]
fn a_run_in_bf16_is_evaluated_resumed_and_exported_in_bf16() {
    let (settings, folder) = in_bf16("cpu-bf16");
    let eval = logged(&settings.output_dir, "eval_loss");
    assert!(eval[eval.len() - 1] < eval[0], "{eval:?}");

    let adapter = settings.output_dir.join("adapter");
    let asked = Settings { init_adapter: Some(adapter), train_files: Vec::new(), ..settings.clone() };
    let report = evaluate(&asked, &mut |_: &Event| {}).unwrap();
    assert_eq!((report.base.loss, report.adapter.unwrap().loss), (eval[0], eval[eval.len() - 1]));
    let in_f32 = evaluate(&Settings { dtype: Dtype::F32, ..asked }, &mut |_: &Event| {}).unwrap();
    let other = in_f32.adapter.unwrap().loss;
    assert!(other != eval[eval.len() - 1] && (other - eval[eval.len() - 1]).abs() < 5e-3, "{other} {eval:?}");

    // The run says which arithmetic it is in, keeps it where it is left open, and refuses another.
    let shown = program(&["checkpoint", "show"], &[&settings.output_dir]);
    assert!(shown.contains("bf16"), "{shown}");
    let resuming = |dtype, name: &str| Settings {
        dtype,
        resume_from_checkpoint: Some(ResumeFrom::Auto),
        output_dir: folder.join(name),
        ..settings.clone()
    };
    let second = |e: &Event| matches!(e, Event::Step { line, .. } if line.step == 2);
    train_until(&resuming(Dtype::Bf16, "open"), second).unwrap_err();
    let refused = train(&resuming(Dtype::F32, "open")).unwrap_err().to_string();
    assert!(refused.contains("bf16") && refused.contains("f32"), "{refused}");
    train(&resuming(Dtype::Auto, "open")).unwrap();
    let expected = results(&settings.output_dir).unwrap();
    assert_same(&expected, &results(&folder.join("open")).unwrap(), "continued with --dtype auto");

    let exported = folder.join("exported");
    program(&["export"], &[&settings.output_dir, &exported]);
    let file = "adapter_model.safetensors";
    let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
    assert_eq!(bytes(&exported), bytes(&settings.output_dir.join("adapter")));
}

#[test]
fn an_adapter_of_bf16_answers_and_is_merged() {
    let (settings, folder) = in_bf16("cpu-bf16-merge");
    let adapter = settings.output_dir.join("adapter");
    let merged = folder.join("merged");
    let words = ["--model", settings.model.to_str().unwrap(), "--adapter", adapter.to_str().unwrap()];
    program(&[&["merge"][..], &words].concat(), &[&merged]);
    let eval = logged(&settings.output_dir, "eval_loss");
    let of_merged = Settings { model: merged, train_files: Vec::new(), ..settings.clone() };
    let loss = evaluate(&of_merged, &mut |_: &Event| {}).unwrap().base.loss;
    assert!((loss - eval[eval.len() - 1]).abs() < 5e-3, "{loss} {eval:?}");
}

/// How often threads are woken in forward and backward pass of `layers` layers.
fn forks(layers: usize, dtype: Dtype) -> u64 {
    let serde_json::Value::Object(keys) = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 300,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 1024, "hidden_act": "silu",
        "tie_word_embeddings": true,
    }) else {
        unreachable!("an object")
    };
    let spec = Spec::given("a model of the tests", keys.into_iter().collect()).unwrap();
    let weights = Weights::random(&spec, 1).unwrap();
    let settings = Settings {
        device: DeviceChoice::Cpu,
        dtype,
        threads: Some(2),
        lora_dropout: 0.0,
        per_device_train_batch_size: 1,
        recompute: Recompute::None,
        ..Settings::default()
    };
    let row = Row { ids: (0..512).map(|i| i % 300).collect(), labels: (0..512).map(|i| i % 300).collect() };
    let rows = Rows { train: vec![row], eval: Vec::new() };
    let chosen = Devices::default().choose(&settings, None).unwrap();
    let (origin, mut silent) = (|_: &Identity| PlanOrigin::default(), |_: &Event| {});
    let setup =
        Setup::over(Base { spec, weights }, &settings, Some(rows), None, &origin, chosen, &mut silent)
            .unwrap();
    let mut ready = setup.allocate(&mut silent).unwrap();
    let batch = ready.engine.batch(&ready.train.rows, &[0]).unwrap();
    let count = |engine: &mut NetworkEngine| engine.device.cpu_mut().expect("the CPU").threads().forks();
    let before = count(&mut ready.engine);
    assert!(ready.engine.begin_step(0, &[batch], &|| false).unwrap());
    count(&mut ready.engine) - before
}

/// On many cores small operations cost as much as it takes to wake the threads: that happens so often and no more.
#[test]
fn a_layer_wakes_the_threads_so_often() {
    for (dtype, most) in [(Dtype::F32, 50), (Dtype::Bf16, 56)] {
        let layer = (forks(3, dtype) - forks(1, dtype)) / 2;
        println!("{layer} times a layer in {dtype:?}");
        assert_eq!(layer, most, "{dtype:?}");
    }
}
