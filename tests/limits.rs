//! What a file can make the program take: the largest and worst of each kind that is read whole, as docs/limits.md
//! states them, tried with no more memory than that.

use crate::common::{scratch, tiny_model, tiny_rows};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Most memory that any of these may take, bytes; docs/limits.md says so.
const MOST: u64 = 512 << 20;

/// `before`, as many of `part` as fill `size` bytes, `after`.
fn filled(before: &str, part: &str, after: &str, size: usize) -> Vec<u8> {
    let count = (size - before.len() - after.len()) / part.len();
    let mut text = Vec::with_capacity(size);
    text.extend(before.as_bytes());
    (0..count).for_each(|_| text.extend(part.as_bytes()));
    text.extend(after.as_bytes());
    text
}

/// Status and standard error of a process that gets no more memory than [`MOST`]. (What the system says a process had at most
/// includes what its parent had when it was started, and this parent runs other tests.)
fn run(folder: &Path, line: &str) -> (ExitStatus, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(line.split_whitespace()).current_dir(folder).env("RAYON_NUM_THREADS", "2");
    let errors = std::fs::File::create(folder.join("stderr")).unwrap();
    let limit = libc::rlimit { rlim_cur: MOST, rlim_max: MOST };
    // SAFETY: between fork and exec only setrlimit is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let status = command.stdout(Stdio::null()).stderr(errors).status().unwrap();
    (status, std::fs::read_to_string(folder.join("stderr")).unwrap())
}

struct Case {
    /// Where the file goes.
    file: &'static str,
    bytes: fn() -> Vec<u8>,
    line: &'static str,
    /// What the message holds; empty: any error will do.
    says: &'static str,
}

const TRAIN: &str =
    "train --model model --train-file rows.jsonl --output-dir out --cache-dir cache --threads 1";

const CASES: &[Case] = &[
    Case {
        file: "run.toml",
        bytes: || filled("x = [", "0,", "]\n", 1 << 20),
        line: "train --config run.toml",
        says: "x",
    },
    Case {
        file: "run.toml",
        bytes: || filled("", "a.b.c = 1\n", "", 1 << 20),
        line: "train --config run.toml",
        says: "",
    },
    Case {
        file: "run.json",
        bytes: || filled("{\"x\":[", "0,", "0]}", 1 << 20),
        line: "train --config run.json",
        says: "x",
    },
    Case {
        file: "large.toml",
        bytes: || filled("x = [", "0,", "]\n", 80_000_000),
        line: "train --config large.toml",
        says: "is larger than",
    },
    Case {
        file: "model/config.json",
        bytes: || filled("{\"x\":[", "0,", "0]}", 1 << 20),
        line: TRAIN,
        says: "config.json",
    },
    Case {
        file: "model/model.safetensors.index.json",
        bytes: || filled("{\"weight_map\":{\"x\":[", "0,", "0]}}", 8 << 20),
        line: TRAIN,
        says: "index.json",
    },
    Case {
        file: "model/model.safetensors",
        bytes: || {
            let header = filled("{\"x\":[", "0,", "0]}", 16 << 20);
            [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat()
        },
        line: TRAIN,
        says: "model.safetensors",
    },
    Case {
        file: "adapter/adapter_config.json",
        bytes: || filled("{\"x\":[", "0,", "0]}", 1 << 20),
        line: "merge --model model --adapter adapter out",
        says: "adapter_config.json",
    },
    Case {
        file: "checkpoint-1/trainer_state.json",
        bytes: || filled("{\"log_history\":[", "{\"loss\":1},", "{}]}", 64 << 20),
        line: "import checkpoint-1 out --model model --train-file rows.jsonl",
        says: "trainer_state.json: global_step is missing",
    },
    Case {
        file: "checkpoint-1/trainer_state.json",
        bytes: || filled("{\"global_step\":[", "0,", "0]}", 64 << 20),
        line: "import checkpoint-1 out --model model --train-file rows.jsonl",
        says: "trainer_state.json: global_step is missing",
    },
    Case {
        file: "rows.jsonl",
        bytes: || filled("{\"input_ids\":[", "0,", "0]}\n", 16 << 20),
        line: TRAIN,
        says: "rows.jsonl",
    },
    Case {
        file: "rows.jsonl",
        bytes: || filled("{\"x\":[", "[],", "0]}\n", 16 << 20),
        line: TRAIN,
        says: "rows.jsonl",
    },
];

#[test]
fn no_file_takes_memory_out_of_proportion() {
    for (number, case) in CASES.iter().enumerate() {
        let folder = scratch(&format!("limits-{number}"));
        tiny_model(&folder.join("model"));
        tiny_rows(&folder.join("rows.jsonl"), 3, 1);
        let file = folder.join(case.file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, (case.bytes)()).unwrap();
        let (status, stderr) = run(&folder, case.line);
        let place = format!("{} by {}: {status}: {stderr}", case.file, case.line);
        assert!(matches!(status.code(), Some(2 | 65)) && stderr.contains(case.says), "{place}");
        assert!(stderr.len() < 2000, "{place}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// Threads: a number nobody means, and none to be had.
#[test]
fn threads_are_those_that_make_sense() {
    let folder = scratch("limits-threads");
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("rows.jsonl"), 3, 1);
    let train = |threads: &str, environment: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
        let line = "train --model model --train-file rows.jsonl --cache-dir cache --max-steps 1 --output-dir out \
            --overwrite-output-dir";
        command.args(line.split_whitespace()).args(threads.split_whitespace()).current_dir(&folder);
        command.env("RAYON_NUM_THREADS", environment).output().unwrap()
    };
    for (threads, environment) in [("", "1000000"), ("--threads 4096", "1"), ("", "none")] {
        let output = train(threads, environment);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{threads} {environment}: {stderr}");
    }
    let output = train("--threads 5000", "1");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Pipes and devices in every place of a file: refused at once.
#[test]
fn nothing_is_waited_for() {
    let pipe = |path: &Path| {
        let _ = std::fs::remove_file(path);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for (number, file) in [
        "model/config.json",
        "model/model.safetensors",
        "model/model.safetensors.index.json",
        "model/generation_config.json",
        "rows.jsonl",
        "run.toml",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "checkpoint-1/trainer_state.json",
        "checkpoint-1/optimizer.pt",
        "run/run.json",
    ]
    .into_iter()
    .enumerate()
    {
        let folder = scratch(&format!("limits-pipe-{number}"));
        tiny_model(&folder.join("model"));
        tiny_rows(&folder.join("rows.jsonl"), 3, 1);
        for (name, text) in [("adapter/adapter_config.json", "{}"), ("adapter/adapter_model.safetensors", "")]
        {
            std::fs::create_dir_all(folder.join("adapter")).unwrap();
            std::fs::write(folder.join(name), text).unwrap();
        }
        std::fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        pipe(&folder.join(file));
        let line = match file.split('/').next().unwrap() {
            "adapter" => "merge --model model --adapter adapter out",
            "checkpoint-1" => "import checkpoint-1 out --model model --train-file rows.jsonl",
            "run" => "resume run",
            "run.toml" => "train --config run.toml",
            _ if file.contains("generation") => "generate --model model hello",
            _ => TRAIN,
        };
        let (status, stderr) = run(&folder, line);
        assert!(matches!(status.code(), Some(2 | 65)), "{file}: {status}: {stderr}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
