//! Adapters whose layers differ, and adapters folded into the base: patterns against PEFT's own rule, what is
//! refused by name, resuming, and the arithmetic of folding.

use crate::common::{Lcg, assert_same, results, scratch, tiny_settings, train, train_until};
use qwentune::checkpoint::storage::FileSystem;
use qwentune::config::{Recompute, ResumeFrom, Settings, Targets};
use qwentune::device::Matrix;
use qwentune::element::Element;
use qwentune::error::Kind;
use qwentune::formats::peft;
use qwentune::model::lora::Slot;
use qwentune::model::patterns::Patterns;
use qwentune::model::{Adapter, AdapterSpec, Layout, Spec, Weights, fold};
use qwentune::report::event::Event;
use qwentune::train::run_file::RunFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn table<T>(rows: &[(&str, T)]) -> BTreeMap<String, T>
where
    T: Copy,
{
    rows.iter().map(|(pattern, value)| ((*pattern).to_owned(), *value)).collect()
}

fn names(list: &[&str]) -> Targets {
    Targets::Names(list.iter().map(|name| (*name).to_owned()).collect())
}

fn tiny_spec(name: &str) -> (Settings, Spec) {
    let settings = tiny_settings(&scratch(name));
    let spec = Spec::read(&settings.model).unwrap();
    (settings, spec)
}

// ---- patterns ---------------------------------------------------------------------------------------------

#[test]
fn patterns_match_what_peft_matches() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/peft_patterns.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let modules: Vec<String> = serde_json::from_value(golden["modules"].clone()).unwrap();
    let matches: BTreeMap<String, Vec<String>> = serde_json::from_value(golden["matches"].clone()).unwrap();
    assert!(matches.len() > 30 && modules.len() > 30);
    for (pattern, expected) in &matches {
        let ours = Patterns::new("rank_pattern", &table(&[(pattern, 4)])).unwrap();
        for module in &modules {
            let found = ours.get(module).unwrap().is_some();
            assert_eq!(found, expected.contains(module), "{pattern} {module}");
        }
    }
}

#[test]
fn patterns_that_two_engines_read_differently_are_refused_by_name() {
    let long = "a".repeat(513);
    let bad = [
        "",
        &long,
        "(?i)q_proj",
        "q(?=_proj)",
        "(?P<x>q)",
        "(q",
        "q)",
        "a)|(b",
        "q{,2}",
        "q{a}",
        "q{1,2",
        "[[a]b]",
        "[a&&b]",
        "[]",
        "[^]",
        "[a--b]",
        "[\\d]",
        "\\Aq",
        "q\\Z",
        "\\bq",
        "(q)\\1",
        "a**",
        "a+?",
        "a++",
        "*q",
        "q proj",
        "q/proj",
        "q_проj",
        "+",
        "(a{999}){999}{9}",
        "(((a{999}){999}){999})",
    ];
    for pattern in bad {
        let error = Patterns::new("alpha_pattern", &table(&[(pattern, 4.0)])).err().expect(pattern);
        assert_eq!(error.kind, Kind::Usage, "{pattern}");
        assert!(error.what.contains("alpha_pattern") && error.what.contains("not supported"), "{error}");
    }
}

#[test]
fn patterns_that_contradict_each_other_or_match_nothing_are_refused() {
    let (_, model) = tiny_spec("pattern-faults");
    let layout = |ranks: &[(&str, usize)], layers: Option<Vec<usize>>| {
        let plain = AdapterSpec::from_settings(&Settings::default());
        Layout::new(&model, &AdapterSpec { rank_pattern: table(ranks), layers, ..plain })
    };
    let two = [("q_proj", 2), ("layers.1.self_attn.q_proj", 3)];
    let error = layout(&two, None).unwrap_err();
    assert!(error.what.contains("\"q_proj\"") && error.what.contains("layers.1"), "{error}");
    layout(&two, Some(vec![0])).unwrap_err(); // the second matches no adapted layer
    layout(&[("q_proj", 2), ("layers.1.self_attn.q_proj", 2)], None).unwrap();
    let error = layout(&[("q_prj", 2)], None).unwrap_err();
    assert!(error.what.contains("\"q_prj\" matches no adapted layer"), "{error}");
    let error = layout(&[], Some(vec![0, 2])).unwrap_err();
    assert!(error.what.contains("block 2") && error.remedy.contains("0 to 1"), "{error}");
}

