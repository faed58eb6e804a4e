//! The command line as its users write it, and the exit status of what goes wrong.

use qwentune::cli::train_settings;
use qwentune::config::{ResumeFrom, RowFormat, Scheduler, Settings, Strategy, Targets, Template, TrainOn};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn parsed(line: &str) -> Settings {
    let words: Vec<&str> = line.split_whitespace().collect();
    train_settings(&words).unwrap_or_else(|e| panic!("{line}: {e}")).0
}

fn program(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qwentune")).args(words).current_dir(folder).output().unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qwentune-cli-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn every_spelling_of_a_flag_means_the_same() {
    for (line, same) in [
        ("--learning-rate 5e-5", "--learning_rate=0.00005"),
        ("--lr 5E-5", "--learning_rate 5e-05"),
        ("--lora_rank 8", "--lora-r=8 --lora-alpha 16"),
        ("--packing", "--packing True"),
        ("--packing=true", "--packing true"),
        ("--packing --packing False", "--packing=false"),
        ("--no_shuffle", "--shuffle False"),
        ("--shuffle", ""),
        ("--train_file a b --seed 1", "--data a b --seed 1"),
        ("--train_file=a", "--train_files a"),
        ("--lora_target_modules q_proj,v_proj", "--lora-target-modules q_proj v_proj"),
        ("--lora_target_modules ['q_proj','v_proj']", "--lora_target q_proj,v_proj"),
        ("--lora_target_modules all", "--lora_target_modules all-linear"),
        ("--lora_target_modules [\"all\"]", ""),
        ("--lr_scheduler_type cosine-with-restarts", "--lr-scheduler-type cosine_with_restarts"),
        ("--lr_scheduler_type wsd", "--lr_scheduler_type warmup_stable_decay"),
        ("--train_on last_turn", "--train-on last-turn"),
        ("--max_seq_len 64", "--cutoff_len 64"),
        ("--max_seq_length 64", "--cutoff_len 6.4e1"),
        ("--max_steps -1", ""),
        ("--max_steps 1e3", "--max-steps 1000"),
        ("--resume_from_checkpoint True", "--resume-from-checkpoint auto"),
        ("--resume_from_checkpoint False", ""),
        ("--resume_from_checkpoint --seed 42", "--resume-from-checkpoint auto"),
        ("--save_strategy no --seed 1 --seed 2", "--save-strategy no --seed 2"),
        ("--checkpoint_dir lora/x", "--init-adapter lora/x"),
        ("--checkpoint_dir lora/x,lora/y,lora/z", "--fold-adapters lora/x,lora/y --init-adapter lora/z"),
        ("--checkpoint_dir lora/x,", "--init-adapter lora/x"),
        ("--layers_to_transform 1 0", "--layers-to-transform [0,1]"),
        ("--rank_pattern {\"q_proj\":4}", "--lora-rank-pattern {\"q_proj\":4}"),
        ("--alpha_pattern {\"q_proj\":4}", "--lora-alpha-pattern {\"q_proj\":4.0}"),
        ("--per_gpu_train_batch_size 3", "--per-device-train-batch-size 3"),
        ("--valid_file d --evaluation_strategy epoch", "--eval_file d --eval-strategy epoch"),
    ] {
        assert_eq!(parsed(line), parsed(same), "{line} | {same}");
    }
    assert_eq!(parsed("--resume_from_checkpoint 1000").resume_from_checkpoint, Some(ResumeFrom::Step(1000)));
    let path = parsed("--resume_from_checkpoint out/checkpoint-5").resume_from_checkpoint;
    assert_eq!(path, Some(ResumeFrom::Path("out/checkpoint-5".into())));
    let kwargs = train_settings(&["--lr-scheduler-kwargs", "{\"num_cycles\": 2}"]).unwrap().0;
    assert_eq!(kwargs.lr_scheduler_kwargs["num_cycles"], 2);
    let spaced = train_settings(&["--lora_target_modules", "['c_attn', 'attn.c_proj']"]).unwrap().0;
    let names = vec!["c_attn".to_owned(), "attn.c_proj".to_owned()];
    assert_eq!(spaced.lora_target_modules, Targets::Names(names));
    let text = train_settings(&["--system_prompt", "You  are\nterse."]).unwrap().0;
    assert_eq!(text.system_prompt.as_deref(), Some("You  are\nterse."));
    let text = train_settings(&["--system-prompt", ""]).unwrap().0;
    assert_eq!(text.system_prompt.as_deref(), Some(""));
    let text = train_settings(&["--system-prompt= \n"]).unwrap().0;
    assert_eq!(text.system_prompt.as_deref(), Some(" \n"));
    assert_eq!(parsed("--format prompt_completion").format, RowFormat::PromptCompletion);
}

