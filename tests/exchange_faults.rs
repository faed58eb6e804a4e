//! Checkpoints of Trainer that are damaged, hostile, or another run's are refused with one error, and leave nothing
//! behind.

use crate::common::scratch;
use crate::exchange::{Case, DEEPKE, LORA_PLUS, QWEN2, copy, edit, program};
use qwentune::formats::hf_trainer::{Schedule, encode_schedule};
use qwentune::formats::torch_file::{Tree, encode};
use std::path::Path;

/// Imports a changed copy, which must be refused with `code`, saying `word`.
fn refused(case: &Case, name: &str, change: impl Fn(&Path), more: &[&str], code: i32, word: &str) {
    let folder = crate::scratch::folder();
    let from = copy(&case.checkpoint(), &folder.join("checkpoint"));
    change(&from);
    let out = folder.join("out");
    let mut words = case.words(Path::new(env!("CARGO_TARGET_TMPDIR")));
    words.extend(more.iter().map(|w| (*w).to_owned()));
    let output = program(&[Path::new("import"), &from, &out], &words);
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{name}: {stdout}{stderr}");
    assert!(stderr.contains(word), "{name}: no {word:?} in {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.lines().count() <= 2 && stderr.len() < 900,
        "{name}: {stderr}"
    );
    assert!(!out.exists(), "{name}: something was left behind");
}

type Change = Box<dyn Fn(&Path)>;

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

/// A pickle that would run a command, in the archive torch writes.
fn hostile() -> Vec<u8> {
    let pickle = b"\x80\x02cposix\nsystem\nX\x0b\0\0\0touch /tmp/xq\0\x85R.".to_vec();
    let entry = |name: &str, bytes: &[u8]| (format!("a/{name}"), bytes.to_vec());
    qwentune::formats::zip::encode(&[entry("data.pkl", &pickle), entry("version", b"3\n")]).unwrap()
}

