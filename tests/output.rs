//! What is printed arrives, or the command says that it did not; and a terminal obeys nothing that a file holds.

use crate::common::{scratch, tiny_model, tiny_rows};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TRAIN: &str = "train --model model --train-file train.jsonl --output-dir run --cache-dir cache --lora-r 2 \
    --max-steps 2 --save-steps 1 --threads 1";

/// A folder with a tiny model, its rows and a run.
fn place(name: &str) -> PathBuf {
    let folder = scratch(&format!("output-{name}"));
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("train.jsonl"), 11, 1);
    let output = program(&folder, TRAIN).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}

fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(line.split_whitespace()).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    command
}

/// Commands whose result is what they print.
const PRINTS: &[&str] = &[
    "--help",
    "--version",
    "help train",
    "doctor",
    "plan --model model --train-file train.jsonl --cache-dir cache",
    "checkpoint list run",
    "checkpoint list run --json",
    "checkpoint show run",
    "checkpoint verify run",
    "evaluate --model model --valid-file train.jsonl --cache-dir cache --threads 1",
    #[cfg(feature = "text")]
    "preview --model model --train-file train.jsonl",
];

/// Commands that print what they wrote.
const WRITES: &[&str] = &["export run exported", "merge --model model --adapter run/adapter merged"];

#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let folder = place("full");
    for line in PRINTS.iter().chain(WRITES) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = program(&folder, line).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{line}: {stderr}");
        assert!(stderr.contains("cannot write to standard output"), "{line}: {stderr}");
    }
    // A run's output is a log; its results are files.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program(&folder, "resume run").stdout(full).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("warning: cannot write to standard output"),
        "{stderr}"
    );
    // They did their work all the same.
    for made in
        ["run/adapter/adapter_model.safetensors", "exported/adapter_config.json", "merged/config.json"]
    {
        assert!(folder.join(made).exists(), "{made}");
    }
}

#[test]
fn a_reader_that_left_has_what_it_wanted() {
    let folder = place("left");
    for line in PRINTS.iter().chain(WRITES) {
        let mut child = program(&folder, line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{line}: {:?} {stderr}", output.status);
    }
}

#[test]
fn no_message_holds_what_a_terminal_obeys() {
    let folder = place("escapes");
    let hostile = "a\u{1b}[31m\u{9b}2J\u{202e}\u{7f}\rb";
    std::fs::write(folder.join(format!("{hostile}.jsonl")), format!("{{\"{hostile}\": 1}}\n")).unwrap();
    std::fs::write(folder.join("rows.jsonl"), "{\"\\u001b[31m\\u009b\\u202e\": 1}\n").unwrap();
    let rows = format!("{hostile}.jsonl");
    let absent = format!("{hostile}.absent");
    let lines: &[&[&str]] = &[
        &["train", "--model", "model", "--output-dir", "out", "--train-file", &rows],
        &["train", "--model", "model", "--output-dir", "out", "--train-file", "rows.jsonl"],
        &["train", "--model", "model", "--output-dir", "out", "--train-file", &absent],
        &["train", "--model", hostile, "--output-dir", "out", "--train-file", "train.jsonl"],
        &["train", "--config", &absent],
        &["train", &format!("--{hostile}")],
        &[hostile],
        &["checkpoint", "list", hostile],
        &["export", hostile, "out"],
        &["merge", "--model", "model", "--adapter", hostile, "out"],
    ];
    for words in lines {
        let mut command = program(&folder, "");
        let output = command.args(*words).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{words:?}: {text}");
        let obeyed = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!text.contains(obeyed), "{words:?}: {text:?}");
        assert!(!text.is_empty() && !text.contains("internal error"), "{words:?}: {text:?}");
    }
}
