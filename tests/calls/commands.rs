//! Every command that writes: whichever of its calls fails, what it makes is whole or absent, nothing saved is lost, and
//! the same command goes on to the bytes it makes undisturbed. And several of one command at once on one output.
//!
//! The normal run tries some calls of each and two rounds of several; `QWENTUNE_FULL=1` tries every call and 100 rounds.

use super::supervisor::{Ended, Fault, possible, run};
use crate::common::{full, scratch, tiny_model, tiny_rows};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(feature = "text")]
const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quickstart");
const TRAIN: &str = "train --model model --train-file train.jsonl --valid-file dev.jsonl --output-dir run \
    --cache-dir cache --lora-r 2 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --max-steps 4 \
    --save-steps 2 --eval-strategy steps --eval-steps 2 --learning-rate 1e-2 --threads 1 --quiet";

/// A command, and how what it makes is told.
struct Case {
    name: &'static str,
    /// Makes what the command works on.
    prepare: fn(&Path),
    command: fn(&Path) -> Vec<String>,
    /// The command that goes on where this one left its folder.
    again: fn(&Path) -> Vec<String>,
    /// What it makes, below the folder. Each file or folder of these is whole or absent.
    makes: &'static [&'static str],
    /// Calls tried in the normal run, of each sort.
    tries: usize,
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn prepare_training(folder: &Path) {
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("train.jsonl"), 11, 1);
    tiny_rows(&folder.join("dev.jsonl"), 4, 2);
}

fn prepare_run(folder: &Path) {
    prepare_training(folder);
    undisturbed(folder, &words(TRAIN));
}

/// A run that was killed after its first checkpoint.
fn prepare_killed(folder: &Path) {
    prepare_training(folder);
    for at in (10..).step_by(4) {
        let _ = std::fs::remove_dir_all(folder.join("run"));
        let mut command = program(folder, &words(TRAIN));
        let output = command.env("QWENTUNE_CRASH_AT", at.to_string()).output().unwrap();
        assert!(!output.status.success(), "the run ended before its first checkpoint was there");
        if folder.join("run/checkpoints/step-00000002.qckpt").exists() {
            return;
        }
    }
}

#[cfg(feature = "text")]
fn prepare_generation(folder: &Path) {
    let text = std::fs::read_to_string(Path::new(QUICKSTART).join("test.jsonl")).unwrap();
    let rows: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("rows.jsonl"), rows).unwrap();
    copy(&Path::new(QUICKSTART).join("model"), &folder.join("model"));
}

fn train(_: &Path) -> Vec<String> {
    words(TRAIN)
}

/// A folder that holds a run refuses another; its own goes on.
fn train_again(folder: &Path) -> Vec<String> {
    if folder.join("run/run.json").exists() { words("resume run --quiet") } else { words(TRAIN) }
}

fn import(folder: &Path) -> Vec<String> {
    let case = crate::exchange::QWEN2;
    let mut all = vec!["import".into(), case.checkpoint().to_str().unwrap().to_owned(), "run".into()];
    all.extend(case.words(folder));
    all
}

/// An import that wrote its checkpoint and `run.json` is a run.
fn import_again(folder: &Path) -> Vec<String> {
    if folder.join("run/run.json").exists() { words("checkpoint verify run") } else { import(folder) }
}

const CASES: &[Case] = &[
    Case {
        name: "train",
        prepare: prepare_training,
        command: train,
        again: train_again,
        makes: &["run/adapter", "run/best", "run/report.html"],
        tries: 6,
    },
    Case {
        name: "resume",
        prepare: prepare_killed,
        command: |_| words("resume run --quiet"),
        again: |_| words("resume run --quiet"),
        makes: &["run/adapter", "run/report.html"],
        tries: 5,
    },
    Case {
        name: "import",
        prepare: |_| (),
        command: import,
        again: import_again,
        makes: &["run/checkpoints/step-00000006.qckpt"],
        tries: 4,
    },
    Case {
        name: "export",
        prepare: prepare_run,
        command: |_| words("export run out --format hf-trainer"),
        again: |_| words("export run out --format hf-trainer"),
        makes: &["out"],
        tries: 6,
    },
    Case {
        name: "report",
        prepare: |folder| {
            prepare_run(folder);
            copy(&folder.join("run"), &folder.join("other"));
        },
        command: |_| words("report run other --output pages.html"),
        again: |_| words("report run other --output pages.html"),
        makes: &["pages.html"],
        tries: 3,
    },
    Case {
        name: "merge",
        prepare: prepare_run,
        command: |_| words("merge --model model --adapter run/adapter out"),
        again: |_| words("merge --model model --adapter run/adapter out"),
        makes: &["out"],
        tries: 6,
    },
    #[cfg(feature = "text")]
    Case {
        name: "generate",
        prepare: prepare_generation,
        command: |_| {
            words(
                "generate --model model --input-file rows.jsonl --output-file out.jsonl --max-new-tokens 4 --threads 1",
            )
        },
        again: |_| {
            words(
                "generate --model model --input-file rows.jsonl --output-file out.jsonl --max-new-tokens 4 --threads 1",
            )
        },
        makes: &["out.jsonl"],
        tries: 6,
    },
];

