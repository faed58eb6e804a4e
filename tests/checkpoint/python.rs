//! `scripts/read_checkpoint.py`, which shares no code with the engine, agrees with it about every value, and
//! refuses what the engine refuses.

use super::{fresh_folder, state};
use qwentune::checkpoint::format::encode;
use qwentune::checkpoint::state::State;
use qwentune::report::line::LogLine;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Python with numpy and blake3 in it: `PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let probe = Command::new(&python).args(["-c", "import numpy, blake3"]).output();
    if probe.is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    println!(
        "SKIPPED: {python} has no numpy and blake3 (set PYTHON to one that has): the independent reader is NOT tested"
    );
    None
}

fn read(python: &str, file: &Path) -> Output {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/read_checkpoint.py");
    Command::new(python).arg(script).arg(file).arg("--json").output().expect("python starts")
}

fn sum(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |sum, x| sum + f64::from(*x))
}

fn compare(json: &Value, state: &State) {
    assert_eq!(json["step"], state.step);
    assert_eq!(json["tainted"], state.tainted);
    assert_eq!(json["identity"], serde_json::to_value(&state.identity).expect("strings"));
    assert_eq!(json["cursor"]["samples"], state.cursor.samples);
    assert_eq!(json["cursor"]["tokens"], state.cursor.tokens);
    assert_eq!(json["cursor"]["best"]["loss"].as_f64(), state.cursor.best.map(|b| b.loss));
    let hex = |digest: [u8; 32]| blake3::Hash::from_bytes(digest).to_hex().to_string();
    assert_eq!(
        json["cursor"]["best"]["adapter"].as_str(),
        state.cursor.best.map(|b| hex(b.adapter)).as_deref()
    );
    assert_eq!(json["history"], serde_json::to_value(&state.history).expect("plain values"));
    assert_eq!(json["log"].as_array().map(Vec::len), Some(state.log.len()));
    for (got, line) in json["log"].as_array().expect("lines").iter().zip(&state.log) {
        match line {
            LogLine::Step(line) => {
                assert_eq!((got["loss"].as_f64(), got["lr"].as_f64()), (Some(line.loss), Some(line.lr)));
                assert_eq!(got["tokens"], line.tokens);
            }
            LogLine::Eval(line) => assert_eq!(got["eval_loss"].as_f64(), Some(line.eval_loss)),
        }
    }
    for (section, array) in [("W", &state.weights), ("M", &state.m), ("V", &state.v)] {
        for tensor in &state.tensors {
            let values = &array[tensor.offset..][..tensor.shape[0] * tensor.shape[1]];
            let expected = serde_json::json!([tensor.shape, sum(values)]);
            assert_eq!(json["arrays"][section][&tensor.name], expected, "{section} {}", tensor.name);
        }
    }
}

#[test]
fn an_independent_reader_agrees() {
    let Some(python) = python() else { return };
    let file = fresh_folder("python").join("a.qckpt");
    for state in [state(3, 1), super::sized_state(12, 0, 5000)] {
        std::fs::write(&file, encode(&state)).expect("written");
        let output = read(&python, &file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        compare(&serde_json::from_slice(&output.stdout).expect("one JSON object"), &state);
    }
}

#[test]
fn an_independent_reader_refuses_damage() {
    let Some(python) = python() else { return };
    let file = fresh_folder("python-damage").join("a.qckpt");
    let good = encode(&state(3, 1));
    // In the header, its reserved bytes, each section, its padding, the trailer.
    let places = (0..good.len() / 4096).flat_map(|block| [block * 4096 + 3, block * 4096 + 4090]);
    for at in places {
        let mut bytes = good.clone();
        bytes[at] ^= 32;
        std::fs::write(&file, bytes).expect("written");
        let output = read(&python, &file);
        assert!(!output.status.success(), "byte {at}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("ValueError"), "byte {at}");
    }
}
