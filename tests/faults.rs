//! Wrong inputs and broken folders, end to end: each row breaks one thing and names the exit status and the
//! words the message must hold. Nothing already saved may be lost, and no message is a backtrace.

use crate::common::{scratch, tiny_model, tiny_rows};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A tiny run's folder: model, data, output.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let folder = scratch(&format!("fault-{}", name.replace(' ', "-")));
        tiny_model(&folder.join("model"));
        tiny_rows(&folder.join("train.jsonl"), 11, 1);
        Place(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn newest(&self) -> PathBuf {
        let entries = std::fs::read_dir(self.path("run/checkpoints")).unwrap();
        let files =
            entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|x| x == "qckpt"));
        files.max().expect("a checkpoint")
    }

    /// Edits a JSON file.
    fn edit(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.path(name);
        let mut value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
    }

    fn qwentune(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_qwentune")).args(args).current_dir(&self.0).output().unwrap()
    }

    /// `train` on the tiny run with more flags.
    fn train(&self, more: &[&str]) -> Output {
        let fixed = "train --model model --train-file train.jsonl --output-dir run --cache-dir cache --lora-r 2 \
                     --per-device-train-batch-size 2 --max-steps 6 --save-steps 2 --threads 1";
        let args: Vec<&str> = fixed.split_whitespace().chain(more.iter().copied()).collect();
        self.qwentune(&args)
    }

    fn trained(&self) {
        let output = self.train(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Status and text of what was run; no message is a backtrace.
fn expect(row: &str, output: &Output, code: i32, words: &[&str]) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert_eq!(output.status.code(), Some(code), "{row}: {text}");
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{row}: {text}");
    for word in words {
        assert!(text.contains(word), "{row}: no {word:?} in: {text}");
    }
}

/// Overwrites one byte from the end of a file with its complement.
fn flip(path: &Path, from_end: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

/// What is done to the fresh folder, and what `train` must answer.
struct Row {
    name: &'static str,
    break_it: fn(&Place),
    flags: &'static [&'static str],
    code: i32,
    words: &'static [&'static str],
}

fn shape(place: &Place, key: &str, value: serde_json::Value) {
    place.edit("model/config.json", |c| c[key] = value);
}

