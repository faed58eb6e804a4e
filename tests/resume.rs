//! An interrupted run ends in the same bytes: stopped at every step, killed at every write, at any save
//! interval and number of threads.

use crate::common::{assert_same, results, scratch, tiny_settings, train, train_until};
use qwentune::checkpoint::state::{Best, State};
use qwentune::checkpoint::{format, inspect};
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
/// Names are resolved in the open folder: what took its old path is another run's.
#[test]
fn a_folder_that_is_moved_takes_the_run_in_it_along() {
    let base = settings("moved", false);
    train(&base).unwrap();
    let [here, alone] =
        ["here", "alone"].map(|name| Settings { learning_rate: 1e-3, ..in_folder(&base, name) });
    train(&alone).unwrap();
    let run = in_folder(&base, "here");
    let moved = run.output_dir.with_file_name("there");
    let meanwhile = |event: &Event| {
        if is_step(event, 3) {
            std::fs::rename(&run.output_dir, &moved).unwrap();
            train(&here).unwrap();
        }
        false
    };
    train_until(&run, meanwhile).unwrap();
    assert_same(&results(&base.output_dir).unwrap(), &results(&moved).unwrap(), "the run that was moved");
    assert_same(&results(&alone.output_dir).unwrap(), &results(&here.output_dir).unwrap(), "the other");
}

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
    let (mut kills, mut n) = (0, 0);
    // A save that waits for the writer gives way to a newer one, so the disk decides how many writes a run makes: rounds
    // are added until there were enough kills.
    loop {
        n += 1;
        let run = in_folder(&base, "killed");
        let _ = std::fs::remove_dir_all(&run.output_dir);
        let auto = ["train", "--resume-from-checkpoint", "auto"];
        let at = format!("{n}{}", if n % 2 == 0 { "/2" } else { "" }); // every other one in the middle of a write
        let first = command(&run, &auto).env("QWENTUNE_CRASH_AT", at).output().unwrap();
        if first.status.success() {
            assert!(n > 20, "the failpoint never fired");
            if kills > 100 {
                break;
            }
            n = 0;
            continue;
        }
        assert!(first.status.code().is_none(), "{n}: {}", String::from_utf8_lossy(&first.stderr));
        kills += 1;
        let second = command(&run, &auto).output().unwrap();
        assert!(second.status.success(), "after kill {n}: {}", String::from_utf8_lossy(&second.stderr));
        assert_same(&reference, &results(&run.output_dir).unwrap(), &format!("killed at write {n}"));
    }
    println!("{kills} kills, one at each write");
}

/// Kills with SIGKILL at random moments, again and again, until the run is through.
#[test]
fn killed_at_random_it_ends_in_the_same_bytes() {
    let mut base = settings("random-kills", false);
    base.save_steps = 2.0;
    let long = |run: &Settings| {
        let mut c = command(run, &["train"]);
        c.args(["--resume-from-checkpoint", "auto", "--num-train-epochs", "40"]);
        c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        c
    };
    assert!(long(&base).status().unwrap().success());
    let reference = results(&base.output_dir).unwrap();
    let mut random = crate::common::Lcg(2026);
    let mut kills = 0;
    for chain in 0..12 {
        let run = in_folder(&base, &format!("chain-{chain}"));
        loop {
            let mut child = long(&run).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5 + random.below(75) as u64));
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                break;
            }
            assert!(output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stderr));
            kills += 1;
        }
        assert_same(&reference, &results(&run.output_dir).unwrap(), &format!("chain {chain}"));
    }
    println!("{kills} random kills");
}

/// Resumes from a checkpoint that was altered (and digested again), and says whether the run still ends in
/// the same bytes.
fn ends_the_same_after(name: &str, alter: impl Fn(&mut State)) -> bool {
    let base = settings(&format!("control-{name}"), false);
    train(&base).unwrap();
    let reference = results(&base.output_dir).unwrap();
    let run = in_folder(&base, "altered");
    train_until(&run, |e| is_step(e, 3)).unwrap_err();
    let file = run.output_dir.join("checkpoints/step-00000003.qckpt");
    for older in inspect::list(&run.output_dir).unwrap().iter().filter(|l| l.path != file) {
        std::fs::remove_file(&older.path).unwrap();
    }
    let mut state = inspect::load(&file).unwrap();
    alter(&mut state);
    std::fs::write(&file, format::encode(&state)).unwrap();
    // What the interrupted run had logged would stop a wrong continuation at its first step.
    train(&resuming(&run)).is_ok() && reference == results(&run.output_dir).unwrap()
}

