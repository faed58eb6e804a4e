//! Files that others wrote, or an attacker: what is read, what is refused and with which words.

use crate::scratch::{self, Scratch};
use qwentune::config::Targets;
use qwentune::element::Element;
use qwentune::error::Kind;
use qwentune::formats::safetensors::{F32Tensor, Header, Outline, encode_f32, encode_header, parse_header};
use qwentune::formats::{json, peft};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A file of this header and so many zero bytes.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> qwentune::error::Result<Header> {
    parse_header(Path::new("m.safetensors"), bytes, bytes.len() as u64)
}

fn refused(case: &str, result: qwentune::error::Result<impl std::fmt::Debug>, words: &[&str]) {
    let error = result.expect_err(case);
    assert_eq!(error.kind, Kind::Input, "{case}: {error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{case}: no {word:?} in {text:?}");
    }
    assert!(text.lines().count() <= 2 && text.len() < 1000, "{case}: {text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{case}: {text:?}");
}

// ---- safetensors ------------------------------------------------------------------------------------------

#[test]
fn hostile_headers_are_refused_by_rule() {
    let nine = "1,".repeat(9);
    let bomb = format!(r#"{{"a":{}"#, "[".repeat(200_000));
    let long = "n".repeat(513);
    let rows: Vec<(&str, String, usize, &[&str])> = vec![
        ("list", "[1]".into(), 0, &["m.safetensors", "'{'"]),
        ("leading space", " {}".into(), 0, &["'{'"]),
        ("cut JSON", r#"{"a":{"dtype":"F32""#.into(), 0, &["header, tensor a", "EOF"]),
        ("text after", "{} x".into(), 0, &["trailing"]),
        ("deep", bomb, 0, &["tensor a"]),
        ("twice", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["tensor a", "twice"]),
        ("metadata twice", r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, &["__metadata__", "twice"]),
        ("key twice in metadata", r#"{"__metadata__":{"k":"1","k":"2"}}"#.into(), 0, &["__metadata__", "\"k\"", "twice"]),
        ("metadata not text", r#"{"__metadata__":{"k":1}}"#.into(), 0, &["__metadata__"]),
        ("field twice", r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["tensor a", "dtype", "twice"]),
        ("unknown field", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#.into(), 1, &["tensor a", "`x`"]),
        ("no dtype", r#"{"a":{"shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["tensor a", "dtype"]),
        ("no shape", r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#.into(), 1, &["tensor a", "shape"]),
        ("no range", r#"{"a":{"dtype":"U8","shape":[1]}}"#.into(), 1, &["tensor a", "data_offsets"]),
        ("entry a list", r#"{"a":["U8",[1],[0,1]]}"#.into(), 1, &["tensor a"]),
        ("rank", format!(r#"{{"a":{{"dtype":"U8","shape":[{nine}1],"data_offsets":[0,1]}}}}"#), 1, &["tensor a", "8 dimensions"]),
        ("negative", r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#.into(), 1, &["tensor a", "-1"]),
        ("fraction", r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#.into(), 1, &["tensor a"]),
        ("dimension 0", r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.into(), 0, &["tensor a", "dimension of 0"]),
        ("0 hides overflow", r#"{"a":{"dtype":"U8","shape":[0,9223372036854775808,9223372036854775808],"data_offsets":[0,0]}}"#.into(), 0, &["tensor a", "dimension of 0"]),
        ("overflow", r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#.into(), 0, &["tensor a", "overflows"]),
        ("width overflows", r#"{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}"#.into(), 0, &["tensor a", "overflows"]),
        ("size", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.into(), 4, &["tensor a", "needs 8 bytes", "0..4"]),
        ("backwards", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.into(), 4, &["tensor a", "4..0"]),
        ("three offsets", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#.into(), 1, &["tensor a"]),
        ("far range", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#.into(), 1, &["tensor a", "too large"]),
        ("overlap", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#.into(), 3, &["tensor b", "overlaps"]),
        ("same bytes twice", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#.into(), 2, &["tensor b", "overlaps"]),
        ("hole", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#.into(), 3, &["tensor b", "hole"]),
        ("hole at the start", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#.into(), 2, &["tensor a", "hole"]),
        ("bytes after", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 2, &["after its last tensor"]),
        ("bytes missing", r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#.into(), 8, &["cut short"]),
        ("sub-byte dtype", r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#.into(), 1, &["tensor a", "dtype F4", "BF16"]),
        ("empty name", r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["name", "empty"]),
        ("long name", format!(r#"{{"{long}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), 1, &["512"]),
        ("NUL", r#"{"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["control"]),
        ("terminal escape", r#"{"a\u001b[2J":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["control"]),
        ("path", r#"{"../../etc/passwd":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1, &["path"]),
    ];
    for (case, header, data, words) in rows {
        refused(case, parse(&raw(&header, data)), words);
    }
    refused("not UTF-8", parse(&[&[5, 0, 0, 0, 0, 0, 0, 0][..], b"{\"\xff\":"].concat()), &["m.safetensors"]);
}

#[test]
fn wrong_lengths_are_refused_before_anything_is_allocated() {
    refused("empty", parse(&[]), &["0 bytes"]);
    refused("5 bytes", parse(&[1; 5]), &["5 bytes"]);
    let with_len = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    refused("u64::MAX", parse(&with_len(u64::MAX)), &["at most 16777216"]);
    refused("17 MiB", parse(&with_len(17 << 20)), &["at most 16777216"]);
    refused("beyond the file", parse(&with_len(3)), &["10 bytes", "needs 11"]);
    let shrunk = parse_header(Path::new("m.safetensors"), &with_len(100), 1 << 20);
    refused("became shorter", shrunk, &["shorter"]);
    assert!(parse(&with_len(2)).unwrap().tensors.is_empty());
}

#[test]
fn too_many_tensors_are_refused() {
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{n},{}]}}"#, n + 1);
    let header = |count: usize| format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
    assert_eq!(parse(&raw(&header(100_000), 100_000)).unwrap().others.len(), 100_000);
    refused("100001", parse(&raw(&header(100_001), 100_001)), &["100000 tensors"]);
}

/// Values that differ everywhere, from a small fixed generator.
fn values(count: usize, mut state: u32) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Name, dtype, shape and bytes.
type Found = (String, Dtype, Vec<usize>, Vec<u8>);

/// What the `safetensors` crate, the format's reference, makes of the file.
fn reference(bytes: &[u8]) -> Option<Vec<Found>> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let mut all: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Some(all)
}

fn ours(bytes: &[u8]) -> Option<Vec<Found>> {
    let dtype = |element| match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
    };
    let header = parse(bytes).ok()?;
    assert!(header.others.is_empty());
    let all = header.tensors.into_iter();
    Some(all.map(|(name, t)| (name, dtype(t.element), t.shape, bytes[t.bytes].to_vec())).collect())
}

#[test]
fn the_reference_implementation_reads_and_writes_the_same() {
    let shapes: [(&str, Vec<usize>); 4] =
        [("z", vec![3, 5]), ("a.b", vec![7]), ("m\"q\u{e9}", vec![1, 2, 3]), ("scalar", vec![])];
    let data: Vec<Vec<f32>> =
        shapes.iter().enumerate().map(|(i, (_, s))| values(s.iter().product(), i as u32)).collect();
    let tensors: Vec<F32Tensor<'_>> =
        shapes.iter().zip(&data).map(|((name, shape), values)| F32Tensor { name, shape, values }).collect();
    let written = encode_f32(&tensors);
    let raws: Vec<Vec<u8>> = data.iter().map(|d| le_bytes(d)).collect();
    let views = shapes
        .iter()
        .zip(&raws)
        .map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    assert_eq!(written, safetensors::serialize(views, Some(metadata)).unwrap());
    assert_eq!(reference(&written).unwrap(), ours(&written).unwrap());
    assert_eq!(parse(&written).unwrap().metadata["format"], "pt");
    let first = u64::from_le_bytes(written[..8].try_into().unwrap());
    assert_eq!(first % 8, 0);
    let mut reversed = tensors.clone();
    reversed.reverse();
    assert_eq!(encode_f32(&reversed), written);
}

#[test]
fn every_flipped_bit_of_a_header_is_refused_or_read_as_the_reference_does() {
    let outline = |name, element, shape| Outline { name, element, shape };
    let mut file = encode_header(&[
        outline("w", Element::Bf16, &[3, 2]),
        outline("b", Element::F16, &[2]),
        outline("n", Element::F32, &[2]),
    ]);
    let header = file.len();
    file.extend(0..(12 + 4 + 8));
    assert_eq!(reference(&file).unwrap(), ours(&file).unwrap());
    let mut accepted = 0;
    for bit in 0..header * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // Ours may refuse more, and accepts nothing that the reference reads differently.
        let Ok(parsed) = parse(&flipped) else { continue };
        accepted += 1;
        if parsed.others.is_empty() {
            assert_eq!(ours(&flipped), reference(&flipped), "bit {bit}");
        } else {
            assert!(reference(&flipped).is_some(), "bit {bit}");
        }
    }
    assert!(accepted > 0, "some flips change only a letter of a name");
    for length in 0..file.len() {
        assert!(parse(&file[..length]).is_err(), "cut to {length} bytes");
    }
}

// ---- JSON and atomic files --------------------------------------------------------------------------------

#[test]
fn json_is_strict() {
    let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    assert!(json::parse(deep(32).as_bytes()).is_ok());
    let rows = [
        (r#"{"a":1,"a":2}"#.to_owned(), "twice"),
        (r#"{"x":{"a":1,"b":2,"a":1}}"#.into(), "twice"),
        (deep(33), "32 deep"),
        (deep(100_000), "32 deep"),
        ("{} {}".into(), "trailing"),
        ("NaN".into(), "expected"),
        ("1e999".into(), "out of range"),
        ("".into(), "EOF"),
    ];
    for (text, word) in rows {
        let error = json::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(word), "{word:?} not in {error:?}");
    }
    let folder = scratch::folder();
    refused("list", json::read_object(&folder.file("a.json", "[]"), 9), &["a.json", "not a JSON object"]);
    refused("large", json::read_object(&folder.file("b.json", "{\"a\":10000}"), 9), &["b.json", "9 bytes"]);
    refused("missing", json::read_object(&folder.join("c.json"), 9), &["c.json"]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut all: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

// ---- PEFT folders -----------------------------------------------------------------------------------------

const MODULE: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn adapter() -> peft::Adapter {
    let tensor = |matrix: &str, shape: [usize; 2]| peft::AdapterTensor {
        name: format!("{MODULE}.lora_{matrix}.weight"),
        shape,
        values: values(shape[0] * shape[1], 7),
    };
    peft::Adapter {
        config: peft::AdapterConfig {
            r: 2,
            lora_alpha: 4.0,
            lora_dropout: 0.05,
            target_modules: Targets::Names(vec!["q_proj".into()]),
            base_model_name_or_path: "模型/a".into(),
            ..peft::AdapterConfig::default()
        },
        tensors: vec![tensor("A", [2, 6]), tensor("B", [8, 2])],
    }
}

/// A written adapter whose config has `key` set to the JSON `value`; an empty value removes the key.
fn with_key(key: &str, value: &str) -> Scratch {
    let folder = scratch::folder();
    peft::write(folder.path(), &adapter()).unwrap();
    let mut config = json::read_object(&folder.join("adapter_config.json"), 1 << 20).unwrap();
    if value.is_empty() {
        config.remove(key).unwrap();
    } else {
        config.insert(key.into(), json::parse(value.as_bytes()).unwrap());
    }
    folder.file("adapter_config.json", serde_json::Value::Object(config).to_string());
    folder
}

#[test]
fn adapter_configs_fail_closed() {
    let rows: &[(&str, &str, &[&str])] = &[
        ("r", "0", &["r is 0", "4096"]),
        ("r", "2147483648", &["r is 2147483648"]),
        ("r", "-1", &["r is -1"]),
        ("r", "8.5", &["r is 8.5"]),
        ("r", "true", &["r is true"]),
        ("r", "null", &["r is missing"]),
        ("r", "", &["r is missing"]),
        ("lora_alpha", "0", &["lora_alpha is 0"]),
        ("lora_alpha", "1e300", &["lora_alpha"]),
        ("lora_alpha", "\"16\"", &["lora_alpha"]),
        ("lora_alpha", "", &["lora_alpha is missing"]),
        ("lora_dropout", "1.5", &["lora_dropout is 1.5"]),
        ("lora_dropout", "1", &["lora_dropout"]),
        ("peft_type", "\"IA3\"", &["peft_type \"IA3\"", "LORA"]),
        ("peft_type", "", &["peft_type is missing"]),
        ("task_type", "\"SEQ_CLS\"", &["task_type"]),
        ("bias", "\"all\"", &["bias \"all\""]),
        ("use_rslora", "1", &["use_rslora"]),
        ("use_dora", "true", &["use_dora true is not supported"]),
        ("fan_in_fan_out", "true", &["fan_in_fan_out"]),
        ("modules_to_save", "[\"lm_head\"]", &["modules_to_save", "lm_head"]),
        ("rank_pattern", "{\"q_proj\":0}", &["rank_pattern gives q_proj 0", "4096"]),
        ("rank_pattern", "{\"q_proj\":\"4\"}", &["rank_pattern gives q_proj \"4\""]),
        ("rank_pattern", "[4]", &["rank_pattern is [4]"]),
        ("alpha_pattern", "{\"q_proj\":-4}", &["alpha_pattern gives q_proj -4"]),
        ("layers_to_transform", "[0.5]", &["layers_to_transform is [0.5]"]),
        ("layers_to_transform", "\"0\"", &["layers_to_transform"]),
        ("layers_pattern", "\"blocks\"", &["layers_pattern \"blocks\"", "remove the key"]),
        ("exclude_modules", "7", &["exclude_modules is 7"]),
        ("exclude_modules", "[3]", &["exclude_modules holds 3"]),
        ("target_parameters", "[\"x\"]", &["target_parameters", "merge"]),
        ("lora_bias", "true", &["lora_bias true", "merge"]),
        ("loftq_config", "{\"bits\":4}", &["loftq_config"]),
        ("init_lora_weights", "\"pissa\"", &["init_lora_weights \"pissa\"", "base"]),
        ("some_new_method", "{\"on\":true}", &["some_new_method"]),
        ("trainable_token_indices", "[1]", &["trainable_token_indices"]),
        ("target_modules", "7", &["target_modules is 7", "list"]),
        ("target_modules", "[]", &["target_modules"]),
        ("target_modules", "[1]", &["target_modules"]),
        ("target_modules", "", &["target_modules is missing"]),
        ("base_model_name_or_path", "[]", &["base_model_name_or_path"]),
    ];
    for (key, value, words) in rows {
        refused(&format!("{key} = {value}"), peft::read(with_key(key, value).path()), words);
    }
    let accepted = [
        ("peft_version", "\"9.9.9\""),
        ("revision", "\"main\""),
        ("task_type", "null"),
        ("init_lora_weights", "\"gaussian\""),
        ("some_new_config", "null"),
        ("some_new_switch", "false"),
        ("inference_mode", "false"),
        ("lora_dropout", ""),
        ("layers_to_transform", "[]"),
        ("layers_pattern", "[\"layers\"]"),
        ("base_model_name_or_path", "\"../../etc/passwd\""),
        ("base_model_name_or_path", &format!("\"{}\"", "x".repeat(100_000))),
    ];
    for (key, value) in accepted {
        let folder = with_key(key, value);
        peft::read(folder.path()).unwrap_or_else(|e| panic!("{key} = {value}: {e}"));
    }
    let all = peft::read(with_key("target_modules", "\"all-linear\"").path()).unwrap();
    assert_eq!(all.config.target_modules, Targets::AllLinear);
    let pattern = peft::read(with_key("target_modules", "\".*q_proj\"").path()).unwrap();
    assert_eq!(pattern.config.target_modules, Targets::Pattern(".*q_proj".into()));
    let excluded = peft::read(with_key("exclude_modules", "[\"q_proj\"]").path()).unwrap();
    assert_eq!(excluded.config.exclude_modules, Some(Targets::Names(vec!["q_proj".into()])));
    let layers = peft::read(with_key("layers_to_transform", "[2, 0, 2]").path()).unwrap();
    assert_eq!(layers.config.layers_to_transform, Some(vec![0, 2]));
    let layers = peft::read(with_key("layers_to_transform", "1").path()).unwrap();
    assert_eq!(layers.config.layers_to_transform, Some(vec![1]));
    let ranks = peft::read(with_key("rank_pattern", "{\"q_proj\":2}").path()).unwrap();
    assert_eq!(ranks.config.rank_pattern, BTreeMap::from([("q_proj".into(), 2)]));
    let rslora = peft::read(with_key("use_rslora", "true").path()).unwrap();
    assert!(rslora.config.use_rslora);
}

#[test]
fn adapter_tensors_are_checked() {
    let (one, two) = ([1.0_f32; 12], [1.0_f32; 16]);
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let (a, b) = (format!("{MODULE}.lora_A.weight"), format!("{MODULE}.lora_B.weight"));
    let magnitude = format!("{MODULE}.lora_magnitude_vector");
    let good = F32Tensor { name: &b, shape: &[8, 2], values: &two };
    let tensor = |name, shape, values| F32Tensor { name, shape, values };
    let rows: &[(&str, Vec<F32Tensor<'_>>, &[&str])] = &[
        ("no tensors", vec![], &["no tensors"]),
        ("no A", vec![good], &["lora_B", "no lora_A"]),
        ("no B", vec![tensor(&a, &[2, 6], &one)], &["lora_A", "no lora_B"]),
        ("rank of A", vec![tensor(&a, &[3, 4], &one), good], &["lora_A", "[3, 4]", "2 rows"]),
        ("rank of B", vec![tensor(&a, &[2, 6], &one), tensor(&b, &[4, 4], &two)], &["lora_B", "2 columns"]),
        ("vector", vec![tensor(&a, &[12], &one), good], &["lora_A", "matrix"]),
        ("NaN", vec![tensor(&a, &[2, 6], &bad), good], &["lora_A", "3 elements"]),
        ("DoRA", vec![tensor(&a, &[2, 6], &one), good, tensor(&magnitude, &[12], &one)], &["DoRA"]),
        ("other name", vec![tensor("model.q_proj.lora_A.weight", &[2, 6], &one)], &["not named like"]),
        ("embedding", vec![tensor("base_model.model.x.lora_embedding_A", &[2, 6], &one)], &["embeddings"]),
    ];
    for (case, tensors, words) in rows {
        let folder = scratch::folder();
        peft::write(folder.path(), &adapter()).unwrap();
        folder.file("adapter_model.safetensors", encode_f32(tensors));
        refused(case, peft::read(folder.path()), words);
    }
    let folder = scratch::folder();
    peft::write(folder.path(), &adapter()).unwrap();
    std::fs::rename(folder.join("adapter_model.safetensors"), folder.join("adapter_model.bin")).unwrap();
    refused(".bin", peft::read(folder.path()), &["adapter_model.bin", "not a zip archive"]);
    refused("no folder", peft::read(&folder.join("none")), &["adapter_config.json"]);
}

#[test]
fn adapters_in_half_precision_are_widened_exactly() {
    let folder = scratch::folder();
    peft::write(folder.path(), &adapter()).unwrap();
    let (a, b) = (format!("{MODULE}.lora_A.weight"), format!("{MODULE}.lora_B.weight"));
    let mut file = encode_header(&[
        Outline { name: &a, element: Element::Bf16, shape: &[2, 1] },
        Outline { name: &b, element: Element::F16, shape: &[1, 2] },
    ]);
    for value in [1.5_f32, -0.0078125] {
        file.extend(half::bf16::from_f32(value).to_le_bytes());
    }
    for value in [65504.0_f32, 5.9604645e-8] {
        file.extend(half::f16::from_f32(value).to_le_bytes());
    }
    folder.file("adapter_model.safetensors", file);
    let read = peft::read(folder.path()).unwrap();
    assert_eq!(read.tensors[0].values, [1.5, -0.0078125]);
    assert_eq!(read.tensors[1].values, [65504.0, 5.9604645e-8]);
}

#[test]
fn adapter_bytes_depend_on_the_adapter_alone() {
    let (one, two) = (scratch::folder(), scratch::folder());
    peft::write(one.path(), &adapter()).unwrap();
    peft::write(&two.join("deeper/adapter"), &adapter()).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let other = std::fs::read(two.join("deeper/adapter").join(file)).unwrap();
        assert_eq!(std::fs::read(one.join(file)).unwrap(), other, "{file}");
    }
    assert_eq!(names(one.path()), ["adapter_config.json", "adapter_model.safetensors"]);
    let text = std::fs::read_to_string(one.join("adapter_config.json")).unwrap();
    assert!(text.is_ascii() && text.contains(r#""base_model_name_or_path": "\u6a21\u578b/a""#), "{text}");
    assert_eq!(peft::read(one.path()).unwrap(), adapter());
}
