//! The table of settings: everything that is derived from it agrees with it and with `Settings`.

use qwentune::checkpoint::state::History;
use qwentune::checkpoint::storage::FileSystem;
use qwentune::config::fields::{Class, FIELDS, Field, Kind, find, markdown};
use qwentune::config::foreign::FOREIGN;
use qwentune::config::value::{from_json, from_text, to_text};
use qwentune::config::{self, Layer, Settings, resolve};
use qwentune::error;
use qwentune::train::run_file::{FORMAT, RunFile};
use qwentune::train::start::policy::{self, As};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn settings_with(field: &'static Field, text: &str) -> error::Result<Settings> {
    let mut layer = Layer::default();
    layer.set(field, from_text(field, text)?);
    let mut all = Layer::from_settings(&Settings::default());
    all.cover(&layer);
    resolve(&all)
}

fn write(name: &str, text: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qwentune-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn from_file(name: &str, text: &str) -> error::Result<Settings> {
    resolve(&Layer::from_file(&write(name, text), &mut Vec::new())?)
}

#[test]
fn every_setting_has_one_row_and_every_name_one_meaning() {
    let value = serde_json::to_value(Settings::default()).unwrap();
    let keys: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let rows: BTreeSet<&str> = FIELDS.iter().map(|f| f.key).collect();
    assert_eq!(keys, rows);
    assert_eq!(rows.len(), FIELDS.len());
    let mut names = BTreeSet::new();
    for field in FIELDS {
        let own: BTreeSet<&str> =
            [field.name, field.key].into_iter().chain(field.aliases.iter().copied()).collect();
        for name in own {
            assert!(names.insert(name), "{name} is used twice");
            assert!(qwentune::config::foreign::find(name).is_none(), "{name} is foreign too");
            assert_eq!(find(&name.replace('_', "-")).unwrap().key, field.key);
        }
    }
    let foreign: BTreeSet<&str> = FOREIGN.iter().map(|f| f.name).collect();
    assert_eq!(foreign.len(), FOREIGN.len(), "a foreign flag is listed twice");
}

#[test]
fn values_survive_the_way_through_text_and_json() {
    let defaults = serde_json::to_value(Settings::default()).unwrap();
    for field in FIELDS.iter().filter(|f| !matches!(f.key, "model" | "output_dir" | "train_files")) {
        let value = &defaults[field.key];
        assert_eq!(&from_json(field, value).unwrap(), value, "{}", field.name);
        let text = to_text(field.kind, value);
        let back = from_text(field, &text).unwrap();
        let text_again = to_text(field.kind, &back);
        assert_eq!(text, text_again, "{}", field.name);
    }
    for choice in FIELDS {
        let Kind::Choice(names) = choice.kind else { continue };
        for name in names {
            let value = from_text(choice, &name.to_uppercase().replace('-', "_")).unwrap();
            assert_eq!(value, json!(name));
            let one = BTreeMap::from([(choice.key, value)]);
            serde_json::from_value::<Settings>(json!(one)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn shown_defaults_are_the_defaults() {
    let defaults = serde_json::to_value(Settings::default()).unwrap();
    for (name, note) in [("learning_rate", "0.0001"), ("adam_epsilon", "1e-8"), ("lora_r", "16")] {
        let field = find(name).unwrap();
        assert_eq!(field.default_text(), note);
        let shown: f64 = note.parse().unwrap();
        assert_eq!(Some(shown), defaults[field.key].as_f64());
    }
    assert_eq!(find("save_strategy").unwrap().default_text(), "steps");
    assert_eq!(find("lora_target_modules").unwrap().default_text(), "all-linear");
}

/// A value that differs from the default, for each kind of setting.
fn another_value(field: &Field) -> &'static str {
    match (field.key, field.kind) {
        ("shuffle", _) => "false",
        ("dtype", _) => "f32",
        ("cutoff_len", _) => "100",
        ("val_set_size", _) => "7",
        (_, Kind::Switch | Kind::OptionalSwitch) => "true",
        (_, Kind::Count | Kind::OptionalCount) => "17",
        (_, Kind::Number | Kind::OptionalNumber) => "0.75",
        (_, Kind::Choice(names)) => names[1],
        (_, Kind::Modules | Kind::OptionalModules) => "q_proj,v_proj",
        (_, Kind::Counts) => "3 0",
        (_, Kind::Device) => "cpu",
        (_, Kind::Json) => "{\"power\": 2}",
        (_, Kind::Pairs(_)) => "prompt=question",
        (_, Kind::Resume) => "12",
        (_, Kind::Text | Kind::Path | Kind::Paths | Kind::Folders) => "other",
        (_, Kind::Signals) => "USR1",
    }
}

#[test]
fn the_identity_holds_what_decides_the_numbers_and_nothing_else() {
    let mut base = Settings { valid_file: Some("dev.jsonl".into()), ..Settings::default() };
    base.eval_strategy = config::Strategy::Steps;
    let identity = config::math_identity(&base);
    assert!(identity.keys().all(|key| FIELDS.iter().any(|field| field.key == key)));
    for field in FIELDS {
        let base = if field.key == "val_set_size" { Settings::default() } else { base.clone() };
        let identity = config::math_identity(&base);
        let mut layer = Layer::from_settings(&base);
        let mut change = Layer::default();
        change.set(field, from_text(field, another_value(field)).unwrap());
        layer.cover(&change);
        let Ok(changed) = resolve(&layer) else { panic!("{} does not resolve", field.name) };
        assert_ne!(changed, base, "{}: the other value must differ", field.name);
        let differs = config::math_identity(&changed) != identity;
        assert_eq!(differs, field.class.decides_numbers(), "{}", field.name);
        let [resume, branch] =
            [As::Itself, As::Branch].map(|how| policy::changes(&base, &changed, how).is_ok());
        assert_eq!(resume, !field.class.decides_numbers(), "{}", field.name);
        assert_eq!(branch, field.class != Class::Refused, "{}", field.name);
        let listed: Vec<&str> = config::changed(&base, &changed).iter().map(|(f, _, _)| f.key).collect();
        let expected: &[&str] = if field.class == Class::Start { &[] } else { &[field.key] };
        assert_eq!(listed, expected);
    }
    let class = |name: &str| find(name).unwrap().class;
    for (expected, names) in [
        (Class::Free, ["save_steps", "logging_steps", "threads", "output_dir"]),
        (
            Class::Recorded,
            ["eval_steps", "eval_strategy", "per_device_eval_batch_size", "early_stopping_patience"],
        ),
        (Class::Branch, ["learning_rate", "seed", "lora_dropout", "per_device_train_batch_size"]),
        (Class::Refused, ["lora_r", "lora_target_modules", "lora_rank_pattern", "layers_to_transform"]),
    ] {
        names.iter().for_each(|name| assert_eq!(class(name), expected, "{name}"));
    }
    assert_eq!((class("max_steps"), class("num_train_epochs")), (Class::Length, Class::Length));
}

#[test]
fn run_json_reads_back_and_leaves_out_how_the_process_started() {
    let settings = Settings {
        model: "m".into(),
        train_files: vec!["a.jsonl".into(), "b c.jsonl".into()],
        output_dir: "out".into(),
        learning_rate: 0.1 + 0.2,
        max_steps: Some(7),
        lora_target_modules: config::Targets::Names(vec!["c_attn".into()]),
        overwrite_output_dir: true,
        allow_inexact: true,
        quiet: true,
        init_adapter: Some("adapter".into()),
        fold_adapters: vec!["a".into(), "b".into()],
        lora_rank_pattern: BTreeMap::from([("q_proj".into(), 4)]),
        lora_alpha_pattern: BTreeMap::from([("q_proj".into(), 0.1)]),
        layers_to_transform: Some(vec![0, 3]),
        ..Settings::default()
    };
    let versions = BTreeMap::from([("engine".to_owned(), "1".to_owned())]);
    let run = RunFile {
        format: FORMAT,
        settings: settings.clone(),
        command_line: vec!["qwentune".into(), "train".into()],
        working_directory: "/there".into(),
        versions: versions.clone(),
        identity: Default::default(),
        history: History::new(7, 0),
        origin: None,
    };
    let text = run.to_json();
    let folder = write("run.json", &text).parent().unwrap().to_owned();
    let run = RunFile::read(&FileSystem, &folder).unwrap();
    let mut frozen = settings.clone();
    (frozen.overwrite_output_dir, frozen.allow_inexact, frozen.quiet) = (false, false, false);
    assert_eq!(run.settings, frozen);
    assert_eq!(run.versions, versions);
    let as_config = Layer::from_file(&folder.join("run.json"), &mut Vec::new()).unwrap();
    assert_eq!(resolve(&as_config).unwrap(), frozen);

    for (from, to, says) in [
        ("\"seed\": 42", "\"sead\": 42", "sead"),
        ("\"seed\": 42", "\"seed\": 42, \"seed\": 43", "duplicate"),
        ("\"lora_r\": 16", "\"lora_r\": 0", "lora_r"),
        ("\"format\": 2", "\"format\": 1", "format 1"),
        ("\"versions\"", "\"verisons\"", "verisons"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(broken, text, "{from} is not in run.json");
        std::fs::write(folder.join("run.json"), broken).unwrap();
        let error = RunFile::read(&FileSystem, &folder).unwrap_err();
        assert_eq!(error.kind, error::Kind::Input, "{to}");
        assert!(error.what.contains(says), "{to}: {error}");
    }
}

#[test]
fn files_are_read_with_every_name_and_their_errors_name_the_line() {
    let text = "model = \"m\"\ndata = [\"a\", \"b\"]\nlora-r = 8\nlr = 2e-4\n\
                resume_from_checkpoint = true\nlr_scheduler = \"wsd\"\n[lr_scheduler_kwargs]\nnum_decay_steps = 5\n";
    let settings = from_file("good.toml", text).unwrap();
    assert_eq!(settings.train_files, [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!((settings.lora_r, settings.lora_alpha), (8, 16.0));
    assert_eq!(settings.learning_rate, 2e-4);
    assert_eq!(settings.lr_scheduler_type, config::Scheduler::WarmupStableDecay);
    assert_eq!(settings.lr_scheduler_kwargs["num_decay_steps"], json!(5));
    assert_eq!(settings.resume_from_checkpoint, Some(config::ResumeFrom::Auto));

    let mut warnings = Vec::new();
    Layer::from_file(&write("foreign.toml", "stage = \"sft\"\nbf16 = true\n"), &mut warnings).unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");

    for (name, text, says) in [
        ("key.toml", "seed = 1\nlerning_rate = 1\n", "key.toml:2: unknown setting 'lerning_rate'"),
        ("key.json", "{\n\"seed\": 1,\n\"lora_rnk\": 1\n}", "key.json:3: unknown setting 'lora_rnk'"),
        ("section.toml", "[lora]\nr = 3\n", "section.toml:1: unknown section 'lora'"),
        ("value.toml", "seed = 1\nlora_r = \"many\"\n", "value.toml:2: lora_r: 'many' is not a whole number"),
        ("syntax.toml", "seed = 1\nlora_r 16\n", "syntax.toml:2"),
        ("twice.toml", "model = \"a\"\nmodel_name_or_path = \"b\"\n", "set twice"),
        ("type.toml", "packing = [1]\n", "type.toml:1: packing"),
        ("bits.toml", "bits = 4\n", "bits.toml:1: --bits 4 cannot be honoured"),
        ("range.toml", "lora_dropout = 1.0\n", "lora_dropout must be at least 0 and below 1"),
        ("syntax.json", "{\"seed\": 1,}", "syntax.json"),
    ] {
        let error = from_file(name, text).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{name}: {error}");
        assert!(error.what.contains(says), "{name}: {error}");
    }
    let missing = Layer::from_file(&PathBuf::from("no/such.toml"), &mut Vec::new()).unwrap_err();
    assert_eq!(missing.exit_code(), 65);
    let hint = from_file("near.toml", "lerning_rate = 1\n").unwrap_err().remedy;
    assert!(hint.contains("learning_rate"), "{hint}");
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (name, bad) in [
        ("per_device_train_batch_size", &["0", "-1", "1.5", "99999999999"][..]),
        ("gradient_accumulation_steps", &["0", "nan"]),
        ("learning_rate", &["-1e-4", "inf", "NaN", "fast"]),
        ("adam_beta1", &["1", "-0.1"]),
        ("adam_beta2", &["1.0"]),
        ("adam_epsilon", &["-1e-8"]),
        ("lora_dropout", &["1", "1.5", "-0.1"]),
        ("lora_r", &["0", "5000", "-8", "r"]),
        ("lora_alpha", &["0", "-1"]),
        ("lora_rank_pattern", &["{\"q\": 0}", "{\"q\": 5000}", "{\"q\": 1.5}", "{\"q\": \"8\"}", "q_proj"]),
        ("lora_alpha_pattern", &["{\"q\": 0}", "{\"q\": -1}", "[1]"]),
        ("layers_to_transform", &["1.5", "-1", "first", "[]"]),
        ("max_steps", &["0", "-2", "1e400"]),
        ("num_train_epochs", &["0", "-3", "inf"]),
        ("save_steps", &["0", "1.5", "-1"]),
        ("warmup_ratio", &["1.5", "-0.1"]),
        ("warmup_steps", &["-1", "3.5"]),
        ("val_set_size", &["-1", "1.5"]),
        ("threads", &["0", "many"]),
        ("packing", &["maybe"]),
        ("template", &["llama2"]),
        ("lr_scheduler_type", &["reduce_lr_on_plateau"]),
        ("lr_scheduler_kwargs", &["[1]", "{"]),
        ("device", &["gpu", "cuda:x"]),
        ("dtype", &["f16"]),
        ("lora_target_modules", &["[]"]),
        ("eval_strategy", &["steps"]),
        ("load_best_model_at_end", &["true"]),
        ("early_stopping_patience", &["3"]),
        ("eval_on_start", &["true"]),
    ] {
        for text in bad {
            let error = settings_with(find(name).unwrap(), text).expect_err(&format!("{name} {text}"));
            assert_eq!(error.exit_code(), 2, "{name} {text}: {error}");
            assert!(error.what.contains(name), "{name} {text}: {error}");
        }
    }
    assert_eq!(
        settings_with(find("device").unwrap(), "cuda:1").unwrap().device,
        qwentune::config::DeviceChoice::Cuda(1)
    );
}

#[test]
fn the_readme_lists_every_setting_as_it_is() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let table = markdown();
    let expected = write("settings.md", &table);
    assert!(
        readme.contains(&table),
        "README.md's settings table is out of date: put the text of {} between its markers",
        expected.display()
    );
}

#[test]
fn nothing_is_set_by_a_value_that_says_none() {
    for name in [
        "valid_file",
        "cache_dir",
        "init_adapter",
        "layers_to_transform",
        "max_steps",
        "eval_steps",
        "warmup_ratio",
    ] {
        let field = find(name).unwrap();
        assert_eq!(from_text(field, "None").unwrap(), Value::Null, "{name}");
    }
    assert_eq!(from_text(find("max_steps").unwrap(), "-1").unwrap(), Value::Null);
    assert_eq!(from_text(find("fold_adapters").unwrap(), "None").unwrap(), json!([]));
}

#[test]
fn lists_are_read_as_other_tools_write_them() {
    let layers = find("layers_to_transform").unwrap();
    for text in ["0,3,1", "3 1 0", "[0, 1, 3]", "(1,0,3,3)"] {
        assert_eq!(from_text(layers, text).unwrap(), json!([0, 1, 3]), "{text}");
    }
    assert_eq!(from_json(layers, &json!([3, 0])).unwrap(), json!([0, 3]));
    assert_eq!(from_json(layers, &json!(2)).unwrap(), json!([2]));
    assert!(from_json(layers, &json!([])).is_err() && from_json(layers, &json!(["a"])).is_err());
    let adapters = find("fold_adapters").unwrap();
    assert_eq!(from_text(adapters, "lora/a, lora/b,").unwrap(), json!(["lora/a", "lora/b"]));
    assert_eq!(to_text(adapters.kind, &json!(["lora/a", "lora/b"])), "lora/a,lora/b");
    let file =
        "lora_rank_pattern = { q_proj = 4 }\nlayers_to_transform = [1, 0]\nfold_adapters = [\"a\", \"b\"]\n";
    let settings = from_file("lists.toml", file).unwrap();
    assert_eq!(settings.lora_rank_pattern, BTreeMap::from([("q_proj".into(), 4)]));
    assert_eq!(settings.layers_to_transform, Some(vec![0, 1]));
    assert_eq!(settings.fold_adapters, [PathBuf::from("a"), PathBuf::from("b")]);
}