// ---- layouts ----------------------------------------------------------------------------------------------

#[test]
fn every_layer_has_its_own_rank_and_scale() {
    let (settings, model) = tiny_spec("ranks");
    let mut wanted = AdapterSpec {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: names(&["q_proj", "up_proj"]),
        exclude: None,
        rslora: false,
        rank_pattern: table(&[("layers.1.*.q_proj", 16), ("up_proj", 2)]),
        alpha_pattern: table(&[("^model.layers.0.self_attn.q_proj", 3.0)]),
        layers: None,
    };
    let found = |wanted: &AdapterSpec| {
        let layout = Layout::new(&model, wanted).unwrap();
        layout.slots.iter().map(|slot| (slot.layer, slot.rank, slot.scale)).collect::<Vec<_>>()
    };
    assert_eq!(found(&wanted), [(0, 4, 0.75), (0, 2, 4.0), (1, 16, 0.5), (1, 2, 4.0)]);
    wanted.rslora = true;
    let root = std::f64::consts::SQRT_2;
    let scales = [1.5, (8.0 / root) as f32, 2.0, (8.0 / root) as f32];
    assert_eq!(found(&wanted).iter().map(|row| row.2).collect::<Vec<_>>(), scales);

    let layout = Layout::new(&model, &wanted).unwrap();
    let values: Vec<f32> = (0..layout.len).map(|i| i as f32 * 0.37 - 5.0).collect();
    let folder = settings.output_dir.parent().unwrap().join("adapter");
    peft::write(&folder, &layout.to_peft(&wanted, "base", &values)).unwrap();
    let read = Adapter::read(&folder, &model).unwrap();
    assert_eq!((&read.spec, &read.layout, &read.values), (&wanted, &layout, &values));
}

/// PEFT, which knows only the names in `adapter_config.json`, must adapt the same layers.
#[test]
fn the_names_that_are_written_name_the_same_layers() {
    let (_, model) = tiny_spec("names");
    let q = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    type Case<'a> = (&'a [&'a str], Option<Vec<usize>>, &'a [&'a str]);
    let rows: [Case<'_>; 5] = [
        (&["q_proj", "mlp.up_proj"], None, &["q_proj", "up_proj"]),
        (&["q_proj"], Some(vec![1]), &["q_proj"]),
        (&["layers.1.self_attn.q_proj"], None, &[&q(1)]),
        (&[&q(0)], Some(vec![1]), &[&q(0)]), // a whole name counts in every block
        (&[&q(0), &q(1)], None, &["q_proj"]),
    ];
    for (targets, layers, expected) in rows {
        let plain = AdapterSpec::from_settings(&Settings::default());
        let wanted = AdapterSpec { targets: names(targets), layers, ..plain };
        let layout = Layout::new(&model, &wanted).unwrap();
        let config = layout.to_peft(&wanted, "", &vec![0.0; layout.len]).config;
        assert_eq!(config.target_modules, names(expected), "{targets:?}");
        let again = Layout::new(&model, &AdapterSpec::from_peft(&config)).unwrap();
        assert_eq!(again, layout, "{targets:?}");
    }
}

// ---- runs -------------------------------------------------------------------------------------------------

fn mixed(name: &str) -> Settings {
    let mut settings = tiny_settings(&scratch(name));
    settings.lora_rank_pattern = table(&[("(q|up)_proj", 7), ("down_proj", 1)]);
    settings.lora_alpha_pattern = table(&[("layers.1.*.v_proj", 2.5)]);
    settings.loraplus_lr_ratio = 2.0;
    settings
}

fn beside(settings: &Settings, name: &str) -> Settings {
    Settings { output_dir: settings.output_dir.parent().unwrap().join(name), ..settings.clone() }
}

fn resuming(settings: &Settings) -> Settings {
    Settings { resume_from_checkpoint: Some(ResumeFrom::Auto), ..settings.clone() }
}

fn after(step: u64) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Step { line, .. } if line.step == step)
}

