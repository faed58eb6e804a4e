//! `evaluate` on a file: the losses a run logged, to the bit, for the base model and for an adapter.

use crate::common::{metrics_without_clock, scratch, tiny_settings, train};
use qwentune::config::{Settings, Strategy};
use qwentune::report::event::Event;
use qwentune::train::evaluate::evaluate;
use serde_json::Value;

#[test]
fn base_and_adapter_have_the_losses_that_the_run_logged() {
    let folder = scratch("evaluate");
    let mut settings = tiny_settings(&folder);
    settings.valid_file = Some(folder.join("dev.jsonl"));
    settings.eval_strategy = Strategy::Epoch;
    settings.eval_on_start = true;
    train(&settings).unwrap();
    let logged: Vec<f64> = metrics_without_clock(&settings.output_dir)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["eval_loss"].as_f64())
        .collect();
    let (first, last) = (logged[0], logged[logged.len() - 1]);
    assert!(last < first, "{logged:?}");

    let of = |init_adapter| {
        let asked = Settings { init_adapter, train_files: Vec::new(), ..settings.clone() };
        evaluate(&asked, &mut |_: &Event| {}).unwrap()
    };
    let report = of(Some(settings.output_dir.join("adapter")));
    assert_eq!(of(Some(settings.output_dir.clone())), report, "a run's folder means its adapter");
    assert_eq!((report.base.loss, report.adapter.unwrap().loss), (first, last));
    assert!((report.base.perplexity.ln() - first).abs() < 1e-12);
    let rows = std::fs::read_to_string(settings.valid_file.as_ref().unwrap()).unwrap().lines().count();
    assert_eq!(report.rows, rows as u64);
    let base = of(None);
    assert_eq!((base.base, base.adapter, base.tokens), (report.base, None, report.tokens));
    // Another batch size is another padding, not another sum to speak of.
    let one = Settings { per_device_eval_batch_size: 1, ..settings.clone() };
    let one = evaluate(&one, &mut |_: &Event| {}).unwrap();
    assert!((one.base.loss - first).abs() < 1e-5, "{} {first}", one.base.loss);
    assert_eq!(one.tokens, report.tokens);

    let none = evaluate(&Settings { valid_file: None, ..settings }, &mut |_: &Event| {}).unwrap_err();
    assert_eq!(none.exit_code(), 2);
}

/// Evaluating plans no gradients, no moments, and keeps nothing for a backward pass; the plan of a run says how much that is.
#[test]
fn evaluating_needs_less_memory_than_training() {
    let folder = scratch("evaluate-memory");
    let settings = tiny_settings(&folder);
    let report = qwentune::train::plan(&settings, &mut |_: &Event| {}).unwrap();
    let training: u64 = report.arena.iter().map(|(_, bytes)| bytes).sum();
    let moments_and_gradients = 3 * 4 * report.trainable;
    assert!(report.evaluation > 0 && report.evaluation + moments_and_gradients < training, "{report:?}");
}