/// The line of DeepKE's README, with the names it uses for Qwen.
const DEEPKE: &str = "--do_train --do_eval --overwrite_output_dir --model_name_or_path models/Qwen-7B --stage sft \
    --model_name qwen --template qwen --train_file data/train.json --valid_file data/dev.json --output_dir=lora/run \
    --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --gradient_accumulation_steps 4 \
    --preprocessing_num_workers 16 --num_train_epochs 10 --learning_rate 5e-5 --max_grad_norm 0.5 --optim adamw_torch \
    --max_source_length 400 --cutoff_len 700 --max_target_length 300 --evaluation_strategy epoch --save_strategy epoch \
    --save_total_limit 10 --lora_r 16 --lora_alpha 32 --lora_dropout 0.05 --bf16 --bits 16 \
    --deepspeed configs/ds_config_bf16.json --ddp_find_unused_parameters False";

#[test]
fn a_line_of_deepke_means_what_it_said() {
    let words: Vec<&str> = DEEPKE.split_whitespace().collect();
    let (settings, warnings) = train_settings(&words).unwrap();
    let expected = Settings {
        model: "models/Qwen-7B".into(),
        train_files: vec!["data/train.json".into()],
        valid_file: Some("data/dev.json".into()),
        template: Template::Qwen,
        output_dir: "lora/run".into(),
        overwrite_output_dir: true,
        per_device_train_batch_size: 2,
        per_device_eval_batch_size: 2,
        gradient_accumulation_steps: 4,
        num_train_epochs: 10.0,
        learning_rate: 5e-5,
        max_grad_norm: 0.5,
        max_source_length: Some(400),
        max_target_length: Some(300),
        cutoff_len: 700,
        eval_strategy: Strategy::Epoch,
        save_strategy: Strategy::Epoch,
        save_total_limit: 10,
        lora_r: 16,
        lora_alpha: 32.0,
        lora_dropout: 0.05,
        ..Settings::default()
    };
    assert_eq!(settings, expected);
    let ignored = [
        "do-train",
        "do-eval",
        "stage",
        "model-name",
        "preprocessing-num-workers",
        "optim",
        "bf16",
        "bits",
        "deepspeed",
        "ddp-find-unused-parameters",
    ];
    assert_eq!(warnings.len(), ignored.len(), "{warnings:#?}");
    for (warning, flag) in warnings.iter().zip(ignored) {
        assert!(warning.starts_with(&format!("--{flag} has no effect: ")), "{warning}");
        assert!(!warning.contains('\n'));
    }
    assert_eq!((settings.lr_scheduler_type, settings.train_on), (Scheduler::Linear, TrainOn::Assistant));
}

