//! Weights stored in codes with scales: training on them is training on the values they stand for, to the bit.

use super::common::{assert_same, results, scratch, tiny_rows, tiny_settings, train, train_until};
use qwentune::config::{CpuIsa, Dtype, ResumeFrom, Settings};
use qwentune::device::Matrix;
use qwentune::encoding::{BLOCK, Encoding, Scales};
use qwentune::error::Kind;
use qwentune::report::event::Event;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Hidden and inner size of the model of these tests: more than a block, and not whole blocks.
const HIDDEN: usize = 144;
const INNER: usize = 200;

/// The value of a float8 code, from its definition: OCP 8-bit Floating Point Specification, revision 1.0, table 2.
fn value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code & 0x7f == 0x7f {
        f64::NAN
    } else if code < 128 {
        magnitude
    } else {
        -magnitude
    }
}

#[test]
fn every_code_has_its_value_and_its_blocks_scale() {
    let (rows, cols) = (130, 300);
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 251) as u8).collect();
    let scales: Vec<f32> = (0..6).map(|i| 0.37 + i as f32).collect();
    let encoding = Encoding::E4m3(Arc::new(Scales::new(scales.clone(), rows, cols)));
    let matrix = Matrix::encoded(Arc::new(codes.clone()), 0, encoding, rows, cols);
    let expected = |row: usize, col: usize| {
        value(codes[row * cols + col]) as f32 * scales[row / BLOCK * 3 + col / BLOCK]
    };
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    let mut row = vec![0.0; cols];
    for r in 0..rows {
        matrix.read_row(r, &mut row);
        assert!(row.iter().enumerate().all(|(c, v)| same(*v, expected(r, c))), "row {r}");
    }
    // A part that begins inside a block, of rows that begin inside one, and a span over the ends of rows.
    let mut part = vec![0.0; 150];
    matrix.row_range(100, 30).read_part(29, 101, &mut part);
    assert!(part.iter().enumerate().all(|(i, v)| same(*v, expected(129, 101 + i))));
    let mut span = vec![0.0; 2 * cols];
    matrix.read_span(127 * cols + 5, &mut span);
    assert!(span.iter().enumerate().all(|(i, v)| {
        let at = 127 * cols + 5 + i;
        same(*v, expected(at / cols, at % cols))
    }));
}

struct Tensors {
    header: serde_json::Map<String, Value>,
    bytes: Vec<u8>,
}

impl Tensors {
    fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let range = [self.bytes.len(), self.bytes.len() + bytes.len()];
        self.header.insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": range }));
        self.bytes.extend(bytes);
    }

    fn write(&self, folder: &Path) {
        let header = Value::Object(self.header.clone()).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &self.bytes].concat();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
    }
}

/// Two folders of one model: its layers in float8 codes with scales, and in the f32 values they stand for.
fn models(coded: &Path, plain: &Path) {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let (mut codes, mut values) = (
        Tensors { header: serde_json::Map::new(), bytes: Vec::new() },
        Tensors { header: serde_json::Map::new(), bytes: Vec::new() },
    );
    let mut matrix = |name: String, rows: usize, cols: usize| {
        // Exponents up to 2^1, so that weights of these scales are about 1 / 30.
        let bytes: Vec<u8> =
            (0..rows * cols).map(|_| (next() % 64) as u8 | ((next() % 2) << 7) as u8).collect();
        let [down, across] = Scales::shape(rows, cols);
        let scales: Vec<half::bf16> =
            (0..down * across).map(|_| half::bf16::from_f32(0.02 + (next() % 1000) as f32 / 5e4)).collect();
        let wide = (0..rows * cols).flat_map(|i| {
            let scale = scales[i / cols / BLOCK * across + i % cols / BLOCK].to_f32();
            (value(bytes[i]) as f32 * scale).to_le_bytes()
        });
        values.add(&name, "F32", &[rows, cols], &wide.collect::<Vec<u8>>());
        codes.add(&name, "F8_E4M3", &[rows, cols], &bytes);
        let scales: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        codes.add(&format!("{name}_scale_inv"), "BF16", &[down, across], &scales);
    };
    for layer in 0..2 {
        let of = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for (part, rows) in [("q", 128), ("k", 64), ("v", 64)] {
            matrix(of(&format!("self_attn.{part}_proj")), rows, HIDDEN);
        }
        matrix(of("self_attn.o_proj"), HIDDEN, 128);
        matrix(of("mlp.gate_proj"), INNER, HIDDEN);
        matrix(of("mlp.up_proj"), INNER, HIDDEN);
        matrix(of("mlp.down_proj"), HIDDEN, INNER);
    }
    let mut plain_tensor = |name: &str, shape: &[usize], norm: bool| {
        let count = shape.iter().product::<usize>();
        let values_of =
            (0..count).map(|_| if norm { 1.0 } else { 0.0 } + (next() % 200) as f32 / 1000.0 - 0.1);
        let bytes: Vec<u8> = values_of.flat_map(f32::to_le_bytes).collect();
        codes.add(name, "F32", shape, &bytes);
        values.add(name, "F32", shape, &bytes);
    };
    plain_tensor("model.embed_tokens.weight", &[64, HIDDEN], false);
    plain_tensor("model.norm.weight", &[HIDDEN], true);
    for layer in 0..2 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            plain_tensor(&format!("model.layers.{layer}.{norm}.weight"), &[HIDDEN], true);
        }
        for norm in ["q_norm", "k_norm"] {
            plain_tensor(&format!("model.layers.{layer}.self_attn.{norm}.weight"), &[32], true);
        }
    }
    let mut config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32,
        "num_key_value_heads": 2, "vocab_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    for (folder, tensors) in [(plain, &values), (coded, &codes)] {
        std::fs::create_dir_all(folder).unwrap();
        tensors.write(folder);
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        config["quantization_config"] = json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"],
        });
    }
}

