//! `merge`: the merged folder against the sum in f64, its losses against those of base and adapter, and what a
//! crash or a wrong adapter leaves behind.

use crate::common::{Lcg, scratch, tiny_model};
use qwentune::config::{Settings, Targets};
use qwentune::element::Element;
use qwentune::formats::peft::{self, Adapter, AdapterConfig, AdapterTensor};
use qwentune::formats::weight_map::{Tensor, WeightMap};
use qwentune::model::Spec;
use qwentune::report::jsonl::Line;
use qwentune::report::line::LogLine;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/train");

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<_> = std::fs::read_dir(CASES).unwrap().map(|e| e.unwrap().path()).collect();
    // An adapter on top of folded ones belongs to another base than the folder's.
    cases.retain(|case| !case.join("folded-0").exists());
    cases.sort();
    assert!(cases.len() >= 8);
    cases
}

fn merge(model: &Path, adapter: &Path, out: &Path, crash: Option<u32>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.arg("merge").arg("--model").arg(model).arg("--adapter").arg(adapter).arg(out);
    if let Some(at) = crash {
        command.env("QWENTUNE_CRASH_AT", format!("{at}/2"));
    }
    command.output().unwrap()
}

fn merged(model: &Path, adapter: &Path, out: &Path) {
    let output = merge(model, adapter, out, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let halves = || tensor.bytes().as_chunks::<2>().0.iter();
    match tensor.element {
        Element::F32 => tensor.bytes().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Element::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Element::Bf16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// Half a unit in the last place of the element type, relative; for f32 the sum's own rounding comes on top.
fn rounding(element: Element) -> f64 {
    match element {
        Element::F32 => 2f64.powi(-20),
        Element::F16 => 2f64.powi(-11) * 1.001,
        Element::Bf16 => 2f64.powi(-8) * 1.001,
    }
}

/// The matrices of one module, as PEFT names them.
fn matrices<'a>(adapter: &'a Adapter, weight: &str) -> Option<[&'a AdapterTensor; 2]> {
    let module = language_part(weight.strip_suffix(".weight")?);
    let find = |m| {
        let name = format!("base_model.model.{module}.lora_{m}.weight");
        adapter.tensors.iter().find(|t| t.name == name)
    };
    Some([find('A')?, find('B')?])
}

/// The name that a module of a model with towers has in the language part alone, which adapters are saved for.
fn language_part(module: &str) -> String {
    module.replacen("model.language_model.", "model.", 1)
}

fn check_matrix(name: &str, base: &Tensor, merged: &Tensor, [a, b]: [&AdapterTensor; 2], scale: f64) {
    let (base_values, new) = (values(base), values(merged));
    let [rows, cols] = [b.shape[0], a.shape[1]];
    let mut moved = 0;
    for i in 0..rows {
        for j in 0..cols {
            let product = |k| f64::from(b.values[i * b.shape[1] + k]) * f64::from(a.values[k * cols + j]);
            let sum: f64 = (0..a.shape[0]).map(product).sum();
            let (w, m) = (f64::from(base_values[i * cols + j]), f64::from(new[i * cols + j]));
            let want = w + scale * sum;
            // Below the normal numbers of f16 the step is 2^-24.
            let limit = rounding(base.element) * want.abs().max(w.abs()) + 2f64.powi(-25);
            assert!((m - want).abs() <= limit, "{name}[{i}, {j}]: {m} instead of {want}");
            moved += usize::from(m != w);
        }
    }
    assert!(moved > rows * cols / 100, "{name}: hardly anything was merged");
}

#[test]
fn every_family_is_the_sum_rounded_once_and_otherwise_the_base() {
    for case in cases() {
        let out = scratch("merge").join("out");
        let (model, folder) = (case.join("model"), case.join("final"));
        merged(&model, &folder, &out);
        let adapter = peft::read(&folder).unwrap();
        // Scales by layer are checked where patterns are.
        let read = qwentune::model::Adapter::read(&folder, &Spec::read(&model).unwrap()).unwrap();
        let scale = |weight: &str| {
            let slot = read.layout.slot(&language_part(weight.strip_suffix(".weight").unwrap()));
            f64::from(slot.unwrap().scale)
        };
        let (base, new) = (WeightMap::open(&model).unwrap(), WeightMap::open(&out).unwrap());
        assert_eq!(base.names(), new.names());
        let mut merged = 0;
        for name in base.names() {
            let (b, n) = (base.get(&name).unwrap(), new.get(&name).unwrap());
            assert_eq!((b.element, &b.shape, b.offset), (n.element, &n.shape, n.offset), "{name}");
            assert_eq!(b.file.path().file_name(), n.file.path().file_name(), "{name}");
            match matrices(&adapter, &name) {
                Some(pair) => check_matrix(&name, &b, &n, pair, scale(&name)),
                None => assert_eq!(b.bytes(), n.bytes(), "{name}"),
            }
            merged += usize::from(matrices(&adapter, &name).is_some());
        }
        assert_eq!(2 * merged, adapter.tensors.len());
        for entry in std::fs::read_dir(&model).unwrap() {
            let name = entry.unwrap().file_name();
            let same =
                || std::fs::read(model.join(&name)).unwrap() == std::fs::read(out.join(&name)).unwrap();
            let weights = name.to_str().unwrap().ends_with(".safetensors");
            assert!(out.join(&name).exists() && (weights || same()), "{name:?}");
        }
    }
}

/// The evaluation loss before the first step: of the base and the adapter it begins with, if any.
fn loss(model: &Path, adapter: Option<&Path>, rows: &Path, out: &Path) -> f64 {
    let settings = Settings {
        model: model.into(),
        train_files: vec![rows.into()],
        valid_file: Some(rows.into()),
        init_adapter: adapter.map(Path::to_owned),
        lora_target_modules: Targets::AllLinear,
        output_dir: out.into(),
        cache_dir: Some(out.join("cache")),
        eval_on_start: true,
        max_steps: Some(1),
        threads: Some(1),
        ..Settings::default()
    };
    crate::common::train(&settings).unwrap();
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    match Line::parse(text.lines().next().unwrap()).unwrap().logged {
        LogLine::Eval(line) => line.eval_loss,
        LogLine::Step(_) => panic!("no evaluation before the first step"),
    }
}

#[test]
fn the_merged_model_loses_what_base_and_adapter_lose() {
    for case in cases() {
        let here = scratch("merge-loss");
        let (model, adapter, rows) = (case.join("model"), case.join("final"), case.join("data.jsonl"));
        merged(&model, &adapter, &here.join("out"));
        let plain = loss(&model, None, &rows, &here.join("plain"));
        let apart = loss(&model, Some(&adapter), &rows, &here.join("apart"));
        let folded = loss(&here.join("out"), None, &rows, &here.join("folded"));
        let map = WeightMap::open(&model).unwrap();
        let element = map.get(&map.names()[0]).unwrap().element;
        // Roundings of the weights average out over a model: a tenth of one of them is left of the loss.
        let limit = rounding(element) / if element == Element::F32 { 1.0 } else { 10.0 };
        let difference = (folded - apart).abs() / apart;
        let name = case.file_name().unwrap().display();
        assert!(difference <= limit, "{name}: {folded} merged, {apart} apart, {difference:e}");
        assert!((plain - apart).abs() / apart > 20.0 * limit, "{name}: the adapter does nothing");
    }
}

/// An adapter of `modules` (with their shapes) of rank 2 whose values are all `value`.
fn write_adapter(folder: &Path, modules: &[(&str, [usize; 2])], value: f32) {
    let mut tensors = Vec::new();
    let mut names = Vec::new();
    for (module, [output, input]) in modules {
        for (matrix, shape) in [('A', [2, *input]), ('B', [*output, 2])] {
            let name = format!("base_model.model.{module}.lora_{matrix}.weight");
            let mut random = Lcg(3);
            let values = (0..shape[0] * shape[1]).map(|_| value * random.unit()).collect();
            tensors.push(AdapterTensor { name, shape, values });
        }
        names.push(module.rsplit('.').next().unwrap().to_owned());
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    names.sort();
    names.dedup();
    let config = AdapterConfig {
        r: 2,
        lora_alpha: 4.0,
        lora_dropout: 0.0,
        target_modules: Targets::Names(names),
        exclude_modules: None,
        use_rslora: false,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        layers_to_transform: None,
        base_model_name_or_path: String::new(),
    };
    peft::write(folder, &Adapter { config, tensors }).unwrap();
}

const O_PROJ: [(&str, [usize; 2]); 2] =
    [("model.layers.0.self_attn.o_proj", [32, 32]), ("model.layers.1.self_attn.o_proj", [32, 32])];

#[test]
fn killed_at_any_moment_it_leaves_nothing_or_all() {
    let here = scratch("merge-crash");
    let (model, adapter, out) = (here.join("model"), here.join("adapter"), here.join("out"));
    tiny_model(&model);
    std::fs::write(model.join("generation_config.json"), "{}").unwrap();
    std::fs::write(model.join("notes.bin"), "not carried over").unwrap();
    write_adapter(&adapter, &O_PROJ, 0.1);
    merged(&model, &adapter, &here.join("whole"));
    let whole = std::fs::read(here.join("whole/model.safetensors")).unwrap();
    assert!(!here.join("whole/notes.bin").exists());
    for at in 1.. {
        let output = merge(&model, &adapter, &out, Some(at));
        if out.exists() {
            assert_eq!(std::fs::read(out.join("model.safetensors")).unwrap(), whole);
            assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
            std::fs::remove_dir_all(&out).unwrap();
        }
        if output.status.success() {
            assert!(at > 10, "only {at} operations");
            break;
        }
    }
    let left: Vec<_> = std::fs::read_dir(&here).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().ends_with(".tmp")), "{left:?}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let here = scratch("merge-wrong");
    let model = here.join("model");
    tiny_model(&model);
    let fits = here.join("fits");
    write_adapter(&fits, &O_PROJ, 0.1);
    std::fs::create_dir_all(here.join("run")).unwrap();
    write_adapter(&here.join("run/adapter"), &O_PROJ, 0.1);
    write_adapter(&here.join("shape"), &[O_PROJ[0], ("model.layers.1.self_attn.o_proj", [32, 48])], 0.1);
    write_adapter(&here.join("missing"), &O_PROJ[..1], 0.1);
    write_adapter(&here.join("other"), &[("transformer.h.0.attn.c_attn", [96, 32])], 0.1);
    write_adapter(&here.join("huge"), &O_PROJ, 1e30);
    std::fs::create_dir_all(here.join("taken")).unwrap();
    std::fs::write(here.join("taken/file"), "").unwrap();
    for (adapter, out, code, says) in [
        ("shape", "out", 65, "lora_A.weight has shape [2, 48], expected [2, 32]"),
        ("missing", "out", 65, "model.layers.1.self_attn.o_proj.lora_A.weight is missing"),
        ("other", "out", 65, "does not fit the model: target modules that this model does not have: c_attn"),
        ("huge", "out", 65, "model.layers.0.self_attn.o_proj: 1024 elements leave the range"),
        ("run", "out", 65, "the adapter of this run is"),
        ("nowhere", "out", 65, "nowhere/adapter_config.json"),
        ("fits", "taken", 73, "taken is not empty"),
        ("fits", "taken/file", 73, "is there already and no folder"),
        ("fits", "..", 73, "is not empty"),
    ] {
        let output = merge(&model, &here.join(adapter), &here.join(out), None);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{adapter} {out}: {text}");
        assert!(text.contains(says) && text.lines().count() <= 2, "{adapter} {out}: {text}");
        assert!(!here.join("out").exists() && !here.join(".out.tmp").exists(), "{adapter} leaves something");
    }
    std::fs::create_dir_all(here.join("empty")).unwrap();
    merged(&model, &fits, &here.join("empty"));
}

/// The ends of what was trained on are the merged model's: those of its own file stay behind them.
#[test]
fn a_merged_model_ends_where_the_training_ends() {
    use qwentune::model::merge::merge;
    let case = Path::new(CASES).join("qwen2-mha-untied-f32");
    let spec = Spec::read(&case.join("model")).unwrap();
    let adapter = qwentune::model::Adapter::read(&case.join("final"), &spec).unwrap();
    let base = scratch("merge-ends-base");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(case.join("model").join(name), base.join(name)).unwrap();
    }
    let read = |folder: &Path, name: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let home = scratch("merge-ends-out");
    let merged = |name: &str, ends: &[u32]| {
        let out = home.join(name);
        (merge(&base, &spec, &adapter, ends, &out, &mut |_: &_| ()).unwrap().ends, out)
    };
    let (added, out) = merged("none", &[]);
    assert!(added.is_empty() && !out.join("generation_config.json").exists());
    assert_eq!(read(&out, "config.json"), read(&base, "config.json"));
    let (added, out) = merged("no-file", &[7]);
    assert_eq!(
        (added, read(&out, "generation_config.json")["eos_token_id"].to_string()),
        (vec![7], "[7]".into())
    );
    assert_eq!(read(&out, "config.json")["eos_token_id"].to_string(), "[7]");
    let generation = r#"{"eos_token_id": 3, "temperature": 0.7}"#;
    std::fs::write(base.join("generation_config.json"), generation).unwrap();
    let (added, out) = merged("one", &[3, 7]);
    let found = read(&out, "generation_config.json");
    assert_eq!(
        (added, found["eos_token_id"].to_string()),
        (vec![3, 7], "[7,3]".into()),
        "config.json had none"
    );
    assert_eq!(found["temperature"], 0.7);
    let (_, out) = merged("there", &[3]);
    assert_eq!(
        std::fs::read_to_string(out.join("generation_config.json")).unwrap(),
        generation,
        "byte for byte"
    );
}
