//! Command lines that name several ways to begin: what is chosen is what their users mean, and it is said.

use crate::common::{metrics_without_clock, results, scratch, tiny_settings, train_until};
use qwentune::checkpoint::storage::FileSystem;
use qwentune::config::{ResumeFrom, Settings};
use qwentune::error::Result;
use qwentune::report::event::Event;
use qwentune::train::start::complete_state;
use qwentune::train::{self, Control, Request, Summary};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Runs to the end; the notes it gave.
fn notes(settings: &Settings) -> (Result<Summary>, Vec<String>) {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notes);
    let mut observer = move |event: &Event| {
        if let Event::Note(text) = event {
            heard.lock().unwrap().push(text.clone());
        }
    };
    let request = Request { command_line: vec!["test".into()], ..Request::new(settings) };
    let summary = train::train(request, &Control::default(), &mut observer);
    let notes = notes.lock().unwrap().clone();
    (summary, notes)
}

/// A run that was stopped in its third step, in `folder/run`.
fn stopped(folder: &Path) -> Settings {
    let settings = Settings { save_total_limit: 20, ..tiny_settings(folder) };
    let stop = train_until(&settings, |event| matches!(event, Event::Step { line, .. } if line.step == 3));
    assert_eq!(stop.unwrap_err().exit_code(), 75);
    settings
}

fn said(notes: &[String], what: &str) -> bool {
    notes.iter().any(|note| note.contains(what))
}

/// `folder/adapter` of a finished run like the others, begun and ended in `folder/first`.
fn finished(folder: &Path) -> Settings {
    let mut settings = tiny_settings(folder);
    settings.output_dir = folder.join("first");
    train_until(&settings, |_| false).unwrap();
    settings
}

#[test]
fn auto_beside_a_checkpoint_folder_continues_the_complete_state_there() {
    let folder = scratch("origin-auto");
    let whole = finished(&folder);
    let old = stopped(&folder);
    for given in [old.output_dir.clone(), old.output_dir.join("adapter")] {
        let new = folder.join(format!("new-{}", given.file_name().unwrap().to_str().unwrap()));
        let asked = Settings {
            resume_from_checkpoint: Some(ResumeFrom::Auto),
            init_adapter: Some(given.clone()),
            overwrite_output_dir: true,
            output_dir: new.clone(),
            ..old.clone()
        };
        std::fs::create_dir_all(&given).unwrap();
        let (summary, notes) = notes(&asked);
        summary.unwrap();
        assert!(said(&notes, "the complete state in") && said(&notes, "resumed at step 3"), "{notes:?}");
        // What was not logged here was computed elsewhere; what was computed is the same.
        assert_eq!(results(&new).unwrap()["adapter"], results(&whole.output_dir).unwrap()["adapter"]);
        // The same line again finds the run that is there now.
        let (summary, notes) = self::notes(&asked);
        summary.unwrap();
        assert!(said(&notes, "training complete") && !said(&notes, "weights only"), "{notes:?}");
        assert!(old.output_dir.join("checkpoints").is_dir());
    }
}

#[test]
fn weights_alone_begin_at_step_0_and_the_flag_that_continues_is_named() {
    let folder = scratch("origin-weights");
    let first = finished(&folder);
    let begin = Settings {
        init_adapter: Some(first.output_dir.clone()),
        output_dir: folder.join("second"),
        max_steps: Some(1),
        ..first.clone()
    };
    let (summary, notes) = notes(&begin);
    summary.unwrap();
    assert!(said(&notes, "weights only: step 0 of 1"), "{notes:?}");
    let state = format!("--resume-from-checkpoint {}", first.output_dir.display());
    assert!(said(&notes, &state), "{notes:?}");
    // A bare adapter holds nothing to resume.
    let bare = folder.join("bare");
    std::fs::create_dir(&bare).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(first.output_dir.join("adapter").join(name), bare.join(name)).unwrap();
    }
    let asked = Settings {
        resume_from_checkpoint: Some(ResumeFrom::Auto),
        init_adapter: Some(bare.clone()),
        output_dir: folder.join("third"),
        ..begin.clone()
    };
    let error = self::notes(&asked).0.unwrap_err();
    assert_eq!(error.exit_code(), 65, "{error}");
    assert!(error.what.contains("weights only") && !asked.output_dir.exists(), "{error}");
    let (summary, notes) = self::notes(&Settings { resume_from_checkpoint: None, ..asked });
    summary.unwrap();
    assert!(said(&notes, "weights only") && !said(&notes, "complete state"), "{notes:?}");
    // Begun with weights, interrupted, and started by a line that names both: its own run is continued.
    let (summary, notes) = self::notes(&Settings {
        resume_from_checkpoint: Some(ResumeFrom::Auto),
        max_steps: Some(2),
        ..begin
    });
    assert_eq!(summary.unwrap().step, 2);
    assert!(said(&notes, "resumed at step 1 of 2"), "{notes:?}");
}

