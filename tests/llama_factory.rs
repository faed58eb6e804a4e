//! Configurations of LLaMA-Factory: read as they are, or refused by name.

use crate::data::Folder;
use qwentune::cli::train_settings;
use qwentune::config::settings::TooLong;
use qwentune::config::{Scheduler, Settings, Targets, Template, TrainOn};
use serde_json::{Value, json};

fn info() -> Value {
    json!({
        "identity": {"file_name": "identity.json"},
        "people": {"file_name": "people.json", "columns": {"prompt": "frage", "query": null, "response": "antwort"}},
        "chats": {
            "file_name": "chats.jsonl", "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        "odd": {
            "file_name": "odd.json", "formatting": "sharegpt",
            "columns": {"messages": "talk", "system": "rules"},
            "tags": {"user_tag": "Q", "assistant_tag": "A"},
        },
        "clash": {"file_name": "clash.json", "columns": {"prompt": "ask", "response": "reply"}},
        "pairs": {"file_name": "pairs.json", "ranking": true, "columns": {"prompt": "i", "chosen": "c", "rejected": "r"}},
        "votes": {"file_name": "votes.json", "columns": {"messages": "messages", "kto_tag": "label"}},
        "seen": {"file_name": "seen.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}},
        "hub": {"hf_hub_url": "some/where"},
        "drawn": {"file_name": "a.json", "num_samples": 10},
        "many": {"file_name": "many"},
    })
}

/// The settings and warnings of a configuration, read in a folder that has the data sets of [`info`] in `data`.
fn read(yaml: &str, flags: &[&str]) -> Result<(Settings, Vec<String>), String> {
    let folder = Folder::new(&format!("factory-{:?}", std::thread::current().id()));
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join("many")).unwrap();
    std::fs::write(data.join("dataset_info.json"), info().to_string()).unwrap();
    for name in ["many/b.json", "many/a.json"] {
        std::fs::write(data.join(name), "[]").unwrap();
    }
    let yaml = yaml.replace("DATA", data.to_str().unwrap());
    let file = folder.file("run.yaml", yaml);
    let flags: Vec<&str> = ["--config", file.to_str().unwrap()].iter().chain(flags).copied().collect();
    train_settings(&flags).map_err(|fault| fault.to_string().replace(data.to_str().unwrap(), "DATA"))
}

