//! Training from a program's own rows: the example as it stands, and rows in memory against rows in a file.

#[cfg(feature = "text")]
use crate::common::assert_same;
use crate::common::{results, scratch, tiny_settings, train};
use qwentune::config::{ResumeFrom, Settings, Strategy};
use qwentune::data::dataset::{IGNORED, Row, Rows};
use qwentune::error::{Error, Kind, Result};
use qwentune::report::event::Event;
use qwentune::train::{self, Control, Request, Summary};

#[cfg(feature = "text")]
use second::embed as first;
#[cfg(feature = "text")]
#[path = "../examples/resume_and_merge.rs"]
mod second;

#[cfg(feature = "text")]
#[test]
fn the_examples_stop_go_on_and_end_in_the_same_bytes() {
    let mains: [fn() -> Result<()>; 2] = [first::main, second::main];
    let _ = mains; // Their parts are what is run here.
    let folder = scratch("embed");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quickstart/model");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let stopped = first::train_until(first::request(model, &path("two")).unwrap(), 5).unwrap_err();
    assert_eq!(stopped.kind, Kind::Stopped);
    second::go_on_and_merge(model, &path("two"), &path("merged")).unwrap();
    assert!(folder.join("merged/model.safetensors").exists());
    let summary = first::train_until(first::request(model, &path("one")).unwrap(), 0).unwrap();
    assert_eq!((summary.step, summary.total_steps), (24, 24));
    let expected = results(&folder.join("one")).unwrap();
    assert_same(&expected, &results(&folder.join("two")).unwrap(), "stopped and continued");
}

fn rows_of(path: &std::path::Path) -> Vec<Row> {
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(value["input_ids"].clone()).unwrap();
        Row { labels: ids.iter().map(|&id| id as i32).collect(), ids }
    };
    text.lines().map(row).collect()
}

/// Settings of a run with evaluation, and its files' rows.
fn with_rows(name: &str) -> (Settings, Settings, Rows) {
    let mut file = tiny_settings(&scratch(name));
    let folder = file.model.parent().unwrap().to_owned();
    file.valid_file = Some(folder.join("dev.jsonl"));
    file.eval_strategy = Strategy::Epoch;
    file.load_best_model_at_end = true;
    let rows = Rows { train: rows_of(&folder.join("train.jsonl")), eval: rows_of(&folder.join("dev.jsonl")) };
    let memory = Settings {
        train_files: Vec::new(),
        valid_file: None,
        output_dir: folder.join("memory"),
        ..file.clone()
    };
    (file, memory, rows)
}

fn go(settings: &Settings, rows: &Rows, stop_after: Option<u64>) -> Result<Summary> {
    let control = Control::default();
    let mut observer = |event: &Event| match event {
        Event::Step { line, .. } if Some(line.step) == stop_after => control.request_stop(),
        _ => {}
    };
    let request = Request { rows: Some(rows.clone()), ..Request::new(settings) };
    train::train(request, &control, &mut observer)
}

fn resuming(settings: &Settings) -> Settings {
    Settings { resume_from_checkpoint: Some(ResumeFrom::Auto), ..settings.clone() }
}

#[test]
fn rows_in_memory_train_as_the_same_rows_in_a_file() {
    let (file, memory, rows) = with_rows("rows-and-file");
    train(&file).unwrap();
    let stopped = go(&memory, &rows, Some(3)).unwrap_err();
    assert_eq!(stopped.kind, Kind::Stopped);
    assert!(stopped.remedy.contains("ResumeFrom::Auto"), "{stopped}");
    go(&resuming(&memory), &rows, None).unwrap();
    let (a, b) = (results(&file.output_dir).unwrap(), results(&memory.output_dir).unwrap());
    for name in ["adapter", "config", "metrics"] {
        assert_eq!(a[name], b[name], "{name}");
    }
    let finished = go(&resuming(&memory), &rows, None).unwrap();
    assert_eq!(finished.trained, 0, "nothing was left to do");
}

#[test]
fn a_resume_with_other_rows_is_refused() {
    let (_, memory, rows) = with_rows("other-rows");
    go(&memory, &rows, Some(3)).unwrap_err();
    let mut other = rows.clone();
    other.train[4].labels[1] = IGNORED;
    let error = go(&resuming(&memory), &other, None).unwrap_err();
    assert_eq!(error.kind, Kind::Refused, "{error}");
    assert!(error.what.contains("data.train.digest"), "{error}");
    other = rows.clone();
    other.eval.pop();
    let error = go(&resuming(&memory), &other, None).unwrap_err();
    assert!(error.what.contains("data.eval.rows 4 -> 3"), "{error}");
    go(&resuming(&memory), &rows, None).unwrap();
}

#[test]
fn rows_are_checked_as_those_of_a_file_are() {
    let (file, memory, rows) = with_rows("bad-rows");
    let fault = |settings: &Settings, change: &dyn Fn(&mut Rows)| -> Error {
        let mut changed = rows.clone();
        change(&mut changed);
        go(settings, &changed, None).unwrap_err()
    };
    let all = fault(&memory, &|rows| {
        rows.train[0].ids[2] = 64;
        rows.train[0].labels[2] = 64;
        rows.train[3].labels.pop();
        rows.train[5] = Row { ids: vec![], labels: vec![] };
        rows.train[7].labels[0] = 63 - rows.train[7].labels[0];
    });
    assert_eq!(all.kind, Kind::Input);
    for words in [
        "training rows:1: token 64 at position 2 is outside the vocabulary of 64",
        "training rows:4: ",
        "training rows:6: there are no tokens",
        "training rows:8: label",
    ] {
        assert!(all.what.contains(words), "{words}: {all}");
    }
    let none = fault(&memory, &|rows| rows.train.clear());
    assert!(none.what.contains("training rows: 0 usable rows of 0"), "{none}");
    let short = Settings { cutoff_len: 2, ..memory.clone() };
    let long = fault(&short, &|_| {});
    assert!(long.what.contains("training rows: 0 usable rows of 11"), "{long}");
    let both = fault(&Settings { output_dir: memory.output_dir.clone(), ..file }, &|_| {});
    assert_eq!(both.kind, Kind::Usage, "{both}");
    let zero = fault(&Settings { lora_r: 0, ..memory.clone() }, &|_| {});
    assert_eq!((zero.kind, zero.what.as_str()), (Kind::Usage, "lora_r must be at least 1"));
}