/// What is to be wrong with an optimizer of golden shapes.
#[derive(Clone, Copy)]
struct Wrong {
    /// Value of the first second moment.
    v: f32,
    /// Value of the last first moment.
    m: f32,
    /// Updates of the last parameter.
    steps: f32,
    /// Rows of the first parameter.
    rows: usize,
    /// Parameters in each group.
    groups: &'static [usize],
    /// Weight decay of the second group that holds some.
    decay: f64,
    /// An option of every group.
    option: (&'static str, bool),
    /// A further entry of every state.
    extra: Option<&'static str>,
}

/// Learning rate of the golden qwen2 checkpoint's next step.
const NEXT_RATE: f64 = 0.0009698463103929542;

const NOTHING: Wrong = Wrong {
    v: 0.5,
    m: 0.5,
    steps: 6.0,
    rows: 4,
    groups: &[28, 0],
    decay: 0.1,
    option: ("amsgrad", false),
    extra: None,
};

/// Shapes of the golden qwen2 adapter's matrices: two layers of q, k, v, o, gate, up, down with rank 4.
fn shapes(rows: usize) -> Vec<[usize; 2]> {
    let optimizer = qwentune::formats::peft::read(&QWEN2.checkpoint()).unwrap();
    let order = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let mut all = Vec::new();
    for layer in 0..2 {
        for module in order {
            for matrix in ["lora_A", "lora_B"] {
                let named = |name: &str| {
                    name.contains(&format!("layers.{layer}."))
                        && name.contains(module)
                        && name.contains(matrix)
                };
                all.push(optimizer.tensors.iter().find(|t| named(&t.name)).unwrap().shape);
            }
        }
    }
    all[0][0] = rows;
    all
}

fn optimizer(wrong: Wrong) -> Vec<u8> {
    let shapes = shapes(wrong.rows);
    let last = shapes.len() - 1;
    let arrays: Vec<[Vec<f32>; 3]> = (0..shapes.len())
        .map(|i| {
            let (mut m, mut v) =
                (vec![0.5; shapes[i][0] * shapes[i][1]], vec![0.5; shapes[i][0] * shapes[i][1]]);
            if i == 0 {
                v[0] = wrong.v;
            }
            if i == last {
                m[0] = wrong.m;
            }
            [vec![if i == last { wrong.steps } else { 6.0 }], m, v]
        })
        .collect();
    let state = (0..shapes.len()).map(|i| {
        let shape = shapes[i].to_vec();
        let mut entries = vec![
            (Tree::Text("step"), Tree::Tensor(vec![], &arrays[i][0])),
            (Tree::Text("exp_avg"), Tree::Tensor(shape.clone(), &arrays[i][1])),
            (Tree::Text("exp_avg_sq"), Tree::Tensor(shape, &arrays[i][2])),
        ];
        entries.extend(wrong.extra.map(|name| (Tree::Text(name), Tree::None)));
        (Tree::Int(i as i64), Tree::Dict(entries))
    });
    let mut next = 0;
    let group = |(index, count): (usize, &usize)| {
        let params = (next..next + *count as i64).map(Tree::Int).collect();
        next += *count as i64;
        Tree::Dict(vec![
            (Tree::Text("lr"), Tree::Float(NEXT_RATE)),
            (Tree::Text("initial_lr"), Tree::Float(0.001)),
            (Tree::Text("betas"), Tree::Tuple(vec![Tree::Float(0.9), Tree::Float(0.999)])),
            (Tree::Text("eps"), Tree::Float(1e-8)),
            (Tree::Text("weight_decay"), Tree::Float(if index == 0 { 0.1 } else { wrong.decay })),
            (Tree::Text(wrong.option.0), Tree::Bool(wrong.option.1)),
            (Tree::Text("params"), Tree::List(params)),
        ])
    };
    let groups = wrong.groups.iter().enumerate().map(group).collect();
    let root = Tree::Dict(vec![
        (Tree::Text("state"), Tree::Dict(state.collect())),
        (Tree::Text("param_groups"), Tree::List(groups)),
    ]);
    encode("optimizer", &root).unwrap()
}

#[test]
fn optimizers_that_are_not_this_adapters_adamw_are_refused() {
    let rows: Vec<(&str, Wrong, &str)> = vec![
        ("negative second moment", Wrong { v: -0.5, ..NOTHING }, "exp_avg_sq holds -0.5"),
        (
            "moment not a number",
            Wrong { m: f32::NAN, ..NOTHING },
            "parameter 27 (base_model.model.model.layers.1.mlp.down_proj.lora_B.weight): exp_avg holds NaN",
        ),
        ("infinite moment", Wrong { v: f32::INFINITY, ..NOTHING }, "exp_avg_sq holds inf"),
        ("another shape", Wrong { rows: 8, ..NOTHING }, "exp_avg has shape [8, 64], the adapter [4, 64]"),
        ("uneven updates", Wrong { steps: 5.0, ..NOTHING }, "updated 5 times"),
        ("half an update", Wrong { steps: 5.5, ..NOTHING }, "step is no whole number"),
        ("amsgrad", Wrong { option: ("amsgrad", true), ..NOTHING }, "option amsgrad"),
        (
            "coupled decay",
            Wrong { option: ("decoupled_weight_decay", false), ..NOTHING },
            "option decoupled_weight_decay",
        ),
        ("unknown option", Wrong { option: ("momentum", true), ..NOTHING }, "option momentum"),
        ("8 bits", Wrong { extra: Some("qmap1"), ..NOTHING }, "where AdamW has step, exp_avg, exp_avg_sq"),
        ("three groups", Wrong { groups: &[10, 10, 8], ..NOTHING }, "groups of 10 + 10 + 8 parameters"),
        ("uneven groups", Wrong { groups: &[20, 8], ..NOTHING }, "groups of 20 + 8 parameters"),
        ("A and B of other sizes", Wrong { groups: &[14, 14], ..NOTHING }, "the adapter"),
        (
            "another decay for B",
            Wrong { groups: &[14, 14], decay: 0.0, ..NOTHING },
            "differ in more than the learning rate",
        ),
        ("a parameter in no group", Wrong { groups: &[20, 0], ..NOTHING }, "in no group"),
        ("a parameter without state", Wrong { groups: &[29, 0], ..NOTHING }, "parameter 28 has no state"),
    ];
    let put = |folder: &Path, wrong: Wrong| {
        write(folder, "optimizer.pt", optimizer(wrong));
        let rates = |rate: f64| vec![rate; wrong.groups.len()];
        let schedule = Schedule { base_lrs: rates(0.001), last_lr: rates(NEXT_RATE), steps: 6 };
        write(folder, "scheduler.pt", encode_schedule(&schedule).unwrap());
    };
    for (name, wrong, word) in rows {
        refused(&QWEN2, name, |f| put(f, wrong), &[], 65, word);
    }
    // The same builder with nothing wrong is taken.
    let folder = scratch("exchange-sound");
    let from = copy(&QWEN2.checkpoint(), &folder.join("checkpoint"));
    put(&from, NOTHING);
    let output = program(&[Path::new("import"), &from, &folder.join("out")], &QWEN2.words(&folder));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn hostile_and_damaged_files_are_refused() {
    let remove = |name: &'static str| move |f: &Path| std::fs::remove_file(f.join(name)).unwrap();
    let put = |name: &'static str, bytes: Vec<u8>| move |f: &Path| write(f, name, &bytes);
    let cut = |name: &'static str| {
        move |f: &Path| {
            let bytes = std::fs::read(f.join(name)).unwrap();
            write(f, name, &bytes[..bytes.len() / 2]);
        }
    };
    let flip = |f: &Path| {
        let mut bytes = std::fs::read(f.join("optimizer.pt")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        write(f, "optimizer.pt", bytes);
    };
    let foreign_zip = qwentune::formats::zip::encode(&[("../../x".into(), Vec::new())]).unwrap();
    let scheduler = |rates: Vec<Tree<'static>>| {
        let root =
            vec![(Tree::Text("last_epoch"), Tree::Int(6)), (Tree::Text("base_lrs"), Tree::List(rates))];
        encode("scheduler", &Tree::Dict(root)).unwrap()
    };
    let rows: Vec<(&str, &Case, Change, &str)> = vec![
        ("no optimizer", &QWEN2, Box::new(remove("optimizer.pt")), "--fresh-optimizer"),
        ("no scheduler", &QWEN2, Box::new(remove("scheduler.pt")), "scheduler.pt is missing"),
        ("no state", &QWEN2, Box::new(remove("trainer_state.json")), "trainer_state.json is missing"),
        ("no adapter's config", &QWEN2, Box::new(remove("adapter_config.json")), "no LoRA adapter"),
        ("no adapter", &DEEPKE, Box::new(remove("adapter_model.bin")), "adapter_model.safetensors"),
        (
            "hostile optimizer",
            &QWEN2,
            Box::new(put("optimizer.pt", hostile())),
            "refused global posix.system",
        ),
        (
            "hostile scheduler",
            &QWEN2,
            Box::new(put("scheduler.pt", hostile())),
            "refused global posix.system",
        ),
        (
            "hostile adapter",
            &DEEPKE,
            Box::new(put("adapter_model.bin", hostile())),
            "refused global posix.system",
        ),
        ("paths in the archive", &QWEN2, Box::new(put("optimizer.pt", foreign_zip)), "not permitted"),
        ("bare pickle", &QWEN2, Box::new(put("optimizer.pt", b"\x80\x02}.".to_vec())), "not a zip"),
        ("cut optimizer", &QWEN2, Box::new(cut("optimizer.pt")), "optimizer.pt"),
        ("cut adapter", &QWEN2, Box::new(cut("adapter_model.safetensors")), "adapter_model.safetensors"),
        ("cut state", &QWEN2, Box::new(cut("trainer_state.json")), "trainer_state.json"),
        ("a flipped bit", &QWEN2, Box::new(flip), "checksum"),
        (
            "another thing",
            &QWEN2,
            Box::new(put("optimizer.pt", encode("a", &Tree::None).unwrap())),
            "state and param_groups",
        ),
        (
            "rates that are none",
            &QWEN2,
            Box::new(put("scheduler.pt", scheduler(vec![Tree::Float(f64::NAN)]))),
            "base_lrs is not a list",
        ),
        (
            "no last rate",
            &QWEN2,
            Box::new(put("scheduler.pt", scheduler(vec![Tree::Float(1e-3)]))),
            "_last_lr is not a list",
        ),
        (
            "another run's scheduler",
            &QWEN2,
            Box::new(|f: &Path| {
                std::fs::copy(LORA_PLUS.checkpoint().join("scheduler.pt"), f.join("scheduler.pt")).unwrap();
            }),
            "2 parameter groups, scheduler.pt has 4",
        ),
        (
            "another run's optimizer",
            &QWEN2,
            Box::new(|f: &Path| {
                for name in ["scheduler.pt", "optimizer.pt"] {
                    std::fs::copy(DEEPKE.checkpoint().join(name), f.join(name)).unwrap();
                }
            }),
            "moments of 20 parameters, the adapter has 28 matrices",
        ),
    ];
    for (name, case, change, word) in rows {
        let more: &[&str] = if name == "another run's optimizer" {
            &["--learning-rate=5e-4", "--weight-decay=0"]
        } else {
            &[]
        };
        refused(case, name, change, more, 65, word);
    }
}

#[test]
fn wrong_progress_and_adapters_are_refused() {
    let state = |from: &'static str, to: &'static str| {
        move |f: &Path| edit(&f.join("trainer_state.json"), |text| text.replacen(from, to, 1))
    };
    let config = |from: &'static str, to: &'static str| {
        move |f: &Path| edit(&f.join("adapter_config.json"), |text| text.replacen(from, to, 1))
    };
    let step = "\"global_step\": 6";
    let rows: Vec<(&str, Change, &str)> = vec![
        ("step 0", Box::new(state(step, "\"global_step\": 0")), "global_step is 0"),
        ("negative step", Box::new(state(step, "\"global_step\": -6")), "global_step is -6"),
        ("huge step", Box::new(state(step, "\"global_step\": 1e30")), "global_step is"),
        ("step as text", Box::new(state(step, "\"global_step\": \"6\\u001b[2J\"")), "global_step is"),
        ("no step", Box::new(state(step, "\"no_step\": 6")), "global_step is missing"),
        ("step twice", Box::new(state(step, "\"global_step\": 6, \"global_step\": 6")), "occurs twice"),
        ("beyond the end", Box::new(state(step, "\"global_step\": 31")), "beyond max_steps 30"),
        ("ahead of its optimizer", Box::new(state(step, "\"global_step\": 5")), "AdamW was applied 6 times"),
        (
            "no epoch",
            Box::new(state("\"epoch\": 1.5714285714285714,\n  \"eval", "\"eval")),
            "epoch is missing",
        ),
        (
            "epoch not a number",
            Box::new(state("\"epoch\": 1.5714285714285714,\n  \"eval", "\"epoch\": NaN,\n  \"eval")),
            "epoch is missing or no number",
        ),
        ("not JSON", Box::new(|f: &Path| write(f, "trainer_state.json", "[]")), "not a JSON object"),
        (
            "deep",
            Box::new(|f: &Path| write(f, "trainer_state.json", "{\"a\":".repeat(500))),
            "EOF while parsing",
        ),
        ("rank 0", Box::new(config("\"r\": 4", "\"r\": 0")), "r is 0"),
        ("huge rank", Box::new(config("\"r\": 4", "\"r\": 2147483648")), "r is 2147483648"),
        ("another rank", Box::new(config("\"r\": 4", "\"r\": 8")), "expected 8 rows"),
        (
            "alpha not a number",
            Box::new(config("\"lora_alpha\": 8", "\"lora_alpha\": NaN")),
            "adapter_config.json",
        ),
        (
            "dropout",
            Box::new(config("\"lora_dropout\": 0.0", "\"lora_dropout\": 1.5")),
            "lora_dropout is 1.5",
        ),
        ("kind", Box::new(config("\"LORA\"", "\"LOHA\"")), "LOHA"),
        ("DoRA", Box::new(config("\"use_dora\": false", "\"use_dora\": true")), "use_dora"),
        (
            "ranks by layer that its tensors have not",
            Box::new(config("\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 2}")),
            "q_proj.lora_A.weight has shape [4, 64], expected [2, 64]",
        ),
        (
            "whole modules",
            Box::new(config("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]")),
            "modules_to_save",
        ),
        (
            "pattern",
            Box::new(config("\"target_modules\": [", "\"target_modules\": \"(a+)+$\", \"x\": [")),
            "adapter_config.json",
        ),
        ("a target without matrices", Box::new(config("\"v_proj\"", "\"x_proj\"")), "x_proj"),
        ("matrices without a target", Box::new(config("    \"up_proj\",\n", "")), "moments of 28 parameters"),
    ];
    for (name, change, word) in rows {
        // Of a target that is missing, either file may be the one that is named.
        let word = if name == "matrices without a target" { "up_proj" } else { word };
        let code = if name == "a target without matrices" { 2 } else { 65 };
        refused(&QWEN2, name, change, &[], code, word);
    }
}

#[test]
fn files_that_are_not_needed_are_never_opened_and_nan_in_the_log_is_no_fault() {
    let folder = scratch("exchange-unneeded");
    let from = copy(&QWEN2.checkpoint(), &folder.join("checkpoint"));
    for name in ["rng_state.pth", "training_args.bin", "adapter_model.bin"] {
        write(&from, name, hostile());
    }
    edit(&from.join("trainer_state.json"), |text| {
        text.replacen(
            "\"loss\": 5.865239143371582",
            "\"loss\": NaN, \"note\": \"NaN \\\\\\\" Infinity\", \"x\": -Infinity",
            1,
        )
    });
    let output = program(&[Path::new("import"), &from, &folder.join("out")], &QWEN2.words(&folder));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn settings_of_another_run_are_refused_by_name() {
    let same = |_: &Path| ();
    let rows: &[(&str, &[&str], i32, &str)] = &[
        ("learning rate", &["--learning-rate=5e-3"], 76, "learning_rate is 0.001 in it, 0.005 was asked for"),
        (
            "several",
            &["--lora-r=8", "--weight-decay=0"],
            76,
            "lora_r is 4 in it, 8 was asked for; weight_decay is 0.1 in it, 0 was",
        ),
        ("ratio", &["--loraplus-lr-ratio=2"], 76, "loraplus_lr_ratio is 1 in it, 2 was asked for"),
        ("schedule", &["--lr-scheduler-type=linear"], 76, "the learning rate"),
        ("warm-up", &["--warmup-steps=0"], 76, "scheduler.pt has"),
        ("accumulation", &["--gradient-accumulation-steps=4"], 76, "--gradient-accumulation-steps 2 fits"),
        (
            "batch",
            &["--per-device-train-batch-size=8"],
            76,
            "is at epoch 1.5714285714285714, step 6 of 14 rows in batches of 8 x 2",
        ),
        ("moments", &["--fresh-optimizer"], 2, "leave --fresh-optimizer out"),
        ("output", &["--output-dir=x"], 2, "import does not take --output-dir"),
        ("resume", &["--resume-from-checkpoint=x"], 2, "import does not take --resume-from-checkpoint"),
        ("adapter", &["--init-adapter=x"], 2, "import does not take --init-adapter"),
    ];
    for (name, more, code, word) in rows {
        refused(&QWEN2, name, same, more, *code, word);
    }
    // Said to be wanted all the same, and recorded.
    let folder = scratch("exchange-allowed");
    let mut words = QWEN2.words(&folder);
    words
        .extend(["--warmup-steps=0", "--gradient-accumulation-steps=4", "--allow-inexact"].map(String::from));
    let output = program(&[Path::new("import"), &QWEN2.checkpoint(), &folder.join("out")], &words);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("continues as it was: weights, AdamW's moments, step\n"), "{said}");
    assert!(
        said.contains("the learning rate, which follows the schedule given; the place in the data"),
        "{said}"
    );
}

/// A gradient scaler (fp16) leaves out updates that Trainer counts as steps.
#[test]
fn updates_that_were_left_out_are_recorded() {
    let folder = scratch("exchange-scaler");
    let from = copy(&DEEPKE.checkpoint(), &folder.join("checkpoint"));
    edit(&from.join("trainer_state.json"), |text| {
        text.replacen("\"global_step\": 7", "\"global_step\": 8", 1)
    });
    let run = folder.join("run");
    let mut words = DEEPKE.words(&folder);
    let refused = program(&[Path::new("import"), &from, &run], &words);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(76), "{stderr}");
    assert!(stderr.contains("1 steps were left out by a gradient scaler"), "{stderr}");
    words.push("--allow-inexact".into());
    let output = program(&[Path::new("import"), &from, &run], &words);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("count of updates is 1 behind the steps"), "{said}");
    let file = qwentune::checkpoint::inspect::path_of_step(&run, 8);
    let state = qwentune::checkpoint::inspect::load(&file).unwrap();
    assert_eq!(state.cursor.updates_behind, 1);
    assert!(program(&[Path::new("resume"), &run], &[]).status.success());
}

