//! Generation: the tokens of transformers for every family, with adapters and beyond the trained length of Qwen v1;
//! the same tokens in any batch and on any number of threads; ends, and what is drawn.

#[cfg(feature = "text")]
mod text;

use crate::common::scratch;
use qwentune::config::DeviceChoice;
use qwentune::device::{Cpu, Device, Planner};
use qwentune::generate::sampling::{Sampling, draw};
use qwentune::generate::{Event, Generator, Model, Options};
use qwentune::model::Decoder;
use qwentune::model::decode::Limits;
use qwentune::train::Devices;
use serde_json::Value;
use std::path::{Path, PathBuf};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn golden(key: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(GOLDEN).join("generate.json")).unwrap();
    let mut all: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all[key].take()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The model folder of a case; a copy where the case changes its configuration.
fn folder(case: &Value, name: &str) -> PathBuf {
    let folder = Path::new(GOLDEN).join("train").join(case["model"].as_str().unwrap()).join("model");
    let changes = case["overrides"].as_object().unwrap();
    if changes.is_empty() {
        return folder;
    }
    let copy = scratch(name);
    std::fs::copy(folder.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    config.extend(changes.clone());
    std::fs::write(copy.join("config.json"), Value::Object(config).to_string()).unwrap();
    copy
}

fn open(case: &Value, name: &str) -> Model {
    let adapter = Path::new(GOLDEN).join("train").join(case["model"].as_str().unwrap()).join("final");
    let adapter = (case["adapter"] == true).then_some(adapter);
    Model::open(&folder(case, name), adapter.as_deref()).unwrap()
}

fn options(max_new_tokens: usize) -> Options {
    let sampling = Sampling::GREEDY;
    Options {
        max_new_tokens,
        sampling,
        seed: 42,
        batch: 8,
        ends: Vec::new(),
        threads: Some(2),
        device: DeviceChoice::Cpu,
        dtype: qwentune::config::Dtype::F32,
        cpu_isa: qwentune::config::CpuIsa::Auto,
        devices: Devices::default(),
    }
}

#[test]
fn repetitions_are_penalised_as_in_transformers() {
    let text = std::fs::read_to_string(Path::new(GOLDEN).join("repetition.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut changed = 0;
    for case in &cases {
        let model = open(case, "repetition");
        let (mut options, expected) = (options(24), ids(&case["tokens"]));
        options.sampling.repetition_penalty = case["penalty"].as_f64().unwrap() as f32;
        let prompt = ids(&case["prompt"]);
        assert_eq!(
            answers(&model, &options, std::slice::from_ref(&prompt), 0)[0].0,
            expected,
            "{}",
            case["model"]
        );
        changed += usize::from(expected != ids(&case["without"]));
    }
    assert!(cases.len() == 12 && changed >= 6, "{changed} of {} differ from greedy", cases.len());
}

/// The answers of `prompts`, and whether each ended by itself.
fn answers(model: &Model, options: &Options, prompts: &[Vec<u32>], first: usize) -> Vec<(Vec<u32>, bool)> {
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    let mut generator = Generator::new(model, options.clone(), longest, prompts.len()).unwrap();
    let mut found = vec![None; prompts.len()];
    let mut told = vec![Vec::new(); prompts.len()];
    let mut tell = |event| {
        match event {
            Event::Token { row, id } => told[row - first].push(id),
            Event::Answer { row, ids, ended } => found[row - first] = Some((ids, ended)),
        }
        Ok(())
    };
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    assert!(generator.run(&prompts, first, &mut tell, &|| false).unwrap());
    let found: Vec<_> = found.into_iter().map(Option::unwrap).collect();
    assert!(found.iter().zip(&told).all(|((ids, _), told)| ids == told));
    found
}

fn prompts(case: &Value) -> Vec<Vec<u32>> {
    case["rows"].as_array().unwrap().iter().map(|row| ids(&row["prompt"])).collect()
}

#[test]
fn every_family_generates_the_tokens_of_transformers() {
    let cases = golden("cases");
    assert!(cases.len() >= 18 && cases.iter().any(|case| case["overrides"]["seq_length"] == 24));
    for case in &cases {
        let model = open(case, "generate-golden");
        let rows = case["rows"].as_array().unwrap();
        let count = rows[0]["tokens"].as_array().unwrap().len();
        let found = answers(&model, &options(count), &prompts(case), 0);
        for (row, (found, ended)) in rows.iter().zip(found) {
            let name = format!("{} adapter {} {}", case["model"], case["adapter"], case["overrides"]);
            assert_eq!(found, ids(&row["tokens"]), "{name}, prompt of {}", ids(&row["prompt"]).len());
            assert!(!ended);
        }
    }
}

/// The first logits after the prompt, read at once, and read token by token.
#[test]
fn logits_are_those_of_transformers_however_the_prompt_is_read() {
    for case in golden("cases") {
        let model = open(&case, "generate-logits");
        for row in case["rows"].as_array().unwrap() {
            let prompt = ids(&row["prompt"]);
            let mut planner = Planner::new(Cpu::CAPABILITIES);
            let limits = Limits { slots: 2, capacity: prompt.len(), rows: prompt.len().max(2) };
            let Model { spec, weights, adapter, .. } = &model;
            let mut decoder = Decoder::plan(&mut planner, spec, weights, adapter, limits).unwrap();
            let mut dev = Device::Cpu(Cpu::new(&planner, Some(1)).unwrap());
            decoder.upload(&mut dev, adapter).unwrap();
            let whole = decoder.prefill(&mut dev, &[(1, &prompt)], &|| false).unwrap().unwrap();
            let mut ways = vec![whole];
            // Beyond the trained length, the prompt decides the rotary base: then it has to be read at once.
            if case["overrides"].as_object().unwrap().is_empty() {
                let mut last = decoder.prefill(&mut dev, &[(0, &prompt[..1])], &|| false).unwrap();
                for id in &prompt[1..] {
                    last = decoder.step(&mut dev, &[(0, *id)], &|| false).unwrap();
                }
                ways.push(last.unwrap());
            }
            for logits in ways {
                assert_eq!(logits.len(), spec.vocab);
                for (ours, theirs) in logits.iter().zip(row["logits"].as_array().unwrap()) {
                    let theirs = theirs.as_f64().unwrap();
                    assert!((f64::from(*ours) - theirs).abs() < 2e-4, "{}: {ours} {theirs}", case["model"]);
                }
            }
            assert!(decoder.prefill(&mut dev, &[(0, &prompt)], &|| true).unwrap().is_none());
        }
    }
}

#[test]
fn neither_batch_nor_threads_change_an_answer() {
    for (index, case) in golden("cases").iter().enumerate().filter(|(_, case)| case["adapter"] == true) {
        let model = open(case, &format!("generate-batch-{index}"));
        let mut prompts = prompts(case);
        prompts.extend(prompts.clone().into_iter().rev());
        prompts.extend(prompts.clone());
        let mut base = options(9);
        base.sampling = Sampling { temperature: 0.9, top_k: Some(30), top_p: 0.95, ..Sampling::GREEDY };
        base.ends = vec![5, 17, 200, 201, 202, 203];
        let expected = answers(&model, &base, &prompts, 0);
        for (batch, threads) in [(1, 1), (3, 2), (64, 4)] {
            let other = Options { batch, threads: Some(threads), ..base.clone() };
            assert_eq!(answers(&model, &other, &prompts, 0), expected, "batch {batch}, {threads} threads");
        }
        // A row alone, under its own number, as a job that continues asks for it.
        let alone = answers(&model, &base, &prompts[3..4], 3);
        assert_eq!(alone[0], expected[3]);
        // Equal prompts in other rows draw other tokens; another seed does too.
        assert_ne!(expected[0], expected[7]);
        let reseeded = answers(&model, &Options { seed: 43, ..base.clone() }, &prompts, 0);
        assert_ne!(reseeded, expected);
    }
}

#[test]
fn an_answer_ends_at_an_end_token_or_at_its_longest() {
    let case = &golden("cases")[0];
    let model = open(case, "generate-ends");
    let tokens = ids(&case["rows"][1]["tokens"]);
    let prompt = ids(&case["rows"][1]["prompt"]);
    for place in [0, 4, 9] {
        let end = tokens[place];
        let until = tokens.iter().position(|id| *id == end).unwrap();
        let found =
            answers(&model, &Options { ends: vec![end], ..options(16) }, std::slice::from_ref(&prompt), 0);
        assert_eq!(found, [(tokens[..until].to_vec(), true)]);
    }
    assert_eq!(
        answers(&model, &options(3), std::slice::from_ref(&prompt), 0),
        [(tokens[..3].to_vec(), false)]
    );
}

#[test]
fn a_text_is_no_longer_than_the_model_reads() {
    let case = golden("cases").into_iter().find(|case| case["model"] == "qwen3-untied-f32").unwrap();
    let mut model = open(&case, "generate-long");
    let tokens = ids(&case["rows"][1]["tokens"]);
    let prompt = ids(&case["rows"][1]["prompt"]);
    model.spec.max_positions = prompt.len() + 5;
    assert_eq!(answers(&model, &options(16), std::slice::from_ref(&prompt), 0)[0].0, tokens[..5]);
    let error = Generator::new(&model, options(16), prompt.len() + 5, 1).err().unwrap();
    assert_eq!(error.exit_code(), 65, "{error}");
    let mut generator = Generator::new(&model, options(16), prompt.len(), 1).unwrap();
    let error = generator.run(&[&[1, 100_000]], 0, &mut |_| Ok(()), &|| false).unwrap_err();
    assert_eq!(error.what, "prompt 1: the model has no token 100000");
    assert!(!generator.run(&[&prompt], 0, &mut |_| Ok(()), &|| true).unwrap());
}

// ---- sampling ---------------------------------------------------------------------------------------------

fn sampling(case: &Value) -> Sampling {
    let top_k = case["top_k"].as_u64().filter(|k| *k > 0).map(|k| k as usize);
    let number = |key: &str| case[key].as_f64().unwrap();
    Sampling { temperature: number("temperature"), top_k, top_p: number("top_p"), ..Sampling::GREEDY }
}

#[test]
fn what_can_be_drawn_has_the_probabilities_of_transformers() {
    for case in golden("sampling") {
        let numbers = |key: &str| -> Vec<f64> {
            case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let logits: Vec<f32> = numbers("logits").into_iter().map(|x| x as f32).collect();
        let weights = sampling(&case).weights(&logits);
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut found = vec![0.0; logits.len()];
        weights.iter().for_each(|(id, weight)| found[*id as usize] = weight / sum);
        for (id, (ours, theirs)) in found.iter().zip(numbers("probabilities")).enumerate() {
            assert_eq!(*ours > 0.0, theirs > 0.0, "token {id} of {case}");
            assert!((ours - theirs).abs() < 1e-6, "token {id}: {ours} {theirs} of {case}");
        }
        // The inverse of the distribution function: each token on its own stretch of [0, 1).
        let mut begin = 0.0;
        for (id, weight) in &weights {
            let middle = (begin + weight / 2.0) / sum;
            assert_eq!(sampling(&case).choose(&logits, middle), Some(*id));
            begin += weight;
        }
    }
}

#[test]
fn draws_are_even_and_depend_on_seed_row_and_place() {
    let logits = [1.0f32, 0.0, 2.0, f32::NEG_INFINITY];
    let plain = Sampling { temperature: 1.0, top_k: None, top_p: 1.0, ..Sampling::GREEDY };
    let mut counts = [0u32; 4];
    for place in 0..20_000 {
        counts[plain.choose(&logits, draw(7, 3, place)).unwrap() as usize] += 1;
    }
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l))).sum();
    for (count, logit) in counts.iter().zip(logits) {
        let expected = 20_000.0 * libm::exp(f64::from(logit)) / sum;
        assert!((f64::from(*count) - expected).abs() < 5.0 * 70.0, "{counts:?}");
    }
    assert_eq!(counts[3], 0);
    let draws = [draw(1, 0, 0), draw(2, 0, 0), draw(1, 1, 0), draw(1, 0, 1)];
    assert!((0..4).all(|i| (0..i).all(|j| draws[i] != draws[j])));
}

#[test]
fn the_likeliest_is_taken_and_nonsense_is_not() {
    let greedy = Sampling::GREEDY;
    assert_eq!(greedy.choose(&[0.0, 3.0, 3.0, -1.0], 0.9), Some(1));
    assert_eq!(greedy.choose(&[f32::NEG_INFINITY, -5.0], 0.0), Some(1));
    for bad in [vec![], vec![f32::NAN, 1.0], vec![1.0, f32::INFINITY], vec![f32::NEG_INFINITY]] {
        assert_eq!(greedy.choose(&bad, 0.5), None, "{bad:?}");
        assert_eq!(Sampling { temperature: 1.0, ..greedy }.choose(&bad, 0.5), None, "{bad:?}");
    }
}