#[test]
fn overwriting_takes_nothing_away_that_the_run_reads() {
    let folder = scratch("origin-overwrite");
    let whole = finished(&folder);
    let old = stopped(&folder);
    let checkpoint = old.output_dir.join("checkpoints/step-00000003.qckpt");
    let begins = [ResumeFrom::Auto, ResumeFrom::Step(3), ResumeFrom::Path(checkpoint)];
    for from in begins {
        let asked =
            Settings { resume_from_checkpoint: Some(from), overwrite_output_dir: true, ..old.clone() };
        let (summary, notes) = notes(&asked);
        summary.unwrap();
        assert!(said(&notes, "--overwrite-output-dir has no effect"), "{notes:?}");
        assert!(!old.output_dir.join("replaced-run-1").exists());
    }
    assert_eq!(metrics_without_clock(&old.output_dir), metrics_without_clock(&whole.output_dir));
    // Weights that would be moved aside before they are read.
    let asked = Settings {
        init_adapter: Some(old.output_dir.join("adapter")),
        overwrite_output_dir: true,
        ..old.clone()
    };
    let error = notes(&asked).0.unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.what.contains("would move aside") && old.output_dir.join("adapter").is_dir(), "{error}");
    // A state from elsewhere, into a folder that holds another run: that one is moved aside and stays whole.
    let asked = Settings {
        resume_from_checkpoint: Some(ResumeFrom::Path(whole.output_dir.clone())),
        overwrite_output_dir: true,
        ..old.clone()
    };
    notes(&asked).0.unwrap();
    assert!(old.output_dir.join("replaced-run-1/checkpoints").is_dir());
    assert!(whole.output_dir.join("checkpoints").is_dir());
}

#[test]
fn a_state_begun_with_an_adapter_continues_elsewhere() {
    let folder = scratch("origin-begun");
    let first = finished(&folder);
    let begun = Settings {
        init_adapter: Some(first.output_dir.join("adapter")),
        output_dir: folder.join("begun"),
        ..first.clone()
    };
    let stop = train_until(&begun, |event| matches!(event, Event::Step { line, .. } if line.step == 2));
    assert_eq!(stop.unwrap_err().exit_code(), 75);
    let elsewhere = Settings {
        resume_from_checkpoint: Some(ResumeFrom::Path(begun.output_dir.clone())),
        init_adapter: None,
        output_dir: folder.join("elsewhere"),
        ..begun
    };
    let (summary, notes) = notes(&elsewhere);
    summary.unwrap();
    assert!(said(&notes, "resumed at step 2"), "{notes:?}");
}

#[test]
fn what_another_trainer_left_in_the_output_folder_is_not_passed_over() {
    let folder = scratch("origin-trainer");
    let settings = tiny_settings(&folder);
    for name in ["checkpoint-9", "checkpoint-10", "checkpoint-11"] {
        std::fs::create_dir_all(settings.output_dir.join(name)).unwrap();
    }
    for name in ["checkpoint-9", "checkpoint-10"] {
        std::fs::write(settings.output_dir.join(name).join("trainer_state.json"), "{}").unwrap();
    }
    let newest = settings.output_dir.join("checkpoint-10");
    assert_eq!(complete_state(&FileSystem, &settings.output_dir).unwrap(), Some(newest.clone()));
    assert_eq!(complete_state(&FileSystem, &newest).unwrap(), Some(newest));
    let asked = Settings { resume_from_checkpoint: Some(ResumeFrom::Auto), ..settings };
    // Its state is empty, so it cannot be read; it must not become a new run.
    let (summary, notes) = notes(&asked);
    assert!(summary.is_err(), "{notes:?}");
    assert!(said(&notes, "checkpoint-10 is continued"), "{notes:?}");
}
