//! An adapter as a GGUF file: read back by the published format, values and factors as llama.cpp takes them.

use crate::common::{scratch, tiny_model, tiny_rows};
use qwentune::formats::peft;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn program(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(line.split_whitespace()).current_dir(folder).output().unwrap()
}

fn place(name: &str, flags: &str) -> PathBuf {
    let folder = scratch(&format!("gguf-{name}"));
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("train.jsonl"), 12, 1);
    let line = format!(
        "train --model model --train-file train.jsonl --output-dir run --cache-dir cache --max-steps 3 --threads 1 {flags}"
    );
    let output = program(&folder, &line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = program(&folder, "export run adapter.gguf --format gguf");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

/// A file read by the specification: texts and numbers by key, tensors by name with their dimensions, innermost first.
struct Gguf {
    texts: BTreeMap<String, String>,
    alpha: f32,
    tensors: BTreeMap<String, (Vec<u64>, Vec<f32>)>,
}

struct Bytes<'a>(&'a [u8], usize);

impl Bytes<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        self.1 += count;
        &self.0[self.1 - count..self.1]
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }
}

fn read(path: &Path) -> Gguf {
    let all = std::fs::read(path).unwrap();
    let mut bytes = Bytes(&all, 0);
    assert_eq!(bytes.take(4), b"GGUF");
    assert_eq!(bytes.u32(), 3);
    let (tensors, pairs) = (bytes.u64(), bytes.u64());
    let mut file = Gguf { texts: BTreeMap::new(), alpha: f32::NAN, tensors: BTreeMap::new() };
    for _ in 0..pairs {
        let key = bytes.text();
        match bytes.u32() {
            8 => drop(file.texts.insert(key, bytes.text())),
            6 => file.alpha = f32::from_bits(bytes.u32()),
            other => panic!("{key}: type {other}"),
        }
    }
    let infos: Vec<(String, Vec<u64>, u64)> = (0..tensors)
        .map(|_| {
            let name = bytes.text();
            let count = bytes.u32();
            let sizes = (0..count).map(|_| bytes.u64()).collect();
            assert_eq!(bytes.u32(), 0, "{name} is f32");
            (name, sizes, bytes.u64())
        })
        .collect();
    let start = bytes.1.next_multiple_of(32);
    for (name, sizes, offset) in infos {
        assert_eq!(offset % 32, 0);
        let at = start + offset as usize;
        let count = sizes.iter().product::<u64>() as usize;
        let values =
            all[at..at + 4 * count].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        file.tensors.insert(name, (sizes, values.collect()));
    }
    file
}

/// The factor of B·A is alpha of the file over the rank of the tensor; with B it must be what PEFT computes.
fn compare(folder: &Path, scale: impl Fn(&str, usize) -> f64) {
    let (ours, theirs) =
        (read(&folder.join("adapter.gguf")), peft::read(&folder.join("run/adapter")).unwrap());
    assert_eq!(ours.texts["general.architecture"], "qwen2");
    assert_eq!(ours.texts["general.type"], "adapter");
    assert_eq!(ours.texts["adapter.type"], "lora");
    assert_eq!(ours.tensors.len(), theirs.tensors.len());
    for tensor in &theirs.tensors {
        let (module, matrix) = peft::split_name(&tensor.name).unwrap();
        let parts: Vec<&str> = module.split('.').collect();
        let layer = match parts[4] {
            "q_proj" => "attn_q",
            "k_proj" => "attn_k",
            "v_proj" => "attn_v",
            "o_proj" => "attn_output",
            "gate_proj" => "ffn_gate",
            "up_proj" => "ffn_up",
            "down_proj" => "ffn_down",
            other => panic!("{other}"),
        };
        let name = format!("blk.{}.{layer}.weight.lora_{}", parts[2], matrix.to_ascii_lowercase());
        let (sizes, values) = &ours.tensors[&name];
        assert_eq!(sizes, &[tensor.shape[1] as u64, tensor.shape[0] as u64], "{name}");
        if matrix == 'A' {
            assert_eq!(values, &tensor.values, "{name}");
            continue;
        }
        let rank = tensor.shape[1];
        for (ours_b, theirs_b) in values.iter().zip(&tensor.values) {
            let got = f64::from(ours.alpha) / rank as f64 * f64::from(*ours_b);
            let wanted = scale(module, rank) * f64::from(*theirs_b);
            assert!((got - wanted).abs() <= 1e-6 * wanted.abs(), "{name}: {got} {wanted}");
        }
    }
}

#[test]
fn an_adapter_is_the_one_peft_reads() {
    let folder = place("plain", "--lora-r 4 --lora-alpha 6");
    compare(&folder, |_, _| 6.0 / 4.0);
    let again = program(&folder, "export run adapter.gguf --format gguf");
    assert_eq!(again.status.code(), Some(73), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn ranks_and_alphas_of_single_layers_are_in_b() {
    let folder = place(
        "patterns",
        "--lora-r 4 --use-rslora --lora-rank-pattern {\"q_proj\":2} --lora-alpha-pattern {\"up_proj\":3}",
    );
    compare(&folder, |module, rank| {
        let alpha = if module.ends_with("up_proj") { 3.0 } else { 8.0 };
        alpha / (rank as f64).sqrt()
    });
}