/// Negative controls: a resume that loses any part of the state must be noticed by these tests.
#[test]
fn losing_any_part_of_the_state_is_noticed() {
    assert!(ends_the_same_after("nothing", |_| ()));
    assert!(!ends_the_same_after("first-moments", |s| s.m.fill(0.0)));
    assert!(!ends_the_same_after("second-moments", |s| s.v.fill(0.0)));
    assert!(!ends_the_same_after("one-weight", |s| s.weights[5] += 1e-6));
    assert!(!ends_the_same_after("best", |s| s.cursor.best =
        s.cursor.best.map(|best| Best { loss: 0.0, ..best })));
    assert!(!ends_the_same_after("tokens", |s| s.cursor.tokens += 1));
    assert!(!ends_the_same_after("horizon", |s| s.history.lengths[0].total_steps += 1));
    assert!(!ends_the_same_after("cursor", |s| {
        s.step -= 1;
        s.cursor.samples -= 6;
        s.log.pop();
    }));
}

#[test]
fn a_repeated_step_is_compared_with_what_was_logged() {
    let base = settings("repeated", false);
    let mut run = in_folder(&base, "repeated");
    run.save_steps = 2.0;
    train_until(&run, |e| is_step(e, 5)).unwrap_err();
    std::fs::remove_file(run.output_dir.join("checkpoints/step-00000005.qckpt")).unwrap();
    // A save still waiting for the writer gives way to a newer one, so step 4's may never have been written.
    let newest = inspect::list(&run.output_dir).unwrap()[0].header.as_ref().unwrap().step;
    let seen = std::cell::RefCell::new(None);
    train_until(&resuming(&run), |e| {
        if let Event::Repeated { first, last } = e {
            *seen.borrow_mut() = Some((*first, *last));
        }
        false
    })
    .unwrap();
    assert!(newest < 5);
    assert_eq!(seen.into_inner(), Some((newest + 1, 5)));
}

#[test]
fn a_step_that_does_not_repeat_ends_the_run() {
    let base = settings("not-repeated", false);
    let mut run = in_folder(&base, "run");
    run.save_steps = 2.0;
    train_until(&run, |e| is_step(e, 5)).unwrap_err();
    std::fs::remove_file(run.output_dir.join("checkpoints/step-00000005.qckpt")).unwrap();
    let path = run.output_dir.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let last = text.lines().find(|l| l.contains("\"step\":5")).unwrap();
    let changed = last.replacen("\"loss\":4.", "\"loss\":5.", 1);
    assert_ne!(last, changed);
    std::fs::write(&path, text.replace(last, &changed)).unwrap();
    let error = train(&resuming(&run)).unwrap_err();
    assert_eq!(error.kind, Kind::Check, "{error}");
    assert!(error.to_string().contains("step 5"), "{error}");
}

/// The summary is the run's, however many processes it took: its losses are the first and last of the log.
#[test]
fn a_summary_is_of_the_whole_run() {
    let base = settings("summary", false);
    let whole = train(&base).unwrap();
    let run = in_folder(&base, "interrupted");
    train_until(&run, |e| is_step(e, 4)).unwrap_err();
    let resumed = train(&resuming(&run)).unwrap();
    assert_eq!((resumed.loss, resumed.eval_loss), (whole.loss, whole.eval_loss));
    let again = train(&resuming(&run)).unwrap();
    assert_eq!((again.trained, again.loss), (0, whole.loss), "nothing was trained, the run is the same");
}

#[test]
fn patience_survives_an_interruption() {
    let mut base = settings("patience", false);
    base.learning_rate = 0.0; // nothing ever improves on the first evaluation
    base.eval_steps = Some(1.0);
    base.early_stopping_patience = Some(2);
    assert_eq!(train(&base).unwrap().step, 3);
    let reference = results(&base.output_dir).unwrap();
    let run = in_folder(&base, "interrupted");
    train_until(&run, |e| is_step(e, 2)).unwrap_err();
    assert_eq!(train(&resuming(&run)).unwrap().step, 3);
    assert_same(&reference, &results(&run.output_dir).unwrap(), "interrupted");
    assert_eq!(train(&resuming(&run)).unwrap().step, 3, "a finished run stays finished");
}