#[test]
fn folders_that_hold_something_are_not_written_into() {
    let folder = scratch("exchange-occupied");
    let run = folder.join("run");
    let words = QWEN2.words(&folder);
    let import = || program(&[Path::new("import"), &QWEN2.checkpoint(), &run], &words);
    assert!(import().status.success());
    let again = import();
    let says = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(again.status.code(), Some(73), "{}", says(&again));
    assert!(
        says(&again).contains("already holds a run") && says(&again).contains(" resume "),
        "{}",
        says(&again)
    );
    // An import that was killed before run.json is made again; another one's checkpoint is not taken over.
    std::fs::remove_file(run.join("run.json")).unwrap();
    assert!(import().status.success());
    std::fs::remove_file(run.join("run.json")).unwrap();
    std::fs::rename(run.join("checkpoints/step-00000006.qckpt"), run.join("checkpoints/step-00000009.qckpt"))
        .unwrap();
    assert_eq!(import().status.code(), Some(73));

    let export =
        |from: &Path, out: &Path, more: &str| program(&[Path::new("export"), from, out], &[more.to_owned()]);
    let full = export(&run, &run, "--format=peft");
    assert_eq!(full.status.code(), Some(73), "{}", says(&full));
    let none = export(&folder.join("cache"), &folder.join("out"), "--format=peft");
    assert_eq!(none.status.code(), Some(65), "{}", says(&none));
    let format = export(&run, &folder.join("out"), "--format=gguf");
    assert_eq!(format.status.code(), Some(2), "{}", says(&format));
    let adapter = export(&QWEN2.checkpoint(), &folder.join("out"), "--format=peft");
    assert_eq!(adapter.status.code(), Some(2), "{}", says(&adapter));
    assert!(!folder.join("out").exists());
}