/// Every flag of DeepKE's arguments (`src/args`, and the older `src/utils/args.py`) that is no setting, with its
/// default: accepted with one line each, once, however often it is given.
const DEEPKE_WITHOUT_EFFECT: &[&str] = &[
    "--do_train True",
    "--do_eval True",
    "--do_predict False",
    "--predict_with_generate True",
    "--stage sft",
    "--finetuning_type lora",
    "--full_finetune False",
    "--model_name qwen",
    "--model_revision main",
    "--use_auth_token False",
    "--trust_remote_code True",
    "--use_fast_tokenizer True",
    "--split_special_tokens False",
    "--bits 16",
    "--adam8bit False",
    "--double_quant True",
    "--quant_type nf4",
    "--max_memory_MB 80000",
    "--optim paged_adamw_32bit",
    "--bf16 True",
    "--fp16 False",
    "--loss_scale 1.0",
    "--preprocessing_num_workers 16",
    "--overwrite_cache True",
    "--pad_to_max_length False",
    "--ignore_pad_token_for_loss True",
    "--train_on_prompt False",
    "--train_on_inputs False",
    "--language zh",
    "--id_text input",
    "--predict_file None",
    "--resume_lora_training True",
    "--upcast_layernorm False",
    "--neft_alpha 0",
    "--num_layer_trainable 3",
    "--name_module_trainable mlp",
    "--additional_target None",
    "--group_by_length False",
    "--gradient_checkpointing True",
    "--remove_unused_columns False",
    "--deepspeed configs/ds_config_bf16.json",
    "--ddp_find_unused_parameters False",
    "--local_rank -1",
    "--max_new_tokens 256",
    "--do_sample False",
    "--num_beams 1",
    "--temperature 1.0",
    "--top_k 50",
    "--top_p 1.0",
    "--repetition_penalty 1.0",
    "--generation_max_length 300",
];

#[test]
fn a_flag_of_deepke_without_effect_is_named_once() {
    let plain = parsed("");
    for line in DEEPKE_WITHOUT_EFFECT {
        let (flag, value) = line.split_once(' ').unwrap();
        let joined = format!("{flag}={value}");
        let (settings, warnings) =
            train_settings(&[flag, value, &joined, "--seed", "42"]).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(settings, plain, "{line}");
        assert_eq!(warnings.len(), 1, "{line}: {warnings:?}");
        let named = format!("{} has no effect: ", flag.replace('_', "-"));
        assert!(warnings[0].starts_with(&named), "{line}: {warnings:?}");
    }
}

#[test]
fn what_deepke_names_otherwise_means_the_same() {
    for (line, same) in [
        ("--train_path a --valid_path b", "--train-file a --valid-file b"),
        ("--lora_weights lora/x", "--init-adapter lora/x"),
        (
            "--lora_target_modules ['c_attn','attn.c_proj','w1','w2','mlp.c_proj']",
            "--lora_target c_attn,attn.c_proj,w1,w2,mlp.c_proj",
        ),
        ("--cache_path c", "--cache-dir c"),
        ("--system_prompt None", "--system-prompt None"),
        ("--save_total_limit 10 --load_best_model_at_end False", "--save-total-limit=10"),
        ("--valid_file d --val_set_size 1000", "--val-set-size 1000 --valid-file d"),
        (
            "--resume_from_checkpoint True --overwrite_output_dir",
            "--overwrite-output-dir True --resume-from-checkpoint auto",
        ),
        (
            "--resume_from_checkpoint True --checkpoint_dir lora/x",
            "--resume-from-checkpoint auto --init-adapter lora/x",
        ),
    ] {
        assert_eq!(parsed(line), parsed(same), "{line} | {same}");
    }
}

