//! TensorBoard's event file of a run, read back by the documented format of its records.

use crate::common::{scratch, tiny_model, tiny_rows};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NAME: &str = "events.out.tfevents.0.qwentune";

fn program(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(line.split_whitespace()).current_dir(folder).output().unwrap()
}

fn runs(folder: &Path, line: &str) {
    let output = program(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn place(name: &str) -> PathBuf {
    let folder = scratch(&format!("tensorboard-{name}"));
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("train.jsonl"), 12, 1);
    tiny_rows(&folder.join("valid.jsonl"), 4, 2);
    folder
}

const TRAIN: &str = "train --model model --train-file train.jsonl --valid-file valid.jsonl --eval-strategy steps \
    --eval-steps 2 --output-dir run --cache-dir cache --lora-r 2 --save-steps 2 --threads 1 --quiet \
    --per-device-train-batch-size 2 --report_to tensorboard";

/// CRC-32C by the polynomial division of its definition, not by the code under test.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let feed = (crc ^ u32::from(byte >> bit)) & 1;
            crc = (crc >> 1) ^ if feed == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

fn check(bytes: &[u8], stored: &[u8]) {
    let crc = crc32c(bytes);
    let masked = crc.rotate_right(15).wrapping_add(0xA282_EAD8);
    assert_eq!(masked.to_le_bytes(), stored);
}

/// A field of a protocol buffer: its number, and its bytes (those of a number too).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    found
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// (step, tag, value) of all scalars, after the version.
fn scalars(run: &Path) -> Vec<(u64, String, f32)> {
    let bytes = std::fs::read(run.join(NAME)).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let length = number(&bytes[at..at + 8]) as usize;
        check(&bytes[at..at + 8], &bytes[at + 8..at + 12]);
        let data = &bytes[at + 12..at + 12 + length];
        check(data, &bytes[at + 12 + length..at + 16 + length]);
        let event = fields(data);
        let of =
            |wanted: u64| event.iter().find(|(number, _)| *number == wanted).map(|(_, bytes)| bytes.clone());
        assert!(f64::from_le_bytes(of(1).unwrap().try_into().unwrap()) > 1.7e9);
        if at == 0 {
            assert_eq!(of(3).unwrap(), b"brain.Event:2");
        } else {
            for (_, value) in fields(&of(5).unwrap()) {
                let value = fields(&value);
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                let simple = f32::from_le_bytes(value[1].1.clone().try_into().unwrap());
                found.push((number(&of(2).unwrap()), tag, simple));
            }
        }
        at += 16 + length;
    }
    found
}

/// What `metrics.jsonl` says, as scalars.
fn logged(run: &Path) -> Vec<(u64, String, f32)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut found = Vec::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let step = line["step"].as_u64().unwrap();
        for (tag, key) in [
            ("train/loss", "loss"),
            ("train/grad_norm", "grad_norm"),
            ("train/learning_rate", "lr"),
            ("train/epoch", "epoch"),
            ("eval/loss", "eval_loss"),
        ] {
            let is_evaluation = line.get("eval_loss").is_some();
            if let Some(value) = line[key].as_f64().filter(|_| !(is_evaluation && key == "epoch")) {
                found.push((step, tag.to_owned(), value as f32));
            }
        }
    }
    found
}

#[test]
fn an_event_file_has_every_line_once_however_the_run_was_interrupted() {
    let folder = place("resume");
    let run = folder.join("run");
    runs(&folder, &format!("{TRAIN} --max-steps 4"));
    assert_eq!(scalars(&run), logged(&run));
    let before = std::fs::read(run.join(NAME)).unwrap();

    // A longer run appends; what was there keeps its bytes, clock included.
    runs(&folder, "resume run --max-steps 6");
    let after = std::fs::read(run.join(NAME)).unwrap();
    assert!(after.starts_with(&before) && after.len() > before.len());
    assert_eq!(scalars(&run), logged(&run));

    // A torn record, and steps that were logged beyond the checkpoint, as a crash leaves them.
    std::fs::write(run.join(NAME), &after[..after.len() - 5]).unwrap();
    std::fs::remove_file(run.join("checkpoints/step-00000006.qckpt")).unwrap();
    runs(&folder, "resume run");
    assert_eq!(scalars(&run), logged(&run));

    // Started over: the old file goes with the old run.
    runs(&folder, &format!("{TRAIN} --max-steps 2 --overwrite-output-dir"));
    assert_eq!(scalars(&run), logged(&run));
    assert_eq!(scalars(&folder.join("run/replaced-run-1")), logged(&folder.join("run/replaced-run-1")));
}

#[test]
fn only_what_can_be_done_is_reported_to() {
    let folder = place("names");
    runs(&folder, &format!("{} --max-steps 1", TRAIN.replace("tensorboard", "none")));
    assert!(!folder.join("run").join(NAME).exists());
    let output = program(&folder, &TRAIN.replace("tensorboard", "wandb"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("wandb") && stderr.contains("tensorboard writes an event file"), "{stderr}");
    std::fs::write(folder.join("list.toml"), "report_to = [\"tensorboard\"]").unwrap();
    let listed = folder.join("list.toml");
    let read = qwentune::cli::train_settings(&["--config", listed.to_str().unwrap()]).unwrap().0;
    assert_eq!(read.report_to, qwentune::config::ReportTo::Tensorboard);
}