/// Whoever asks to continue in a folder of Trainer's checkpoints does not mean step 0 but the newest of them, as Trainer
/// does; and it is said.
#[test]
fn auto_in_a_folder_of_trainers_checkpoints_continues_the_newest() {
    let folder = scratch("exchange-auto");
    copy(&DEEPKE.checkpoint(), &folder.join("lora/checkpoint-7"));
    let mut words = DEEPKE.words(&folder);
    words.push(format!("--output_dir={}", folder.join("lora").display()));
    let train = |resume: String| program(&[Path::new("train")], &[words.clone(), vec![resume]].concat());
    let auto = train("--resume_from_checkpoint=True".into());
    let (stdout, stderr) = (String::from_utf8_lossy(&auto.stdout), String::from_utf8_lossy(&auto.stderr));
    assert!(auto.status.success(), "{stderr}");
    assert!(
        stdout.contains("checkpoint-7 is continued") && stdout.contains("resumed at step 7"),
        "{stdout}{stderr}"
    );
    let auto = train("--resume_from_checkpoint=True".into());
    let (stdout, stderr) = (String::from_utf8_lossy(&auto.stdout), String::from_utf8_lossy(&auto.stderr));
    assert!(stdout.contains("training complete at step 30"), "{stdout}{stderr}");
}
