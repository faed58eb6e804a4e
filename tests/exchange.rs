//! Checkpoints of Hugging Face's Trainer continue here with the losses that Trainer has (scripts/make_trainer_golden.py),
//! and what is exported is what was imported. Two float32 implementations were measured to differ by 1.4e-7.

use crate::common::{assert_same, results, scratch, train, train_until};
use qwentune::checkpoint::state::State;
use qwentune::checkpoint::{format, inspect};
use qwentune::cli::train_settings;
use qwentune::config::Settings;
use qwentune::report::event::Event;
use qwentune::report::jsonl::Line;
use qwentune::report::line::LogLine;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// A golden checkpoint, and what has to be told beside it.
pub struct Case {
    name: &'static str,
    step: u64,
    told: &'static [&'static str],
}

pub const QWEN2: Case = Case {
    name: "current-qwen2",
    step: 6,
    told: &[
        "--gradient-accumulation-steps=2",
        "--lr-scheduler-type=cosine",
        "--warmup-steps=3",
        "--max-grad-norm=1.9",
    ],
};
pub const LORA_PLUS: Case = Case {
    name: "current-qwen3-loraplus",
    step: 9,
    told: &[
        "--gradient-accumulation-steps=3",
        "--lr-scheduler-type=constant_with_warmup",
        "--warmup-steps=4",
    ],
};
/// The command line of the run itself, as DeepKE's users have it.
pub const DEEPKE: Case = Case {
    name: "deepke-qwen1",
    step: 7,
    told: &[
        "--per_device_train_batch_size=2",
        "--gradient_accumulation_steps=4",
        "--learning_rate=5e-4",
        "--max_grad_norm=0.5",
        "--num_train_epochs=15",
        "--lora_r=4",
        "--lora_alpha=8",
    ],
};
const ALL: [&Case; 3] = [&QWEN2, &LORA_PLUS, &DEEPKE];

impl Case {
    pub fn checkpoint(&self) -> PathBuf {
        Path::new(GOLDEN).join("trainer").join(self.name).join(format!("checkpoint-{}", self.step))
    }