#[test]
fn a_run_of_mixed_ranks_is_the_same_however_it_is_computed() {
    // The second block alone has the larger ranks, or is the only one adapted.
    for layers in [None, Some(vec![1]), Some(vec![0])] {
        let mut base = mixed(&format!("mixed-{layers:?}"));
        if layers.is_some() {
            base.lora_alpha_pattern.clear();
        } else {
            base.lora_rank_pattern.insert("layers.1.self_attn.k_proj".into(), 9);
        }
        base.layers_to_transform = layers.clone();
        base.recompute = Recompute::None;
        train(&base).unwrap();
        let reference = results(&base.output_dir).unwrap();
        for recompute in [Recompute::Mlp, Recompute::Full] {
            let run = Settings { recompute, ..beside(&base, &format!("{recompute:?}")) };
            train_until(&run, after(2)).unwrap_err();
            train(&resuming(&run)).unwrap();
            assert_same(&reference, &results(&run.output_dir).unwrap(), &format!("{layers:?} {recompute:?}"));
        }
        let trained = peft::read(&base.output_dir.join("adapter")).unwrap();
        assert_eq!(trained.config.layers_to_transform, layers);
        let moved = |t: &&peft::AdapterTensor| t.values.iter().any(|v| *v != 0.0);
        assert_eq!(trained.tensors.iter().filter(moved).count(), trained.tensors.len(), "{layers:?}");
    }
}

#[test]
fn other_patterns_are_another_run() {
    let base = mixed("other-patterns");
    train_until(&base, after(2)).unwrap_err();
    let mut changed = resuming(&base);
    changed.lora_alpha_pattern = table(&[("layers.1.*.v_proj", 2.0)]);
    let error = train(&changed).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.what.contains("lora_alpha_pattern is "), "{error}");
}

// ---- several adapters -------------------------------------------------------------------------------------

/// Writes an adapter of the tiny model with random values.
fn write_adapter(settings: &Settings, name: &str, seed: u64, targets: &[&str]) -> PathBuf {
    let model = Spec::read(&settings.model).unwrap();
    let wanted = AdapterSpec {
        rank: 3,
        targets: names(targets),
        rank_pattern: table(&[("q_proj", 5)]),
        ..AdapterSpec::from_settings(settings)
    };
    let layout = Layout::new(&model, &wanted).unwrap();
    let mut random = Lcg(seed);
    let values: Vec<f32> = (0..layout.len).map(|_| random.unit() * 0.3).collect();
    let folder = settings.output_dir.parent().unwrap().join(name);
    peft::write(&folder, &layout.to_peft(&wanted, "", &values)).unwrap();
    folder
}

fn folding(name: &str) -> Settings {
    let mut settings = tiny_settings(&scratch(name));
    settings.fold_adapters = vec![
        write_adapter(&settings, "a", 1, &["q_proj", "down_proj"]),
        write_adapter(&settings, "b", 2, &["q_proj", "k_proj"]),
    ];
    settings.init_adapter = Some(write_adapter(&settings, "c", 3, &["q_proj", "o_proj"]));
    settings
}