/// What a run leaves, but for what names its base.
fn adapter(settings: &Settings) -> Vec<u8> {
    train(settings).unwrap();
    std::fs::read(settings.output_dir.join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn training_on_codes_is_training_on_their_values() {
    let folder = scratch("encodings-train");
    let settings = Settings { max_steps: Some(3), ..tiny_settings(&folder) };
    models(&folder.join("coded"), &folder.join("plain"));
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let on = |model: &str, threads: usize, cpu_isa: CpuIsa| {
            let name = format!("{model}-{dtype:?}-{threads}-{cpu_isa:?}");
            adapter(&Settings {
                model: folder.join(model),
                output_dir: folder.join(name),
                threads: Some(threads),
                dtype,
                cpu_isa,
                ..settings.clone()
            })
        };
        let expected = on("plain", 1, CpuIsa::Auto);
        assert_eq!(on("coded", 1, CpuIsa::Auto), expected, "{dtype:?}");
        assert_eq!(on("coded", 2, CpuIsa::Portable), expected, "{dtype:?}");
    }
}

#[test]
fn a_run_on_codes_stops_and_goes_on_to_the_same_bytes() {
    let folder = scratch("encodings-resume");
    let settings = Settings { max_steps: Some(4), ..tiny_settings(&folder) };
    models(&folder.join("coded"), &folder.join("plain"));
    let settings = Settings { model: folder.join("coded"), ..settings };
    train(&settings).unwrap();
    let whole = results(&settings.output_dir).unwrap();
    let second = Settings { output_dir: folder.join("second"), ..settings };
    let stopped = train_until(&second, |event| matches!(event, Event::Step { .. })).unwrap_err();
    assert_eq!(stopped.kind, Kind::Stopped, "{stopped}");
    train(&Settings { resume_from_checkpoint: Some(ResumeFrom::Auto), ..second.clone() }).unwrap();
    assert_same(&whole, &results(&second.output_dir).unwrap(), "stopped after a step");
}

#[test]
fn codes_without_their_scales_are_refused_by_name() {
    let folder = scratch("encodings-refused");
    models(&folder.join("coded"), &folder.join("plain"));
    tiny_rows(&folder.join("train.jsonl"), 4, 1);
    let file = std::fs::read(folder.join("coded/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header = String::from_utf8(file[8..8 + length].to_vec()).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.join("coded/config.json")).unwrap()).unwrap();
    let broken = |what: &str, header: String, data: &[u8], config: Value| {
        let model = folder.join(what);
        std::fs::create_dir_all(&model).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        std::fs::write(model.join("model.safetensors"), bytes).unwrap();
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
        let settings = Settings {
            model,
            train_files: vec![folder.join("train.jsonl")],
            output_dir: folder.join(format!("{what}-run")),
            max_steps: Some(1),
            ..Settings::default()
        };
        let error = train(&settings).expect_err(what);
        assert_eq!(error.kind, Kind::Input, "{what}: {error}");
        error.to_string()
    };
    let data = &file[8 + length..];
    let q = "model.layers.1.self_attn.q_proj.weight";
    let missing = header.replace(&format!("{q}_scale_inv"), &format!("{q}_scale_lost"));
    assert!(broken("missing", missing, data, config.clone()).contains(&format!("{q}_scale_inv is missing")));
    let other = header.replacen("F8_E4M3", "F8_E5M2", 1);
    assert!(broken("dtype", other, data, config.clone()).contains("F8_E5M2"));
    let mut not_number = data.to_vec();
    not_number[3] = 0xff;
    assert!(broken("nan", header.clone(), &not_number, config.clone()).contains("1 elements that are NaN"));
    for (key, value) in [
        ("quant_method", json!("awq")),
        ("weight_block_size", json!([64, 64])),
        ("activation_scheme", json!("static")),
        ("fmt", json!("e5m2")),
        ("scale_fmt", json!("ue8m0")),
    ] {
        let mut config = config.clone();
        config["quantization_config"][key] = value;
        let error = broken(key, header.clone(), data, config);
        assert!(error.contains("quantization_config") && error.contains(key), "{error}");
    }
}