    fn expected(&self) -> Value {
        let path = Path::new(GOLDEN).join("trainer").join(self.name).join("expected.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Model, rows, cache, and what is told.
    pub fn words(&self, scratch: &Path) -> Vec<String> {
        let source = Path::new(GOLDEN).join("train").join(self.expected()["source"].as_str().unwrap());
        let path = |p: PathBuf| p.to_str().unwrap().to_owned();
        let mut words = vec!["--model".into(), path(source.join("model"))];
        words.extend(["--train-file".into(), path(source.join("data.jsonl"))]);
        words.extend(["--cache-dir".into(), path(scratch.join("cache"))]);
        words.extend(["--shuffle=false".into(), "--threads=1".into()]);
        words.extend(self.told.iter().map(|w| (*w).to_owned()));
        words
    }

    fn settings(&self, scratch: &Path, more: &[&str]) -> Settings {
        let words = self.words(scratch);
        let words: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        train_settings(&words).unwrap().0
    }
}

/// Runs the program.
pub fn program(verb: &[&Path], words: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qwentune")).args(verb).args(words).output().unwrap()
}

/// Runs it to its end, and gives what it printed.
fn done(verb: &[&Path], words: &[String]) -> String {
    let output = program(verb, words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{verb:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn import(case: &Case, from: &Path, out: &Path) -> String {
    done(&[Path::new("import"), from, out], &case.words(out.parent().unwrap()))
}

fn export(from: &Path, out: &Path) -> String {
    done(&[Path::new("export"), from, out], &["--format=hf_trainer".into()])
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// (step, loss, learning rate) of each line.
fn lines(run: &Path) -> Vec<(u64, f64, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|l| match Line::parse(l).unwrap().logged {
            LogLine::Step(s) => (s.step, s.loss, s.lr),
            LogLine::Eval(_) => panic!("no evaluation was asked for"),
        })
        .collect()
}

/// Largest relative differences of the 20 next losses and learning rates from Trainer's.
fn differences(case: &Case, run: &Path) -> (f64, f64) {
    let (lines, expected) = (lines(run), case.expected());
    assert_eq!(lines[0].0, case.step + 1);
    let worst = |found: Vec<f64>, expected: Vec<f64>| {
        assert!(found.len() >= 20 && expected.len() == 20);
        found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
    };
    let losses = worst(lines.iter().map(|l| l.1).collect(), numbers(&expected["loss"]));
    (losses, worst(lines.iter().map(|l| l.2).collect(), numbers(&expected["lr"])))
}

fn first_checkpoint(case: &Case, run: &Path) -> PathBuf {
    inspect::path_of_step(run, case.step)
}

/// Every file of a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = entries
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&p).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn golden_checkpoints_continue_as_trainer_continues_them() {
    for case in ALL {
        let folder = scratch(&format!("exchange-{}", case.name));
        let run = folder.join("run");
        let said = import(case, &case.checkpoint(), &run);
        let first = format!("imported step {} of 30 from ", case.step);
        assert!(said.starts_with(&first), "{said}");
        assert!(
            said.contains(
                "continues as it was: weights, AdamW's moments, step, learning rate, place in the data\n"
            ),
            "{said}"
        );
        assert!(said.contains("inexact") && said.contains(" resume "), "{said}");
        done(&[Path::new("resume"), &run], &[]);
        let (losses, rates) = differences(case, &run);
        println!("{}: losses {losses:e}, learning rates {rates:e}", case.name);
        assert!(losses <= 1e-6, "{}: losses differ by {losses:e}", case.name);
        assert!(rates <= 1e-12, "{}: learning rates differ by {rates:e}", case.name);
        assert!(inspect::list(&run).unwrap().iter().all(|l| l.header.as_ref().unwrap().tainted));

        // The same in one go, by either verb.
        let (train, resume) = (folder.join("train"), folder.join("resume"));
        let mut words = case.words(&folder);
        words.push(format!("--output-dir={}", train.display()));
        words.push(format!("--resume-from-checkpoint={}", case.checkpoint().display()));
        let said = done(&[Path::new("train")], &words);
        assert!(said.starts_with(&first) && said.contains("resumed at step"), "{said}");
        words.pop();
        words.push(format!("--output-dir={}", resume.display()));
        done(&[Path::new("resume"), &case.checkpoint()], &words);
        let reference = results(&run).unwrap();
        assert_same(&reference, &results(&train).unwrap(), "train --resume-from-checkpoint");
        assert_same(&reference, &results(&resume).unwrap(), "resume CHECKPOINT");
    }
}

/// Negative controls: the comparison above notices a part of the state that was lost or put elsewhere.
#[test]
fn losing_moments_is_noticed_in_the_losses() {
    let case = &QWEN2;
    let folder = scratch("exchange-controls");
    type Alter = fn(&mut State);
    let controls: [(&str, Alter); 3] = [
        ("first moments", |s| s.m.fill(0.0)),
        ("second moments", |s| s.v.fill(0.0)),
        ("moments in another order", |s| {
            s.m.rotate_left(256);
            s.v.rotate_left(256);
        }),
    ];
    for (name, alter) in controls {
        let run = folder.join(name);
        import(case, &case.checkpoint(), &run);
        let file = first_checkpoint(case, &run);
        let mut state = inspect::load(&file).unwrap();
        alter(&mut state);
        std::fs::write(&file, format::encode(&state)).unwrap();
        done(&[Path::new("resume"), &run], &[]);
        let (losses, _) = differences(case, &run);
        assert!(losses > 1e-4, "{name}: {losses:e}");
    }
}

#[test]
fn an_imported_run_that_is_interrupted_ends_in_the_same_bytes() {
    let case = &LORA_PLUS;
    let folder = scratch("exchange-interrupted");
    let (whole, cut) = (folder.join("whole"), folder.join("cut"));
    import(case, &case.checkpoint(), &whole);
    import(case, &case.checkpoint(), &cut);
    done(&[Path::new("resume"), &whole], &[]);
    let output = format!("--output-dir={}", cut.display());
    let mut settings = case.settings(&folder, &[&output, "--resume-from-checkpoint=auto"]);
    // What only the checkpoint knew is in the run's own settings now.
    let frozen = qwentune::train::run_file::RunFile::read(&qwentune::checkpoint::storage::FileSystem, &cut)
        .unwrap()
        .settings;
    settings = Settings { resume_from_checkpoint: settings.resume_from_checkpoint, ..frozen };
    for step in [11, 20] {
        train_until(&settings, |e| matches!(e, Event::Step { line, .. } if line.step == step)).unwrap_err();
    }
    // Steps beyond the newest checkpoint are computed again, and compared.
    std::fs::remove_file(inspect::path_of_step(&cut, 20)).unwrap();
    let repeated = std::cell::RefCell::new(None);
    train_until(&settings, |e| {
        if let Event::Repeated { first, last } = e {
            *repeated.borrow_mut() = Some((*first, *last));
        }
        false
    })
    .unwrap();
    assert_eq!(repeated.into_inner(), Some((12, 20)));
    assert_same(&results(&whole).unwrap(), &results(&cut).unwrap(), "interrupted");
}

#[test]
fn import_export_import_gives_equal_bytes() {
    for case in ALL {
        let folder = scratch(&format!("exchange-round-{}", case.name));
        let [first, second] = ["first", "second"].map(|name| folder.join(name));
        let [out, again] = ["out", "again"].map(|name| folder.join(name));
        import(case, &case.checkpoint(), &first);
        let said = export(&first, &out);
        assert!(
            said.contains("max_steps 30") && said.contains("checkpoint of Hugging Face's Trainer"),
            "{said}"
        );
        import(case, &out, &second);
        let bytes = |run: &Path| std::fs::read(first_checkpoint(case, run)).unwrap();
        assert_eq!(bytes(&first), bytes(&second), "{}", case.name);
        export(&first_checkpoint(case, &second), &again);
        assert_eq!(files(&out), files(&again), "{}", case.name);
        let names: Vec<String> = files(&out).into_iter().map(|(name, _)| name).collect();
        let expected =
            "adapter_config.json adapter_model.safetensors optimizer.pt scheduler.pt trainer_state.json";
        assert_eq!(names.join(" "), expected);
        assert_same_progress(&out, &case.checkpoint());
    }
}

fn assert_same_progress(ours: &Path, theirs: &Path) {
    let read = |folder: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join("trainer_state.json")).unwrap()).unwrap()
    };
    let (ours, theirs) = (read(ours), read(theirs));
    for key in ["epoch", "global_step", "max_steps", "num_train_epochs"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
}

#[test]
fn a_run_of_our_own_is_exported_and_comes_back() {
    let folder = scratch("exchange-own");
    // A save may be left out while another is being written: this one is the first.
    let settings = Settings { save_steps: 4.0, ..crate::common::tiny_settings(&folder) };
    train(&settings).unwrap();
    let run = &settings.output_dir;
    let adapter = folder.join("adapter");
    let said = done(&[Path::new("export"), run, &adapter], &[]);
    assert!(said.contains("PEFT's format"), "{said}");
    assert_eq!(files(&adapter), files(&run.join("adapter")), "the final adapter, the same bytes");

    let step = 4;
    let (out, back) = (folder.join("checkpoint-4"), folder.join("back"));
    export(&inspect::path_of_step(run, step), &out);
    let text = std::fs::read_to_string(out.join("trainer_state.json")).unwrap();
    let state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(state["log_history"].as_array().unwrap().len(), 4);
    assert_eq!(state["global_step"], 4);
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let mut words: Vec<String> =
        ["--gradient-accumulation-steps=3", "--threads=1"].map(String::from).to_vec();
    words.extend([
        "--model".into(),
        path(&settings.model),
        "--train-file".into(),
        path(&settings.train_files[0]),
    ]);
    words.extend(["--cache-dir".into(), path(settings.cache_dir.as_ref().unwrap())]);
    let said = done(&[Path::new("import"), &out, &back], &words);
    for honest in ["order of the rows", "dropout masks"] {
        assert!(said.contains(honest), "{said}");
    }
    // Same arithmetic, order and masks: what Trainer's form carried is all there is.
    done(&[Path::new("resume"), &back], &[]);
    let bytes = |run: &Path| std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(bytes(run), bytes(&back));
}

/// Moments that begin at zero count their updates from there: the losses are those of a run that begins with the
/// weights alone, where the learning rate and the place in the data are the same.
#[test]
fn a_fresh_optimizer_counts_from_zero_and_is_recorded() {
    let case = &LORA_PLUS;
    let folder = scratch("exchange-fresh");
    let from = copy(&case.checkpoint(), &folder.join("checkpoint-8"));
    for name in ["optimizer.pt", "scheduler.pt"] {
        std::fs::remove_file(from.join(name)).unwrap();
    }
    edit(&from.join("trainer_state.json"), |text| {
        text.replace("\"global_step\": 9", "\"global_step\": 8")
            .replace("\"epoch\": 4.6,\n  \"eval", "\"epoch\": 4.0,\n  \"eval")
    });
    let mut words = case.words(&folder);
    words.extend(["--learning-rate=5e-4", "--loraplus-lr-ratio=4", "--weight-decay=0.01"].map(String::from));
    let run = folder.join("run");
    let mut fresh = words.clone();
    fresh.push("--fresh-optimizer".into());
    let said = done(&[Path::new("import"), &from, &run], &fresh);
    assert!(said.contains("AdamW's moments, which begin at zero"), "{said}");
    let state = inspect::load(&inspect::path_of_step(&run, 8)).unwrap();
    assert_eq!(state.cursor.updates_behind, 8);
    done(&[Path::new("resume"), &run], &[]);

    let new = folder.join("new");
    words.retain(|w| !w.starts_with("--lr-scheduler-type") && !w.starts_with("--warmup"));
    words.extend(
        ["--lr-scheduler-type=constant", "--max-steps=22", "--per-device-train-batch-size=3"]
            .map(String::from),
    );
    words.extend([format!("--init-adapter={}", from.display()), format!("--output-dir={}", new.display())]);
    done(&[Path::new("train")], &words);
    let losses = |run: &Path| lines(run).iter().map(|l| l.1.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(&run), losses(&new));
    // Later checkpoints carry the record, and so does what is exported.
    let out = folder.join("out");
    export(&run, &out);
    let optimizer = qwentune::formats::hf_trainer::Optimizer::open(&out.join("optimizer.pt")).unwrap();
    let first = optimizer.moments(0, "first", [2, 64]).unwrap();
    assert_eq!(first.steps, 22);
}

/// Copies a checkpoint folder, so that it can be changed.
pub fn copy(from: &Path, to: &Path) -> PathBuf {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        std::fs::write(to.join(name), bytes).unwrap();
    }
    to.to_owned()
}

/// Changes a text file; the change must be one.
pub fn edit(path: &Path, change: impl Fn(&str) -> String) {
    let before = std::fs::read_to_string(path).unwrap();
    let after = change(&before);
    assert_ne!(before, after, "{}", path.display());
    std::fs::write(path, after).unwrap();
}