#[test]
fn folded_adapters_are_part_of_the_base() {
    let base = folding("folded");
    let said = std::cell::RefCell::new(String::new());
    train_until(&base, |event| {
        if let Event::Note(text) = event {
            *said.borrow_mut() += text;
        }
        false
    })
    .unwrap();
    let list = base.fold_adapters.iter().map(|p| p.to_str().unwrap()).collect::<Vec<_>>().join(",");
    assert!(said.borrow().contains(&format!("folded into the base: {list}")), "{}", said.borrow());
    let reference = results(&base.output_dir).unwrap();
    let trained = peft::read(&base.output_dir.join("adapter")).unwrap();
    assert_eq!(trained.config.target_modules, names(&["o_proj", "q_proj"]));

    let alone = Settings { fold_adapters: Vec::new(), ..beside(&base, "alone") };
    train(&alone).unwrap();
    assert_ne!(reference["adapter"], results(&alone.output_dir).unwrap()["adapter"]);

    // The one it began with is not needed to continue, the folded ones are.
    let run = beside(&base, "interrupted");
    train_until(&run, after(2)).unwrap_err();
    let first = base.init_adapter.as_ref().unwrap();
    std::fs::rename(first, first.with_extension("gone")).unwrap();
    let run = RunFile::read(&FileSystem, &run.output_dir).unwrap().settings; // its ranks and targets are in it
    train_until(&resuming(&run), after(3)).unwrap_err();
    let other = write_adapter(&base, "a", 9, &["q_proj", "down_proj"]);
    let error = train(&resuming(&run)).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.what.contains("adapter.folded.0"), "{error}");
    std::fs::remove_dir_all(&other).unwrap();
    let error = train(&resuming(&run)).unwrap_err();
    assert!(error.kind == Kind::Input && error.what.contains("no such adapter folder"), "{error}");
    write_adapter(&base, "a", 1, &["q_proj", "down_proj"]);
    train(&resuming(&run)).unwrap();
    assert_same(&reference, &results(&run.output_dir).unwrap(), "folded, interrupted");
}

/// Who continues a run in a new folder need not tell what it was folded from.
#[test]
fn a_folded_run_continues_in_a_new_folder() {
    let base = folding("folded-elsewhere");
    train(&base).unwrap();
    let run = beside(&base, "interrupted");
    train_until(&run, after(2)).unwrap_err();
    let elsewhere = Settings {
        resume_from_checkpoint: Some(ResumeFrom::Path(run.output_dir.clone())),
        fold_adapters: Vec::new(),
        init_adapter: None,
        ..beside(&base, "elsewhere")
    };
    train(&elsewhere).unwrap();
    let results = |settings: &Settings| results(&settings.output_dir).unwrap();
    assert_eq!(results(&base)["adapter"], results(&elsewhere)["adapter"]);
}