const NEW_RUN: &[Row] = &[
    Row {
        name: "no model folder",
        break_it: |p| std::fs::remove_dir_all(p.path("model")).unwrap(),
        flags: &[],
        code: 65,
        words: &["model"],
    },
    Row {
        name: "model file cut short",
        break_it: |p| {
            let path = p.path("model/model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        },
        flags: &[],
        code: 65,
        words: &["model.safetensors"],
    },
    Row {
        name: "header length of all ones",
        break_it: |p| {
            let path = p.path("model/model.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[..8].fill(0xff);
            std::fs::write(&path, bytes).unwrap();
        },
        flags: &[],
        code: 65,
        words: &["model.safetensors", "header"],
    },
    Row {
        name: "not a number in the base",
        break_it: |p| {
            let path = p.path("model/model.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
        },
        flags: &[],
        code: 65,
        words: &["NaN"],
    },
    Row {
        name: "hidden size of zero",
        break_it: |p| shape(p, "hidden_size", 0.into()),
        flags: &[],
        code: 65,
        words: &["config.json", "hidden_size"],
    },
    Row {
        name: "heads that do not divide",
        break_it: |p| shape(p, "num_key_value_heads", 3.into()),
        flags: &[],
        code: 65,
        words: &["config.json", "num_key_value_heads"],
    },
    Row {
        name: "more layers than tensors",
        break_it: |p| shape(p, "num_hidden_layers", 3.into()),
        flags: &[],
        code: 65,
        words: &["model.layers.2"],
    },
    Row {
        name: "sliding window",
        break_it: |p| shape(p, "use_sliding_window", true.into()),
        flags: &[],
        code: 65,
        words: &["sliding"],
    },
    Row {
        name: "mixture of experts",
        break_it: |p| shape(p, "model_type", "qwen3_moe".into()),
        flags: &[],
        code: 65,
        words: &["qwen3_moe"],
    },
    Row {
        name: "empty data",
        break_it: |p| std::fs::write(p.path("train.jsonl"), "").unwrap(),
        flags: &[],
        code: 65,
        words: &["train.jsonl"],
    },
    Row {
        name: "bad row",
        break_it: |p| std::fs::write(p.path("train.jsonl"), "{\"input_ids\": [1, 2]}\n{oops}\n").unwrap(),
        flags: &[],
        code: 65,
        words: &["train.jsonl:2"],
    },
    Row {
        name: "token beyond the vocabulary",
        break_it: |p| std::fs::write(p.path("train.jsonl"), "{\"input_ids\": [1, 64]}\n").unwrap(),
        flags: &[],
        code: 65,
        words: &["train.jsonl:1", "64"],
    },
    Row {
        name: "invalid UTF-8",
        break_it: |p| std::fs::write(p.path("train.jsonl"), b"{\"text\": \"\xff\"}\n").unwrap(),
        flags: &[],
        code: 65,
        words: &["train.jsonl:1", "UTF-8"],
    },
    Row {
        name: "compressed data",
        break_it: |p| std::fs::write(p.path("train.jsonl"), [0x1f, 0x8b, 8, 0, 0]).unwrap(),
        flags: &[],
        code: 65,
        words: &["gzip"],
    },
    Row {
        name: "unknown flag",
        break_it: |_| (),
        flags: &["--learnin-rate", "1"],
        code: 2,
        words: &["learning"],
    },
    Row {
        name: "no such target",
        break_it: |_| (),
        flags: &["--lora-target-modules", "c_attn"],
        code: 2,
        words: &["c_attn", "q_proj"],
    },
    Row { name: "rank of zero", break_it: |_| (), flags: &["--lora-r", "0"], code: 2, words: &["lora_r"] },
    Row {
        name: "diverging",
        break_it: |_| (),
        flags: &["--learning-rate", "1e30", "--shuffle", "false"],
        code: 79,
        words: &["step"],
    },
    Row {
        name: "no GPU",
        break_it: |_| (),
        flags: &["--device", "cuda"],
        code: 69,
        words: &["--device cpu"],
    },
    Row {
        name: "f32 on a GPU",
        break_it: |_| (),
        flags: &["--device", "cuda", "--dtype", "f32"],
        code: 2,
        words: &["bf16"],
    },
    Row {
        name: "output below a file",
        break_it: |p| std::fs::write(p.path("run"), "a file").unwrap(),
        flags: &[],
        code: 73,
        words: &["run"],
    },
];

#[test]
fn a_wrong_input_has_its_exit_status_and_message() {
    for row in NEW_RUN {
        let place = Place::new(row.name);
        (row.break_it)(&place);
        expect(row.name, &place.train(row.flags), row.code, row.words);
    }
}

const RESUMED: &[Row] = &[
    Row {
        name: "training again into the same folder",
        break_it: |_| (),
        flags: &[],
        code: 73,
        words: &["qwentune resume", "--overwrite-output-dir"],
    },
    Row {
        name: "one more row",
        break_it: |p| tiny_rows(&p.path("train.jsonl"), 12, 1),
        flags: &["--resume-from-checkpoint", "auto"],
        code: 76,
        words: &["data."],
    },
    Row {
        name: "other learning rate",
        break_it: |_| (),
        flags: &["--resume-from-checkpoint", "auto", "--learning-rate", "5e-3"],
        code: 76,
        words: &["learning_rate", "0.005"],
    },
    Row {
        name: "other seed",
        break_it: |_| (),
        flags: &["--resume-from-checkpoint", "auto", "--seed", "7"],
        code: 76,
        words: &["seed"],
    },
    Row {
        name: "other accumulation",
        break_it: |_| (),
        flags: &["--resume-from-checkpoint", "auto", "--gradient-accumulation-steps", "2"],
        code: 76,
        words: &["gradient_accumulation_steps"],
    },
    Row {
        name: "other base",
        break_it: |p| flip(&p.path("model/model.safetensors"), 4),
        flags: &["--resume-from-checkpoint", "auto"],
        code: 76,
        words: &["model.safetensors"],
    },
    Row {
        name: "finished",
        break_it: |_| (),
        flags: &["--resume-from-checkpoint", "auto"],
        code: 0,
        words: &["training complete at step 6", "--max-steps"],
    },
    Row {
        name: "a step that is not there",
        break_it: |_| (),
        flags: &["--resume-from-checkpoint", "5"],
        code: 65,
        words: &["step-00000005"],
    },
    Row {
        name: "newest damaged",
        break_it: |p| flip(&p.newest(), 5000),
        flags: &["--resume-from-checkpoint", "auto"],
        code: 0,
        words: &["step-00000006", "resumed at step"],
    },
    Row {
        name: "newest cut short",
        break_it: |p| {
            let bytes = std::fs::read(p.newest()).unwrap();
            std::fs::write(p.newest(), &bytes[..bytes.len() / 2]).unwrap();
        },
        flags: &["--resume-from-checkpoint", "auto"],
        code: 0,
        words: &["step-00000006", "resumed at step"],
    },
    Row {
        name: "all damaged",
        break_it: |p| {
            for entry in std::fs::read_dir(p.path("run/checkpoints")).unwrap() {
                flip(&entry.unwrap().path(), 20);
            }
        },
        flags: &["--resume-from-checkpoint", "auto"],
        code: 65,
        words: &["no usable checkpoint"],
    },
    Row {
        name: "extended",
        break_it: |_| (),
        flags: &["--resume-from-checkpoint", "auto", "--max-steps", "8"],
        code: 0,
        words: &["resumed at step 6 of 8"],
    },
    Row {
        name: "started over",
        break_it: |_| (),
        flags: &["--overwrite-output-dir"],
        code: 0,
        words: &["replaced-run-1", "new run"],
    },
];

#[test]
fn a_changed_run_is_refused_and_a_damaged_one_falls_back() {
    for row in RESUMED {
        let place = Place::new(row.name);
        place.trained();
        (row.break_it)(&place);
        expect(row.name, &place.train(row.flags), row.code, row.words);
    }
}

#[test]
fn a_diverged_run_publishes_nothing() {
    let place = Place::new("published");
    let output = place.train(&["--learning-rate", "1e30", "--save-steps", "1", "--max-grad-norm", "0"]);
    assert_eq!(output.status.code(), Some(79));
    assert!(!place.path("run/adapter").exists(), "an adapter of a diverged run");
}

#[test]
fn weights_only_and_complete_state_are_told_apart() {
    let place = Place::new("two meanings");
    place.trained();
    let weights = ["--checkpoint_dir", "run/adapter", "--output-dir", "second"];
    let words = ["weights only", "step 0", "--resume-from-checkpoint"];
    expect("weights only", &place.train(&weights), 0, &words);
    let elsewhere = ["--resume_from_checkpoint", "run", "--output-dir", "third", "--max-steps", "8"];
    expect("complete state", &place.train(&elsewhere), 0, &["resumed at step 6 of 8"]);
}

#[test]
fn a_second_process_is_locked_out() {
    let place = Place::new("locked");
    let _store = qwentune::checkpoint::store::RunLock::take(
        &qwentune::checkpoint::storage::FileSystem,
        &place.path("run"),
    )
    .unwrap();
    let output = place.train(&["--resume-from-checkpoint", "auto"]);
    expect("locked", &output, 73, &["run"]);
}

#[test]
fn verify_reports_damage_with_status_1() {
    let place = Place::new("verify");
    place.trained();
    let newest = place.newest();
    let newest = newest.to_str().unwrap();
    assert!(place.qwentune(&["checkpoint", "verify", newest]).status.success());
    flip(Path::new(newest), 5000);
    expect("verify", &place.qwentune(&["checkpoint", "verify", newest]), 1, &["step-00000006"]);
}
