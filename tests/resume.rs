//! An interrupted run ends in the same bytes: stopped at every step, killed at every write, at any save
//! interval and number of threads.

use crate::common::{assert_same, results, scratch, tiny_settings, train, train_until};
use qwentune::config::{ResumeFrom, Settings, Strategy};
use qwentune::error::Kind;
use qwentune::report::event::Event;
use std::path::Path;
use std::process::Command;

/// Steps of the tiny run: 11 rows in batches of 2 make 6 micro-batches, 2 steps an epoch, 3 epochs.
const STEPS: u64 = 6;

fn settings(name: &str, packing: bool) -> Settings {
    let mut settings = tiny_settings(&scratch(name));
    if packing {
        settings.packing = true;
        settings.tokens_per_micro_batch = 24;
        settings.cutoff_len = 24;
        settings.gradient_accumulation_steps = 2;
    }
    settings.valid_file = Some(settings.model.parent().unwrap().join("dev.jsonl"));
    settings.eval_strategy = Strategy::Steps;
    settings.eval_steps = Some(2.0);
    settings
}

fn in_folder(settings: &Settings, name: &str) -> Settings {
    let folder = settings.output_dir.parent().unwrap();
    Settings { output_dir: folder.join(name), ..settings.clone() }
}

fn resuming(settings: &Settings) -> Settings {
    Settings { resume_from_checkpoint: Some(ResumeFrom::Auto), ..settings.clone() }
}

fn is_step(event: &Event, wanted: u64) -> bool {
    matches!(event, Event::Step { line, .. } if line.step == wanted)
}

#[test]
fn stopped_at_every_step_it_ends_in_the_same_bytes() {
    for packing in [false, true] {
        let base = settings(&format!("every-step-{packing}"), packing);
        let total = train(&base).unwrap().total_steps;
        assert!(packing || total == STEPS);
        let reference = results(&base.output_dir).unwrap();
        for step in 1..total {
            let run = in_folder(&base, &format!("stopped-{step}"));
            let stopped = train_until(&run, |e| is_step(e, step)).unwrap_err();
            assert_eq!(stopped.kind, Kind::Stopped, "{stopped}");
            train(&resuming(&run)).unwrap();
            let what = format!("packing {packing}, stopped at {step}");
            assert_same(&reference, &results(&run.output_dir).unwrap(), &what);
        }
    }
}

#[test]
fn stopped_at_each_step_in_turn_it_ends_in_the_same_bytes() {
    let base = settings("chain", false);
    train(&base).unwrap();
    let run = resuming(&in_folder(&base, "chain"));
    for step in 1..STEPS {
        train_until(&run, |e| is_step(e, step)).unwrap_err();
    }
    train(&run).unwrap();
    let reference = results(&base.output_dir).unwrap();
    assert_same(&reference, &results(&run.output_dir).unwrap(), "a chain of stops");
}

#[test]
fn threads_and_save_intervals_do_not_matter() {
    let base = settings("intervals", false);
    train(&base).unwrap();
    let reference = results(&base.output_dir).unwrap();
    for (threads, every) in [(2, 1.0), (4, 7.0), (1, 7.0)] {
        let mut run = in_folder(&base, &format!("threads-{threads}-every-{every}"));
        run.threads = Some(threads);
        run.save_steps = every;
        train(&run).unwrap();
        assert_same(
            &reference,
            &results(&run.output_dir).unwrap(),
            &format!("{threads} threads, every {every}"),
        );
    }
    let mut run = in_folder(&base, "never");
    run.save_strategy = Strategy::No;
    train(&run).unwrap();
    let found = results(&run.output_dir).unwrap();
    for name in ["adapter", "metrics"] {
        assert_eq!(reference[name], found[name], "never saving: {name}");
    }
}

#[test]
fn recomputation_does_not_change_bits() {
    use qwentune::config::Recompute;
    let base = settings("recompute", false);
    train(&Settings { recompute: Recompute::None, ..base.clone() }).unwrap();
    let reference = results(&base.output_dir).unwrap();
    for recompute in [Recompute::Mlp, Recompute::Full] {
        let run = Settings { recompute, ..in_folder(&base, &format!("{recompute:?}")) };
        train(&run).unwrap();
        assert_same(&reference, &results(&run.output_dir).unwrap(), &format!("{recompute:?}"));
    }
}

/// The command line of a tiny run.
fn command(run: &Settings, verb: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    c.args(verb);
    if verb[0] == "train" {
        let s = |p: &Path| p.to_str().unwrap().to_owned();
        c.args(["--model", &s(&run.model), "--train-file", &s(&run.train_files[0])]);
        c.args(["--valid-file", &s(run.valid_file.as_ref().unwrap()), "--eval-strategy", "steps"]);
        c.args(["--output-dir", &s(&run.output_dir), "--cache-dir", &s(run.cache_dir.as_ref().unwrap())]);
        c.args([
            "--per-device-train-batch-size",
            "2",
            "--gradient-accumulation-steps",
            "3",
            "--eval-steps",
            "2",
        ]);
        c.args([
            "--learning-rate",
            "5e-3",
            "--weight-decay",
            "0.1",
            "--lora-r",
            "4",
            "--lora-dropout",
            "0.1",
        ]);
        c.args(["--save-steps", "1", "--threads", "1"]);
    }
    c
}

/// Kills a run at its n-th storage operation, n = 1, 2, 3, …, and continues it, until a run survives.
#[test]
fn killed_at_every_write_it_ends_in_the_same_bytes() {
    let base = settings("killed", false);
    let whole = command(&base, &["train"]).output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let reference = results(&base.output_dir).unwrap();
    let mut kills = 0;
    for n in 1..2000 {
        let run = in_folder(&base, "killed");
        let _ = std::fs::remove_dir_all(&run.output_dir);
        let auto = ["train", "--resume-from-checkpoint", "auto"];
        let first = command(&run, &auto).env("QWENTUNE_CRASH_AT", n.to_string()).output().unwrap();
        if first.status.success() {
            assert!(n > 20, "the failpoint never fired");
            break;
        }
        assert!(first.status.code().is_none(), "{n}: {}", String::from_utf8_lossy(&first.stderr));
        kills += 1;
        let second = command(&run, &auto).output().unwrap();
        assert!(second.status.success(), "after kill {n}: {}", String::from_utf8_lossy(&second.stderr));
        assert_same(&reference, &results(&run.output_dir).unwrap(), &format!("killed at write {n}"));
    }
    assert!(kills > 20, "only {kills} kills");
}