fn program(folder: &Path, words: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(words).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    command
}

fn undisturbed(folder: &Path, words: &[String]) {
    let output = program(folder, words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { _ = std::fs::copy(&path, &target).unwrap() }
    }
}

/// Bytes of every file below `path`, by name; of the log without its clock.
fn bytes_of(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.exists() {
            let name = path.file_name().unwrap();
            // The page says how long steps took.
            let timed = name == "report.html";
            all.insert(path.clone(), if timed { Vec::new() } else { std::fs::read(&path).unwrap() });
        }
    }
    all
}

/// What a case makes, by the name below the folder.
fn made(case: &Case, folder: &Path) -> BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>> {
    let relative = |path: PathBuf| path.strip_prefix(folder).unwrap().to_owned();
    let of = |name: &&str| {
        let files = bytes_of(&folder.join(name)).into_iter().map(|(path, bytes)| (relative(path), bytes));
        ((*name).to_owned(), files.collect())
    };
    case.makes.iter().map(of).collect()
}

fn drafts(folder: &Path) -> Vec<PathBuf> {
    let draft = |path: &PathBuf| path.iter().any(|part| part.to_str().unwrap().ends_with(".tmp"));
    bytes_of(folder).into_keys().filter(draft).collect()
}

/// A fresh copy of what the case works on, always of the same name: it is part of what some commands make.
fn fresh(template: &Path) -> PathBuf {
    let folder = template.with_extension("copy");
    let _ = std::fs::remove_dir_all(&folder);
    copy(template, &folder);
    folder
}

/// What a case works on, in a folder of the test's own.
fn template(case: &Case, test: &str) -> PathBuf {
    let template = scratch(&format!("calls-{}-{test}", case.name));
    (case.prepare)(&template);
    template
}

fn attempt(
    case: &Case,
    template: &Path,
    fault: Fault,
    expected: &BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>>,
) {
    let folder = fresh(template);
    let Ended { output, calls } =
        run(&mut program(&folder, &(case.command)(&folder)), &folder, Some(fault)).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let call = calls.get(fault.first).map_or("none", String::as_str);
    let place = format!("{} {fault:?} at {call}: {:?} {stderr}", case.name, output.status.code());
    let allowed = [0, 65, 69, 73, 74];
    assert!(output.status.code().is_some_and(|code| allowed.contains(&code)), "{place}");
    assert!(!stderr.contains("internal error") && !stderr.contains("panicked"), "{place}");
    for (name, files) in made(case, &folder) {
        // The adapter of an earlier evaluation, or what the case began with.
        let earlier = template.join(&name).exists()
            || (name == "run/best" && qwentune::formats::peft::read(&folder.join(&name)).is_ok());
        assert!(files.is_empty() || files == expected[&name] || earlier, "{place}: part of {name}");
    }
    let complete = made(case, &folder) == *expected;
    assert!(complete || !output.status.success(), "{place}: status 0, and something is missing");
    if !complete {
        let again = (case.again)(&folder);
        let output = program(&folder, &again).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place}\nthen {again:?}: {stderr}");
        assert!(made(case, &folder) == *expected, "{place}\nthen other bytes");
        let left = drafts(&folder);
        assert!(left.is_empty(), "{place}\nthen drafts were left: {left:?}");
    }
}