#[test]
fn a_line_of_inference_is_answered_with_the_line_to_run() {
    let deepke = "--stage sft --model_name_or_path models/Qwen2 --checkpoint_dir lora/qwen2-v1 --model_name qwen2 --template qwen \
        --do_predict --input_file data/NER/test.json --output_file results/out.json --finetuning_type lora --output_dir lora/test \
        --predict_with_generate --cutoff_len 512 --bf16 --max_new_tokens 300 --bits 4";
    for (line, says) in [
        (
            deepke,
            "qwentune generate --model models/Qwen2 --adapter lora/qwen2-v1 --template qwen \
             --input-file data/NER/test.json --output-file results/out.json --max-new-tokens 300",
        ),
        ("--do_predict", "qwentune generate --model DIR --input-file FILE --output-file FILE"),
        ("--do_predict --do_train False", "qwentune generate"),
        ("--model=m --input-file=in", "qwentune generate --model m --input-file in --output-file FILE"),
        ("--do_train --output_file=out", "--output-file out"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let error = train_settings(&words).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
        assert!(error.what.contains("asks for answers"), "{line}: {error}");
        assert!(error.remedy.contains(says), "{line}: {error}");
    }
    let both = train_settings(&["--do_train", "--do_predict"]).unwrap().1;
    assert!(both[1].contains("qwentune generate"), "{both:?}");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    for (line, says) in [
        ("--bits 4", "--bits 4 cannot be honoured"),
        ("--load_in_8bit", "--load-in-8bit true cannot be honoured"),
        ("--optim adafactor", "--optim adafactor"),
        ("--fp16 True", "--fp16 True"),
        ("--fp16", "--fp16 true"),
        ("--neft_alpha 5", "--neft-alpha 5"),
        ("--use_dora True", "--use-dora"),
        ("--init_adapter a,b --fold_adapters c", "give one list"),
        ("--resume_lora_training False", "--fold-adapters"),
        ("--init_lora_weights pissa", "convert"),
        ("--target_parameters x", "--lora-target-modules"),
        ("--fan_in_fan_out true", "--fan-in-fan-out true"),
        ("--bias all", "--bias all cannot be honoured"),
        ("--layers_pattern blocks", "--layers-to-transform"),
        ("--layers_to_transform first", "layers_to_transform: 'first' is not a list of whole numbers"),
        ("--lora_rank_pattern {\"q\":1.5}", "lora_rank_pattern: invalid type"),
        ("--finetuning_type full", "--finetuning-type full"),
        ("--train_on_prompt True", "--train-on all"),
        ("--group_by_length", "--group-by-length"),
        ("--lerning_rate 1", "unknown flag --lerning-rate\n  the nearest known one is --learning-rate"),
        ("--lora-rnk 1", "--lora-r"),
        ("--zzzzzzzzzzzzz 1", "unknown flag --zzzzzzzzzzzzz"),
        ("--packing maybe", "maybe"),
        ("--lora_r", "--lora-r wants a value"),
        ("--lora_r --seed 1", "--lora-r wants a value"),
        ("--lora_r x", "lora_r: 'x' is not a whole number"),
        ("stray", "stray"),
        ("--template llama2", "one of auto, qwen,"),
        ("--tokens-per-micro-batch 512", "needs --packing"),
        ("--resume_from_checkpoint 100 --checkpoint_dir a", "give one of them"),
        ("--resume_from_checkpoint lora/a --checkpoint_dir lora/b", "give one of them"),
        ("--do_train False --do_eval", "`evaluate` computes the loss of a file"),
        ("--full_finetune True", "--full-finetune True"),
        ("--train_on_inputs True", "--train-on all"),
        ("--prompt_template_name alpaca", "say --template"),
        ("--eval_delay 5", "--eval-delay 5"),
        ("--device cuda --dtype f32", "dtype f32"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let error = train_settings(&words).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
        assert!(error.to_string().contains(says), "{line}: {error}");
        assert!(error.to_string().lines().count() <= 2, "{line}: {error}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let folder = folder("layers");
    let file = folder.join("run.toml");
    std::fs::write(&file, "lora_r = 4\nseed = 7\ntrain_file = \"a\"\n").unwrap();
    let file = file.to_str().unwrap();
    let (settings, _) = train_settings(&["--config", file, "--seed", "8"]).unwrap();
    assert_eq!((settings.lora_r, settings.lora_alpha, settings.seed), (4, 8.0, 8));
    let (settings, warnings) =
        train_settings(&["--config", file, "--data", "b", "--train-file", "c", "d"]).unwrap();
    assert_eq!(settings.train_files, [PathBuf::from("c"), PathBuf::from("d")]);
    std::fs::write(file, "resume_from_checkpoint = \"auto\"\n").unwrap();
    let (settings, _) = train_settings(&["--config", file, "--overwrite-output-dir"]).unwrap();
    assert_eq!((settings.resume_from_checkpoint, settings.overwrite_output_dir), (None, true));
    assert_eq!(warnings, ["--train-file is given 2 times: the last one counts"]);
}

#[test]
fn exit_statuses_and_short_errors() {
    let here = folder("exit");
    std::fs::create_dir(here.join("model")).unwrap();
    std::fs::write(here.join("rows.jsonl"), "{}\n").unwrap();
    for (line, code, says) in [
        ("", 0, "Usage: qwentune"),
        ("--version", 0, "qwentune "),
        ("--help", 0, "Commands:"),
        ("help train", 0, "--learning-rate"),
        ("train --help", 0, "--lora-target-modules"),
        ("resume --help", 0, "--max-steps"),
        ("doctor", 0, "cores"),
        ("trian", 2, "the nearest known one is train"),
        ("export a b", 65, "cannot read a"),
        ("export model", 2, "OUT"),
        ("import model o --model model --data rows.jsonl", 65, "trainer_state.json is missing"),
        (
            "import model o --model model --data rows.jsonl --output-dir x",
            2,
            "import does not take --output-dir",
        ),
        ("evaluate", 2, "there is nothing to evaluate"),
        ("evaluate --valid-file rows.jsonl", 2, "--model-name-or-path"),
        ("evaluate --model model", 2, "there is nothing to evaluate"),
        ("evaluate --model model --valid-file none.jsonl", 65, "none.jsonl: no such data file"),
        ("evaluate --model model --valid-file rows.jsonl --adapter nowhere", 65, "nowhere: no such adapter"),
        (
            "evaluate --model model --learning-rate 1",
            2,
            "does not take --learning-rate, a setting of `train`",
        ),
        ("evaluate --task NER", 2, "--predictions <FILE>... is missing"),
        ("evaluate --model m --valid-file f --match_mode set", 2, "--predictions <FILE>... is missing"),
        ("evaluate --predictions rows.jsonl --model model", 2, "give one of them"),
        ("evaluate --predictions rows.jsonl", 2, "--task NER, RE, EE, EET, EEA"),
        ("evaluate --predictions rows.jsonl --task SPO", 2, "SPO"),
        ("evaluate --predictions rows.jsonl --task ner", 65, "rows.jsonl:1: `id` is missing"),
        ("evaluate --path1 none.jsonl --task NER --match_mode set", 65, "none.jsonl"),
        ("selftest --device cuda:9999", 69, "cuda:9999"),
        ("selftest --device gpu", 2, "auto, cpu, cuda"),
        ("merge --model model out", 2, "--adapter"),
        ("merge --model model --adapter a", 2, "OUT"),
        ("merge --model none --adapter a out", 65, "none: no such model folder"),
        ("report", 2, "OUTPUT_DIR"),
        ("report nowhere", 65, "nowhere: no run in this folder"),
        ("report nowhere elsewhere --output page.html", 65, "nowhere: no run in this folder"),
        ("checkpoint", 0, "verify"),
        ("train", 2, "--model-name-or-path"),
        ("train --model model", 2, "--train-file"),
        ("train --model model --data rows.jsonl", 2, "--output-dir"),
        ("train --model Qwen/Qwen3-8B --data rows.jsonl --output-dir o", 65, "hf download Qwen/Qwen3-8B"),
        ("train --model model --data none.jsonl --output-dir o", 65, "none.jsonl: no such data file"),
        ("train --model model --data rows.jsonl --output-dir o --device cuda", 69, "cuda:0"),
        ("train --config none.toml", 65, "none.toml"),
        ("train --lora-r 0", 2, "lora_r"),
        ("resume", 2, "OUTPUT_DIR"),
        ("resume nowhere", 65, "no run in this folder"),
        ("resume model --output-dir x", 2, "resume does not take --output-dir"),
        ("resume model --checkpoint_dir x", 2, "resume does not take --init-adapter"),
        ("checkpoint show none.qckpt", 65, "none.qckpt"),
        ("checkpoint verify none.qckpt", 65, "none.qckpt"),
        ("checkpoint verify rows.jsonl", 1, "rows.jsonl"),
        ("checkpoint list model", 65, "no checkpoint in this folder"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = program(&here, &words);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {stdout}{stderr}");
        let text = if code == 0 { &stdout } else { &stderr };
        assert!(text.contains(says), "{line}: {text}");
        if code != 0 {
            assert!(stderr.lines().count() <= 2 && stderr.starts_with("error: "), "{line}: {stderr}");
            assert!(stdout.is_empty(), "{line}: {stdout}");
        }
    }
    assert!(!here.join("o").exists(), "a refused command must leave nothing behind");
}

#[test]
fn a_line_of_deepkes_evaluation_gives_a_table_and_json() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = "tests/golden/extraction/ee.jsonl";
    let line = ["evaluate", "--path1", file, "--task", "EE", "--sort_by", "source", "--match_mode", "normal"];
    let table = String::from_utf8(program(root, &line).stdout).unwrap();
    let json = String::from_utf8(program(root, &[&line[..], &["--json"]].concat()).stdout).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["task"], &json["match_mode"]), (&"EE".into(), &"normal".into()));
    let found = &json["files"][0];
    assert_eq!(found["file"], file);
    let sources = found["sources"].as_object().unwrap();
    // A head, then two kinds of item for the file and for each source.
    assert_eq!(table.lines().count(), 1 + 2 * (1 + sources.len()), "{table}");
    for kind in ["event", "argument"] {
        let line = table.lines().find(|line| line.starts_with(file) && line.contains(kind)).unwrap();
        let f1 = found["total"][kind]["f1"].as_f64().unwrap();
        assert!(f1 > 1.0 && line.ends_with(&format!(" {f1:.2}")), "{line}");
        let gold: u64 = sources.values().map(|tally| tally[kind]["gold"].as_u64().unwrap()).sum();
        assert_eq!(found["total"][kind]["gold"], gold);
    }
}

#[test]
fn a_resume_may_not_change_what_decides_the_numbers() {
    let here = folder("frozen");
    let run = here.join("run");
    std::fs::create_dir(&run).unwrap();
    let settings = Settings { model: "m".into(), train_files: vec!["t".into()], ..Settings::default() };
    let file = qwentune::train::run_file::RunFile {
        format: qwentune::train::run_file::FORMAT,
        settings,
        command_line: Vec::new(),
        working_directory: here.clone(),
        versions: Default::default(),
        identity: Default::default(),
        history: qwentune::checkpoint::state::History::new(7, 0),
        origin: None,
    };
    std::fs::write(run.join("run.json"), file.to_json()).unwrap();
    let output = program(&here, &["resume", "run", "--lora_r", "8", "--seed=43", "--save-steps", "9"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(76), "{stderr}");
    assert!(stderr.contains("lora_r is 16 in this run, 8 was asked for"), "{stderr}");
    assert!(stderr.contains("seed is 42 in this run, 43 was asked for"), "{stderr}");
    assert!(!stderr.contains("save_steps"), "{stderr}");
    // The same values are no change; then the run's own inputs are looked for.
    let output = program(&here, &["resume", "run", "--lora_r", "16"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{stderr}");
    assert!(stderr.contains("m: no such model folder"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_qwentune"))
        .args(["help", "train"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(feature = "text")]
#[test]
fn preview_and_tokenize_agree_and_the_quick_start_is_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let settings = train_settings(&["--config", root.join("examples/quickstart/run.toml").to_str().unwrap()]);
    assert_eq!(settings.unwrap().0.resume_from_checkpoint, Some(ResumeFrom::Auto));
    let run = ["preview", "--config", "examples/quickstart/run.toml", "--json", "--rows", "2"];
    let output = program(root, &run);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2);
    let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let ids: Vec<u64> = row["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let labels = row["labels"].as_array().unwrap();
    assert_eq!(labels.len(), ids.len());
    for (label, id) in labels.iter().zip(&ids).filter(|(label, _)| label.as_i64() != Some(-100)) {
        assert_eq!(label.as_u64(), Some(*id));
    }
    let words = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let decoded = program(root, &["tokenize", "--model", "examples/quickstart/model", "--decode", &words]);
    assert_eq!(String::from_utf8(decoded.stdout).unwrap(), format!("{}\n", row["text"].as_str().unwrap()));
    let encoded = program(root, &["tokenize", "--model", "examples/quickstart/model", "--", "--no_flag"]);
    assert_eq!(encoded.status.code(), Some(0), "{}", String::from_utf8_lossy(&encoded.stderr));
    let wrong = program(root, &["tokenize", "--model", "examples/quickstart/model", "--decode", "1 x"]);
    assert_eq!(wrong.status.code(), Some(65));
}