fn names(settings: &Settings) -> Vec<String> {
    settings.train_files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The keys of its `qwen3_lora_sft.yaml`, with a data set of ours.
const EXAMPLE: &str = "\
### model
model_name_or_path: models/qwen
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,chats
dataset_dir: DATA
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/qwen/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
";

#[test]
fn its_example_is_read_as_it_is() {
    let (made, warnings) = read(EXAMPLE, &[]).unwrap();
    assert_eq!(names(&made), ["identity.json", "chats.jsonl"]);
    assert_eq!(made.template, Template::Qwen3NoThink);
    assert_eq!((made.lora_r, made.lora_alpha, made.lora_target_modules), (8, 16.0, Targets::AllLinear));
    assert_eq!((made.max_samples, made.val_set_size, made.cutoff_len), (Some(1000), 0.1, 2048));
    assert_eq!((made.learning_rate, made.num_train_epochs, made.warmup_ratio), (1e-4, 3.0, Some(0.1)));
    assert_eq!((made.per_device_train_batch_size, made.gradient_accumulation_steps), (1, 8));
    assert_eq!((made.lr_scheduler_type, made.eval_steps), (Scheduler::Cosine, Some(500.0)));
    assert!(made.overwrite_output_dir && made.resume_from_checkpoint.is_none());
    assert!(made.columns.is_empty(), "its usual names are known: {:?}", made.columns);
    assert!(made.too_long == TooLong::Drop);
    for quiet in ["stage", "plot_loss", "bf16", "ddp_timeout", "trust_remote_code", "save_only_model"] {
        assert!(warnings.iter().any(|line| line.contains(&quiet.replace('_', "-"))), "{quiet}: {warnings:?}");
    }
    let (flagged, _) = read(EXAMPLE, &["--lora_rank", "4", "--val_size", "7"]).unwrap();
    assert_eq!((flagged.lora_r, flagged.val_set_size), (4, 7.0), "flags win");
}

#[test]
fn its_defaults_and_other_names_are_told() {
    let short =
        "model_name_or_path: m\ndataset: identity\ndataset_dir: DATA\noutput_dir: o\nfinetuning_type: lora\n";
    let (made, warnings) = read(short, &[]).unwrap();
    assert_eq!((made.lora_r, made.lora_alpha, made.learning_rate), (8, 16.0, 5e-5));
    assert!(warnings.iter().any(|line| line.contains("lora_rank is not given: 8")), "{warnings:?}");
    let more = "mask_history: true\ndisable_shuffling: yes\ndefault_system: Be kind.\ntemplate: qwen\nlora_r: 2\n\
                early_stopping_steps: 3\neval_strategy: epoch\nval_size: 5\nadapter_name_or_path: a,b\n\
                create_new_adapter: true\npacking: true\nneat_packing: true\ncutoff_len: 100\n\
                per_device_train_batch_size: 4\n";
    let (made, _) = read(&format!("{short}{more}"), &[]).unwrap();
    assert_eq!((made.train_on, made.shuffle, made.template), (TrainOn::LastTurn, false, Template::Qwen25));
    assert_eq!((made.lora_r, made.system_prompt.as_deref()), (2, Some("Be kind.")));
    assert_eq!(made.early_stopping_patience, Some(3));
    assert_eq!(made.fold_adapters, ["a", "b"].map(std::path::PathBuf::from));
    assert!(made.init_adapter.is_none() && made.packing && made.tokens_per_micro_batch == 400);
}

#[test]
fn data_sets_give_files_and_columns() {
    let config = |dataset: &str| {
        format!("model_name_or_path: m\ndataset: {dataset}\ndataset_dir: DATA\noutput_dir: o\n")
    };
    let (made, _) = read(&config("people"), &[]).unwrap();
    let columns: Vec<(&str, &str)> =
        made.columns.iter().map(|(name, key)| (name.as_str(), key.as_str())).collect();
    assert_eq!(columns, [("prompt", "frage"), ("response", "antwort")]);
    let (made, _) = read(&config("[odd, chats]"), &[]).unwrap();
    let columns: Vec<&str> = made.columns.values().map(String::as_str).collect();
    assert_eq!(columns, ["A", "talk", "rules", "Q"]);
    let (made, _) = read(&config("many"), &[]).unwrap();
    assert_eq!(names(&made), ["a.json", "b.json"]);
    let (made, _) = read(&format!("{}eval_dataset: people\n", config("identity")), &[]).unwrap();
    assert!(made.valid_file.unwrap().ends_with("people.json"));
    let refused = [
        ("nothing", "data set nothing: it is not there"),
        ("pairs", "pairs: `ranking`"),
        ("votes", "votes: `kto_tag`"),
        ("seen", "seen: `images`"),
        ("hub", "hf download --repo-type dataset some/where"),
        ("drawn", "drawn: `num_samples`"),
        ("people,clash", "another data set has another key for prompt"),
    ];
    for (dataset, words) in refused {
        let fault = read(&config(dataset), &[]).unwrap_err();
        assert!(fault.contains(words), "{dataset}: {fault}");
    }
    let fault = read(&format!("{}train_file: x.json\n", config("identity")), &[]).unwrap_err();
    assert!(fault.contains("train_file beside `dataset`"), "{fault}");
}

#[test]
fn its_flags_name_data_sets_too() {
    let folder = Folder::new("factory-flags");
    folder.file("dataset_info.json", info().to_string());
    let flags =
        ["--dataset", "identity,people", "--dataset_dir", folder.path().to_str().unwrap(), "--stage", "sft"];
    let (made, _) = train_settings(&flags).unwrap();
    assert_eq!(names(&made), ["identity.json", "people.json"]);
    assert_eq!(made.columns["response"], "antwort");
}

#[test]
fn keys_of_other_training_are_refused_by_name() {
    let base = "model_name_or_path: m\ntrain_file: x.json\noutput_dir: o\nfinetuning_type: lora\n";
    for (line, words) in [
        ("stage: dpo", "supervised"),
        ("stage: kto", "supervised"),
        ("stage: pt", "supervised"),
        ("pref_beta: 0.1", "preference"),
        ("pref_loss: sigmoid", "preference"),
        ("kto_chosen_weight: 1.0", "preference"),
        ("dpo_label_smoothing: 0.1", "preference"),
        ("ref_model: x", "preference"),
        ("beta: 0.1", "preference"),
        ("finetuning_type: full", "LoRA"),
        ("quantization_bit: 4", "not quantised"),
        ("use_galore: true", "AdamW"),
        ("use_dft_loss: true", "cross-entropy"),
        ("rope_scaling: linear", "config.json"),
        ("streaming: true", "streaming"),
        ("resize_vocab: true", "vocabulary"),
        ("additional_target: embed_tokens,lm_head", "only LoRA matrices"),
        ("use_dora: true", "DoRA"),
        ("fp8: true", "arithmetic"),
        ("lr_scheduler_type: reduce_lr_on_plateau", "function of the step"),
        ("learning_rat: 0.1", "nearest known name is learning_rate"),
    ] {
        let name = line.split(':').next().unwrap();
        let base: String =
            base.lines().filter(|other| !other.starts_with(name)).map(|l| format!("{l}\n")).collect();
        let base = if base.contains("finetuning_type") { base } else { format!("{base}lora_target: all\n") };
        let fault = read(&format!("{base}{line}\n"), &[]).unwrap_err();
        assert!(fault.contains(words) && fault.replace('-', "_").contains(name), "{line}: {fault}");
    }
}

#[test]
fn yaml_is_plain_data() {
    let read = |text: &str| read(&format!("model: m\noutput_dir: o\n{text}\n"), &[]);
    let (made, _) =
        read("train_file: [a.json, 'b.json']\nlr_scheduler_kwargs: {num_cycles: 2}\nlearning_rate: 1e-5")
            .unwrap();
    assert_eq!(names(&made), ["a.json", "b.json"]);
    assert_eq!((made.learning_rate, made.lr_scheduler_kwargs["num_cycles"].as_f64()), (1e-5, Some(2.0)));
    let (made, _) = read("system_prompt: |-\n  one\n  two\nwarmup_steps: ~\nshuffle: off")
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((made.system_prompt.as_deref(), made.shuffle), (Some("one\ntwo"), false));
    for (text, words) in [
        ("a: &x 1\nb: *x", "run.yaml:3: an anchor"),
        ("a: *x", "run.yaml:3:"),
        ("seed: !!python/object:os.system x", "run.yaml:3:"),
        ("seed: 1\nseed: 2", "seed is set twice"),
        ("seed: [1", "run.yaml:"),
        ("---\nseed: 1", "second document"),
        (
            "seed: {a: {b: {c: {d: {e: {f: {g: {h: {i: {j: {k: {l: {m: {n: {o: {p: {q: 1}}}}}}}}}}}}}}}}}",
            "deeper than 16",
        ),
        ("seed: 1e999", "too large"),
    ] {
        let fault = read(text).unwrap_err();
        assert!(fault.contains(words), "{text}: {fault}");
    }
}

#[test]
fn negative_numbers_are_values_of_flags() {
    let wrong = |flags: &[&str]| train_settings(flags).unwrap_err().to_string();
    for number in ["-1e-2", "-0.01", "-.5"] {
        let said = wrong(&["--weight_decay", number]);
        assert!(said.contains("weight_decay must be finite and not negative"), "{said}");
    }
    assert!(wrong(&["--lora-r", "-4"]).contains("lora_r: '-4' is not a whole number"));
    let (made, _) = train_settings(&["--max_steps", "-1", "--learning_rate", "1e-3"]).unwrap();
    assert_eq!((made.max_steps, made.learning_rate), (None, 1e-3));
}
