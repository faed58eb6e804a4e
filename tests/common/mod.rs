//! Tiny models, data and runs for the tests.

use qwentune::config::{Settings, Strategy};
use qwentune::error::{Error, Result};
use qwentune::formats::safetensors::{F32Tensor, encode_f32};
use qwentune::report::event::Event;
use qwentune::train::{self, Control, Request, Summary};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder below the build folder, emptied, that stays for inspection after a failure.
pub fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Whether tests that try a sample try all: `QWENTUNE_FULL=1`.
pub fn full() -> bool {
    std::env::var_os("QWENTUNE_FULL").is_some()
}

/// A small linear congruential generator: test data only (Knuth's MMIX constants).
pub struct Lcg(pub u64);

impl Lcg {
    /// The next 32 random bits.
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f32 {
        self.next() as f32 / 2f32.powi(31) - 1.0
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
}

/// Writes a two-layer Qwen2-like model (hidden 32, 4 heads, 2 kv heads, vocabulary 64) with random weights.
pub fn tiny_model(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128,
        "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "float32",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![64, 32]), ("model.norm.weight".into(), vec![32])];
    for l in 0..2 {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{l}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[32]);
        add("post_attention_layernorm.weight", &[32]);
        for (name, rows) in [("q", 32), ("k", 16), ("v", 16)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, 32]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[32, 32]);
        add("mlp.gate_proj.weight", &[48, 32]);
        add("mlp.up_proj.weight", &[48, 32]);
        add("mlp.down_proj.weight", &[32, 48]);
    }
    let mut random = Lcg(7);
    let values: Vec<Vec<f32>> = shapes
        .iter()
        .map(|(name, shape)| {
            let norm = name.ends_with("norm.weight");
            (0..shape.iter().product()).map(|_| if norm { 1.0 } else { 0.0 } + 0.2 * random.unit()).collect()
        })
        .collect();
    let tensors: Vec<F32Tensor<'_>> =
        shapes.iter().zip(&values).map(|((name, shape), values)| F32Tensor { name, shape, values }).collect();
    std::fs::write(folder.join("model.safetensors"), encode_f32(&tensors)).unwrap();
}

/// Writes `count` pre-tokenised rows of 3 to 14 tokens.
pub fn tiny_rows(path: &Path, count: usize, seed: u64) {
    let mut random = Lcg(seed);
    let mut text = String::new();
    for _ in 0..count {
        let ids: Vec<usize> = (0..3 + random.below(12)).map(|_| random.below(64)).collect();
        text += &serde_json::json!({ "input_ids": ids }).to_string();
        text.push('\n');
    }
    std::fs::write(path, text).unwrap();
}

/// Settings of a small run in `folder` (model, data and output live there): 3 epochs of 11 rows, batches of
/// 2, accumulation 3, dropout 0.1.
pub fn tiny_settings(folder: &Path) -> Settings {
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("train.jsonl"), 11, 1);
    tiny_rows(&folder.join("dev.jsonl"), 4, 2);
    Settings {
        model: folder.join("model"),
        train_files: vec![folder.join("train.jsonl")],
        output_dir: folder.join("run"),
        cache_dir: Some(folder.join("cache")),
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 3,
        learning_rate: 5e-3,
        weight_decay: 0.1,
        lora_r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.1,
        save_strategy: Strategy::Steps,
        save_steps: 1.0,
        threads: Some(1),
        ..Settings::default()
    }
}

/// Runs to the end.
pub fn train(settings: &Settings) -> Result<Summary> {
    train_until(settings, |_| false)
}

/// Runs, asking for a stop at the first event `stop` says yes to.
pub fn train_until(settings: &Settings, stop: impl Fn(&Event) -> bool) -> Result<Summary> {
    let control = Control::default();
    let asker = control.clone();
    let mut observer = move |event: &Event| {
        if stop(event) {
            asker.request_stop();
        }
    };
    let request = Request { command_line: vec!["test".into()], ..Request::new(settings) };
    train::train(request, &control, &mut observer)
}

/// What must not depend on how often a run was interrupted: adapter, newest checkpoint, metrics without clock.
pub fn results(run: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut out = BTreeMap::new();
    let mut add = |name: &str, path: &Path| {
        out.insert(name.to_owned(), std::fs::read(path).map_err(|e| Error::reading(path, e))?);
        Ok::<(), Error>(())
    };
    add("adapter", &run.join("adapter/adapter_model.safetensors"))?;
    add("config", &run.join("adapter/adapter_config.json"))?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(run.join("checkpoints"))
        .map(|d| {
            d.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "qckpt")).collect()
        })
        .unwrap_or_default();
    files.sort();
    if let Some(newest) = files.last() {
        add(newest.file_name().unwrap().to_str().unwrap(), newest)?;
    }
    out.insert("metrics".into(), metrics_without_clock(run).into_bytes());
    Ok(out)
}

/// `metrics.jsonl` without its `seconds`.
pub fn metrics_without_clock(run: &Path) -> String {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
            value.remove("seconds");
            serde_json::to_string(&value).unwrap() + "\n"
        })
        .collect()
}

/// Names the first result that differs.
pub fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}: other files");
    for (name, bytes) in a {
        if bytes == &b[name] {
            continue;
        }
        if name == "metrics" {
            let (x, y) = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(&b[name]));
            panic!("{what}: metrics differ:\n{x}\n---\n{y}");
        }
        panic!("{what}: {name} differs");
    }
}

/// Checks that what is written of an adapter's configuration is what PEFT writes, and that what is left out is what
/// PEFT takes where it is not there.
pub fn assert_adapter_config(ours: &serde_json::Value, theirs: &serde_json::Value, name: &str) {
    use serde_json::json;
    for (key, value) in ours.as_object().unwrap() {
        assert_eq!(*value, theirs[key], "{name}: {key}");
    }
    let defaults = [json!(null), json!(false), json!({}), json!("megatron.core"), json!(16)];
    for (key, value) in theirs.as_object().unwrap() {
        let left_out = defaults.contains(value) || key == "peft_version";
        assert!(ours.get(key).is_some() || left_out, "{name}: {key} {value} is missing");
    }
}