fn every_call_fails(case: &Case) {
    if !possible() {
        eprintln!("this system does not let a test answer system calls: skipped");
        return;
    }
    let template = template(case, "fails");
    let folder = fresh(&template);
    let calls = |reads| {
        let folder = fresh(&template);
        // A fault that no call reaches.
        let fault = Fault { first: usize::MAX, forever: false, errno: 0, reads, only: "" };
        let ended = run(&mut program(&folder, &(case.command)(&folder)), &folder, Some(fault)).unwrap();
        assert!(ended.output.status.success(), "{}", String::from_utf8_lossy(&ended.output.stderr));
        ended.calls
    };
    undisturbed(&folder, &(case.command)(&folder));
    let expected = made(case, &folder);
    assert!(expected.values().all(|files| !files.is_empty()), "{}: {:?}", case.name, expected.keys());
    let all = full();
    let modes = [
        (false, libc::ENOSPC, true),
        (false, libc::EIO, false),
        (false, libc::EIO, true),
        (true, libc::EIO, false),
        (true, libc::EACCES, true),
    ];
    for (mode, (reads, errno, forever)) in modes.into_iter().enumerate() {
        let count = calls(reads).len();
        assert!(count > case.tries, "{}: only {count} calls", case.name);
        let step = if all { 1 } else { count.div_ceil(case.tries) };
        // Each mode begins elsewhere, so that together they meet more of the calls.
        for first in (if all { 0 } else { mode * step / modes.len() }..count).step_by(step) {
            attempt(case, &template, Fault { first, forever, errno, reads, only: "" }, &expected);
        }
    }
}

/// A file system without exclusive and exchanging renames, such as NFS: the same bytes, without a complaint.
fn without_special_renames(case: &Case) {
    if !possible() {
        eprintln!("this system does not let a test answer system calls: skipped");
        return;
    }
    let template = template(case, "renames");
    let folder = fresh(&template);
    undisturbed(&folder, &(case.command)(&folder));
    let expected = made(case, &folder);
    let folder = fresh(&template);
    let fault = Fault { first: 0, forever: true, errno: libc::EINVAL, reads: false, only: "renameat2" };
    let ended = run(&mut program(&folder, &(case.command)(&folder)), &folder, Some(fault)).unwrap();
    let stderr = String::from_utf8_lossy(&ended.output.stderr);
    assert!(ended.output.status.success(), "{}: {stderr}", case.name);
    assert!(made(case, &folder) == expected, "{}: other bytes", case.name);
    let left = drafts(&folder);
    assert!(left.is_empty(), "{}: {left:?}", case.name);
}

#[test]
fn every_command_does_without_special_renames() {
    CASES.iter().for_each(without_special_renames);
}

/// Several at once: one makes it, the others are told so, and what is there is whole.
fn several_at_once(case: &Case) {
    let rounds = if full() { 100 } else { 2 };
    let template = template(case, "several");
    let folder = fresh(&template);
    undisturbed(&folder, &(case.command)(&folder));
    let expected = made(case, &folder);
    for round in 0..rounds {
        let folder = fresh(&template);
        let count = 2 + round % 2;
        let start = |_| {
            let mut command = program(&folder, &(case.command)(&folder));
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        let started: Vec<_> = (0..count).map(start).collect();
        let ended: Vec<_> = started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let told: Vec<_> = ended
            .iter()
            .map(|o| (o.status.code(), String::from_utf8_lossy(&o.stderr).into_owned()))
            .collect();
        assert!(told.iter().any(|(code, _)| *code == Some(0)), "{}: {told:?}", case.name);
        assert!(told.iter().all(|(code, _)| matches!(code, Some(0 | 73))), "{}: {told:?}", case.name);
        assert!(made(case, &folder) == expected, "{}: other bytes: {told:?}", case.name);
        let left = drafts(&folder);
        assert!(left.is_empty(), "{}: {left:?}: {told:?}", case.name);
    }
}

macro_rules! cases {
    ($($name:ident)*) => { $(
        mod $name {
            fn case() -> &'static super::Case {
                super::CASES.iter().find(|case| case.name == stringify!($name)).unwrap()
            }

            #[test]
            fn every_call_fails() {
                super::every_call_fails(case());
            }

            #[test]
            fn several_at_once() {
                super::several_at_once(case());
            }
        }
    )* };
}

cases!(train resume import export merge report);
#[cfg(feature = "text")]
cases!(generate);