/// What the run began with is no second way to start, and is not needed any more.
#[test]
fn resume_goes_to_any_step_without_the_adapter_the_run_began_with() {
    let base = folding("resume-any-step");
    let run = Settings { save_total_limit: 9, ..base.clone() };
    train_until(&run, after(3)).unwrap_err();
    std::fs::remove_dir_all(run.init_adapter.as_ref().unwrap()).unwrap();
    let resume = |flags: &[&str]| {
        let folder = run.output_dir.to_str().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
        let output = command.args(["resume", folder]).args(flags).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let moved = run.fold_adapters[0].with_extension("moved");
    std::fs::rename(&run.fold_adapters[0], &moved).unwrap();
    let (code, text) = resume(&["--resume-from-checkpoint", "1"]);
    assert!(code == Some(65) && text.contains("/a: no such adapter folder"), "{code:?} {text}");
    let list = format!("{},{}", moved.display(), run.fold_adapters[1].display());
    let (code, text) = resume(&["--resume-from-checkpoint", "1", "--fold-adapters", &list]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_new_adapter_begins_on_a_folded_base() {
    let mut base = folding("new-on-folded");
    base.init_adapter = None;
    train(&base).unwrap();
    let folded = results(&base.output_dir).unwrap();
    let mut plain = beside(&base, "plain");
    plain.fold_adapters.clear();
    train(&plain).unwrap();
    let plain = results(&plain.output_dir).unwrap();
    assert_eq!(folded["config"], plain["config"], "what is trained is the same");
    assert_ne!(folded["adapter"], plain["adapter"], "what it is trained on is not");
}

#[test]
fn an_adapter_of_another_model_is_named() {
    let mut settings = folding("unfit");
    let narrow = settings.fold_adapters[0].join("adapter_config.json");
    let text = std::fs::read_to_string(&narrow).unwrap();
    std::fs::write(&narrow, text.replace("\"r\": 3", "\"r\": 4")).unwrap();
    let error = train(&settings).unwrap_err();
    assert_eq!(error.kind, Kind::Input, "{error}");
    assert!(error.what.contains("/a does not fit the model") && error.what.contains("lora_A"), "{error}");
    std::fs::write(&narrow, text.replace("\"q_proj\": 5", "\"q_proj(?=x)\": 5")).unwrap();
    let error = train(&beside(&settings, "second")).unwrap_err();
    assert_eq!(error.kind, Kind::Input, "{error}");
    assert!(error.what.contains("(?=x)") && error.what.contains("not supported"), "{error}");
    settings.fold_adapters.clear();
    settings.init_adapter = None;
    settings.lora_rank_pattern = table(&[("q_proj(?=x)", 5)]);
    assert_eq!(train(&beside(&settings, "third")).unwrap_err().kind, Kind::Usage);
}

#[test]
fn folding_rounds_once_to_the_type_of_the_base() {
    let (rows, cols, rank) = (5, 37, 3);
    let mut random = Lcg(11);
    let values: Vec<f32> = (0..rank * (rows + cols)).map(|_| random.unit()).collect();
    let slot =
        Slot { layer: 0, module: "m".into(), shape: [rows, cols], rank, scale: 0.75, a: 0, b: rank * cols };
    for element in [Element::F32, Element::F16, Element::Bf16] {
        let bytes: Vec<u8> = (0..rows * cols)
            .flat_map(|_| match element {
                Element::F32 => random.unit().to_le_bytes().to_vec(),
                Element::F16 => half::f16::from_f32(random.unit()).to_le_bytes().to_vec(),
                Element::Bf16 => half::bf16::from_f32(random.unit()).to_le_bytes().to_vec(),
            })
            .collect();
        let weight = Matrix::new(Arc::new(bytes), 0, element, rows, cols);
        let (mut old, mut new) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            let mut out = vec![0; cols * element.bytes()];
            assert_eq!(fold::row(&weight, &slot, &values, row, &mut out), 0);
            weight.read_row(row, &mut old);
            Matrix::new(Arc::new(out), 0, element, 1, cols).read_row(0, &mut new);
            for col in 0..cols {
                let product: f64 = (0..rank)
                    .map(|r| f64::from(values[slot.b + row * rank + r]) * f64::from(values[r * cols + col]))
                    .sum();
                let exact = f64::from(old[col]) + 0.75 * product;
                let ulps = match element {
                    Element::F32 => 2f64.powi(-22),
                    Element::F16 => 2f64.powi(-11) * 1.001,
                    Element::Bf16 => 2f64.powi(-8) * 1.001,
                };
                let error = (f64::from(new[col]) - exact).abs();
                assert!(error <= ulps * exact.abs().max(0.25), "{element:?} {row} {col}: {error:e}");
            }
        }
        let huge: Vec<f32> = values.iter().map(|v| v * 1e20).collect();
        let mut out = vec![0; cols * element.bytes()];
        assert!(fold::row(&weight, &slot, &huge, 0, &mut out) > 0, "{element:?}");
    }
}

#[test]
fn only_adapted_matrices_are_copied() {
    let settings = folding("copied");
    let model = Spec::read(&settings.model).unwrap();
    let open = || Weights::open(&settings.model, &model).unwrap();
    let (plain, mut folded) = (open(), open());
    let adapter = Adapter::read(&settings.fold_adapters[0], &model).unwrap();
    fold::fold(&mut folded, &adapter).unwrap();
    for (module, before) in &plain.linears {
        let adapted = module.ends_with("q_proj") || module.ends_with("down_proj");
        let same = before.weight.bytes() == folded.linears[module].weight.bytes();
        assert_eq!(same, !adapted, "{module}");
    }
    assert_eq!(folded.bytes - plain.bytes, 2 * 4 * (32 * 32 + 32 * 48));
    let digest = adapter.digest();
    let mut other = adapter.clone();
    other.layout.slots[0].scale = 1.0;
    assert_ne!(other.digest(), digest);
    assert_eq!(Adapter::read(Path::new(&settings.fold_adapters[0]), &model).unwrap().digest(), digest);
}
