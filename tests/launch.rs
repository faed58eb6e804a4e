//! What starts and stops a run from outside: launchers of several processes, signals, and the command that a message
//! offers, pasted into a shell.

use crate::common::{scratch, tiny_model, tiny_rows};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const TRAIN: &str = "train --model model --train-file train.jsonl --output-dir run --cache-dir cache --lora-r 2 \
    --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --logging-steps 1 --threads 1";

fn place(name: &str) -> PathBuf {
    let folder = scratch(&format!("launch-{name}"));
    tiny_model(&folder.join("model"));
    tiny_rows(&folder.join("train.jsonl"), 11, 1);
    folder
}

fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(line.split_whitespace()).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    command
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn every_rank_of_a_launcher_is_refused_before_a_folder_is_touched() {
    let folder = place("ranks");
    let launchers = [
        ("WORLD_SIZE", "torchrun", "RANK"),
        ("SLURM_STEP_NUM_TASKS", "srun", "SLURM_PROCID"),
        ("OMPI_COMM_WORLD_SIZE", "mpirun", "OMPI_COMM_WORLD_RANK"),
        ("PMI_SIZE", "mpiexec", "PMI_RANK"),
    ];
    for (size, launcher, rank) in launchers {
        for of in ["0", "1"] {
            let mut command = program(&folder, &format!("{TRAIN} --max-steps 2"));
            let output = command.env(size, "2").env(rank, of).output().unwrap();
            let text = text_of(&output);
            assert_eq!(output.status.code(), Some(2), "{size}: {text}");
            assert!(text.contains(size) && text.contains(launcher), "{size}: {text}");
            assert!(!folder.join("run").exists() && !folder.join("cache").exists(), "{size}: {text}");
        }
    }
    // One process, and the variable that plain batch scripts have too.
    let mut command = program(&folder, &format!("{TRAIN} --max-steps 2"));
    let output = command.env("WORLD_SIZE", "1").env("SLURM_NTASKS", "8").output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
}

/// A run that would go on for long, once its first steps are done. `shell` stands before it.
fn begun(folder: &Path, shell: &str, flags: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let line =
        format!("{shell} exec '{}' {TRAIN} --max-steps 10000000 {flags}", env!("CARGO_BIN_EXE_qwentune"));
    let mut command = Command::new("sh");
    command.args(["-c", &line]).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    wait_for(&mut lines, "step ");
    (child, lines)
}

fn wait_for(lines: &mut impl BufRead, begin: &str) {
    let mut line = String::new();
    while !line.starts_with(begin) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before {begin:?}");
    }
}

fn send(child: &Child, signal: i32) {
    let process = rustix::process::Pid::from_child(child);
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

/// Its status, and all it printed from here on. What it prints is read, so that a full pipe never holds it.
fn ended(mut child: Child, mut lines: BufReader<std::process::ChildStdout>) -> (Option<i32>, String) {
    let mut text = String::new();
    lines.read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

/// It saved what it says it stopped at.
fn saved_and_stopped(folder: &Path, name: &str, (code, text): (Option<i32>, String)) {
    assert_eq!(code, Some(75), "{name}: {text}");
    let step = text.split("stopped at step ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let step: u64 = step.and_then(|step| step.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"));
    let path = qwentune::checkpoint::inspect::path_of_step(&folder.join("run"), step);
    qwentune::checkpoint::inspect::verify(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    std::fs::remove_dir_all(folder.join("run")).unwrap();
}

#[test]
fn signals_that_ask_for_an_end_save_first() {
    let folder = place("signals");
    let asks = [
        ("INT", libc::SIGINT, ""),
        ("TERM", libc::SIGTERM, ""),
        ("HUP", libc::SIGHUP, ""),
        ("USR2", libc::SIGUSR2, ""),
        ("USR1", libc::SIGUSR1, "--stop-signal USR1"),
    ];
    for (name, signal, flags) in asks {
        let (child, lines) = begun(&folder, "", flags);
        // A launcher and a script's trap both send it.
        send(&child, signal);
        send(&child, signal);
        saved_and_stopped(&folder, name, ended(child, lines));
    }
}

#[test]
fn what_was_ignored_at_the_start_stays_ignored() {
    let folder = place("ignored");
    let (child, mut lines) = begun(&folder, "trap '' HUP;", "");
    send(&child, libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(100));
    wait_for(&mut lines, "step ");
    send(&child, libc::SIGTERM);
    saved_and_stopped(&folder, "nohup", ended(child, lines));
}

#[test]
fn a_signal_to_save_does_not_end_a_run() {
    let folder = place("saves");
    let (child, mut lines) = begun(&folder, "", "");
    send(&child, libc::SIGUSR1);
    wait_for(&mut lines, "saved ");
    wait_for(&mut lines, "step ");
    send(&child, libc::SIGTERM);
    saved_and_stopped(&folder, "USR1", ended(child, lines));
}

/// The command that the message of a divergence holds, as it stands there.
fn offered(output: &Output) -> String {
    let text = text_of(output);
    assert_eq!(output.status.code(), Some(79), "{text}");
    let command = text.split("with a lower rate: ").nth(1).unwrap_or_else(|| panic!("no command: {text}"));
    command.lines().next().unwrap().to_owned()
}

fn pasted(folder: &Path, command: &str) -> Output {
    Command::new("sh").args(["-c", command]).current_dir(folder).output().unwrap()
}

#[test]
fn the_command_that_a_divergence_names_works_when_it_is_pasted() {
    // A name that a shell would take apart.
    let folder = place("diverged").join("it's here");
    std::fs::create_dir(&folder).unwrap();
    for name in ["model", "train.jsonl"] {
        std::fs::rename(folder.with_file_name(name), folder.join(name)).unwrap();
    }
    let train = format!("{TRAIN} --max-steps 6 --save-steps 1 --max-grad-norm 0");
    let with = |rate: &str, out: &str| {
        let line = train.replace("--output-dir run", "");
        let mut command = program(&folder, &line);
        command.args([&format!("--output-dir={out}"), "--learning-rate", rate]).output().unwrap()
    };
    // The state after a step of that rate is saved, whole, and of no use at any rate.
    let output = with("1e20", "a run");
    assert!(text_of(&output).contains("the checkpoint of step 1 stands"), "{}", text_of(&output));
    let command = offered(&output);
    assert!(command.contains("--overwrite-output-dir"), "{command}");
    // Once more, with the rate that the user finds in the end.
    let again = pasted(&folder, &command.replace("1e19", "1e-3"));
    assert!(again.status.success(), "{command}: {}", text_of(&again));
    // Diverging later, it leaves a good state; each command goes on with a tenth of the rate before, until it is low enough.
    let mut output = with("1e6", "-later");
    let mut tries = 0;
    while !output.status.success() {
        let command = offered(&output);
        assert!(
            tries > 0 || command.contains("--branch") && command.contains("step-00000001.qckpt"),
            "{command}"
        );
        output = pasted(&folder, &command);
        tries += 1;
        assert!(tries < 12, "{command}: {}", text_of(&output));
    }
    assert!(tries > 0, "{}", text_of(&output));
}