#[test]
fn the_best_evaluation_is_published_also_after_an_interruption() {
    let mut base = settings("best", false);
    base.learning_rate = 0.5; // overshoots: an early evaluation is the best
    base.eval_steps = Some(1.0);
    base.load_best_model_at_end = true;
    train(&base).unwrap();
    let reference = results(&base.output_dir).unwrap();
    let file = "adapter_model.safetensors";
    let best = std::fs::read(base.output_dir.join("best").join(file)).unwrap();
    assert_eq!(best, reference["adapter"]);
    let run = in_folder(&base, "interrupted");
    train_until(&run, |e| is_step(e, 4)).unwrap_err();
    train(&resuming(&run)).unwrap();
    assert_same(&reference, &results(&run.output_dir).unwrap(), "interrupted");
}

/// A run whose best evaluation is not its last, and the step of the best.
fn with_a_best(name: &str) -> (Settings, u64) {
    let mut run = settings(name, false);
    run.learning_rate = 0.5; // overshoots: an early evaluation is the best
    run.eval_steps = Some(1.0);
    run.load_best_model_at_end = true;
    // A save that comes while another is being written is left out; the best step's is needed here.
    for _ in 0..100 {
        train(&run).unwrap();
        let newest = inspect::path_of_step(&run.output_dir, STEPS);
        let best = inspect::load(&newest).unwrap().cursor.best.unwrap();
        assert!(best.step < STEPS);
        if inspect::path_of_step(&run.output_dir, best.step).exists() {
            return (run, best.step);
        }
        std::fs::remove_dir_all(&run.output_dir).unwrap();
    }
    panic!("the best step's save was left out each time");
}

/// What is published is checked: a best adapter that is damaged or another's is taken from the checkpoint of its step.
#[test]
fn a_damaged_best_adapter_is_never_published() {
    let (run, best) = with_a_best("damaged-best");
    let reference = results(&run.output_dir).unwrap();
    let weights = |folder: &str| run.output_dir.join(folder).join("adapter_model.safetensors");
    let whole = std::fs::read(weights("best")).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let last = whole.len() - 1;
    for damaged in [flipped(last), flipped(9), whole[..last].to_vec(), Vec::new()] {
        std::fs::write(weights("best"), damaged).unwrap();
        train(&resuming(&run)).unwrap();
        assert_same(&reference, &results(&run.output_dir).unwrap(), "after damage");
        assert_eq!(std::fs::read(weights("best")).unwrap(), whole, "mended");
    }
    std::fs::remove_dir_all(run.output_dir.join("best")).unwrap();
    train(&resuming(&run)).unwrap();
    assert_same(&reference, &results(&run.output_dir).unwrap(), "after a loss");

    std::fs::write(weights("best"), flipped(last)).unwrap();
    std::fs::remove_file(inspect::path_of_step(&run.output_dir, best)).unwrap();
    let error = train(&resuming(&run)).unwrap_err();
    assert_eq!(error.kind, Kind::Input, "{error}");
    let (text, folder) = (error.to_string(), run.output_dir.join("best").display().to_string());
    for words in [folder.as_str(), &format!("step {best}"), "--load-best-model-at-end false"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(std::fs::read(weights("adapter")).unwrap(), reference["adapter"], "what was published stays");
}

/// The page of a run is there from its first checkpoint on, also when the run was stopped.
#[test]
fn a_report_is_there_however_the_run_ended() {
    let mut run = settings("report", false);
    run.save_steps = 2.0;
    let page = run.output_dir.join("report.html");
    let saved = std::cell::Cell::new(false);
    train_until(&run, |e| {
        if matches!(e, Event::Step { .. }) && saved.get() {
            assert!(page.exists(), "after a checkpoint was saved");
        }
        saved.set(saved.get() || matches!(e, Event::Saved { .. }));
        is_step(e, 5)
    })
    .unwrap_err();
    let stopped = std::fs::read_to_string(&page).unwrap();
    assert!(stopped.contains("<td>steps</td><td>5</td>"), "{stopped}");
    std::fs::remove_file(&page).unwrap();
    assert_eq!(qwentune::train::report::write(&run.output_dir).unwrap(), page);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), stopped, "made again");
}

#[test]
fn an_extended_run_is_the_same_however_it_was_interrupted() {
    let base = settings("extended", false);
    let extended = |run: &Settings| Settings { max_steps: Some(STEPS + 4), ..resuming(run) };
    train(&base).unwrap();
    train(&extended(&base)).unwrap();
    let reference = results(&base.output_dir).unwrap();
    let run = in_folder(&base, "interrupted");
    train(&run).unwrap();
    train_until(&extended(&run), |e| is_step(e, STEPS + 2)).unwrap_err();
    train(&extended(&run)).unwrap();
    assert_same(&reference, &results(&run.output_dir).unwrap(), "extended and interrupted");
}
