//! Completions, the manual page and the configuration to begin with, each read by its other side: the shells, roff, and
//! `train --config`.

use crate::common::{scratch, tiny_model, tiny_rows};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn program(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qwentune")).args(words).current_dir(folder).output().unwrap()
}

fn printed(words: &[&str]) -> String {
    let output = program(Path::new("."), words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Where the tool is, when this machine has it.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// What bash offers for the last of these words.
fn completed(script: &Path, words: &[&str]) -> Vec<String> {
    let listed: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "set -u; source {}; COMP_WORDS=({}); COMP_CWORD={}; _qwentune; printf '%s\\n' \"${{COMPREPLY[@]:-}}\"",
        script.display(),
        listed.join(" "),
        words.len() - 1
    );
    let output = Command::new("bash").args(["--norc", "-c", &line]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{words:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_choices() {
    let folder = scratch("completions-bash");
    let script = folder.join("qwentune.bash");
    std::fs::write(&script, printed(&["completions", "bash"])).unwrap();
    for (words, offered) in [
        (&["qwentune", "tr"][..], &["train"][..]),
        (&["qwentune", "checkpoint", "l"], &["list"]),
        (&["qwentune", "checkpoint", "list", "--j"], &["--json"]),
        (&["qwentune", "train", "--learning"], &["--learning-rate"]),
        (&["qwentune", "train", "--seed", "1", "--learning"], &["--learning-rate"]),
        (&["qwentune", "train", "--too-long", "d"], &["drop"]),
        (&["qwentune", "train", "--report-to", ""], &["none", "tensorboard"]),
        (&["qwentune", "train", "--packing", "t"], &["true"]),
        (&["qwentune", "export", "run", "out", "--format", ""], &["peft", "hf-trainer", "gguf"]),
        (&["qwentune", "completions", "f"], &["fish"]),
        // A setting that `resume` refuses is not offered for it; a command without flags offers no commands.
        (&["qwentune", "resume", "run", "--lora-r"], &[""]),
        (&["qwentune", "doctor", "tr"], &[""]),
    ] {
        assert_eq!(completed(&script, words), offered, "{words:?}");
    }
    let all = completed(&script, &["qwentune", ""]);
    for command in ["train", "resume", "export", "init", "man"] {
        assert!(all.iter().any(|word| word == command), "{command} is not in {all:?}");
    }
}

#[test]
fn zsh_and_fish_read_their_completions() {
    let folder = scratch("completions-others");
    for (shell, flags) in [("zsh", &["-n"][..]), ("fish", &["--no-execute"])] {
        let text = printed(&["completions", shell]);
        assert!(text.contains("learning-rate") && text.contains("hf-trainer"), "{shell}");
        let script = folder.join(shell);
        std::fs::write(&script, text).unwrap();
        let Some(tool) = tool(shell) else { continue };
        let output = Command::new(tool).args(flags).arg(&script).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{shell}: {errors}");
    }
    if let Some(fish) = tool("fish") {
        let script = folder.join("fish");
        let line = format!("source {}; complete -C 'qwentune train --too-long d'", script.display());
        let output = Command::new(fish).args(["--no-config", "-c", &line]).output().unwrap();
        let offered = String::from_utf8(output.stdout).unwrap();
        assert!(offered.starts_with("drop\t") && offered.lines().count() == 1, "{offered}");
    }
    let unknown = program(&folder, &["completions", "powershell"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_manual_page_is_sound_roff_and_has_every_command_and_setting() {
    let folder = scratch("completions-manual");
    let text = printed(&["man"]);
    let page = folder.join("qwentune.1");
    std::fs::write(&page, &text).unwrap();
    for wanted in
        [".TH QWENTUNE 1", ".SS qwentune train", "\\-\\-learning\\-rate", "\\-\\-report\\-to", ".B 79"]
    {
        assert!(text.contains(wanted), "{wanted}");
    }
    if let Some(mandoc) = tool("mandoc") {
        let output = Command::new(mandoc).args(["-T", "lint", "-W", "warning"]).arg(&page).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let faults: Vec<&str> = said.lines().filter(|line| !line.contains("missing date")).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
    if let Some(man) = tool("man") {
        let output =
            Command::new(man).args(["--warnings", "-l"]).arg(&page).env("MANPAGER", "cat").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let shown = String::from_utf8_lossy(&output.stdout).replace('\u{8}', "");
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        assert!(shown.contains("EXIT STATUS") || shown.contains("EEXXIITT"), "{shown}");
    }
}

#[test]
fn help_is_short_or_long() {
    let (short, long) = (printed(&["train", "-h"]), printed(&["train", "--help"]));
    assert!(short.len() < long.len());
    assert!(!short.contains("[also --lr]") && long.contains("[also --lr]"));
    assert!(
        !printed(&["-h"]).contains("Exit status:")
            && printed(&["--help"]).contains("  75  Stopped on request")
    );
}

#[test]
fn a_configuration_to_begin_with_is_taken_as_it_is() {
    let folder = scratch("init");
    assert!(program(&folder, &["init", "run.toml"]).status.success());
    tiny_model(&folder.join("path/to/model"));
    tiny_rows(&folder.join("train.jsonl"), 9, 1);
    let output = program(
        &folder,
        &["train", "--config", "run.toml", "--max-steps", "1", "--threads", "1", "--cache-dir", "cache"],
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !stderr.contains("warning"), "{stderr}");
    assert!(folder.join("runs/first/adapter/adapter_model.safetensors").is_file());

    // What is there already stays.
    std::fs::write(folder.join("mine.toml"), "mine").unwrap();
    let output = program(&folder, &["init", "mine.toml"]);
    assert_eq!(output.status.code(), Some(73), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(folder.join("mine.toml")).unwrap(), "mine");
}

/// Every line that shows a default is that default when its `#` is taken away.
#[test]
fn every_shown_default_is_one() {
    let folder = scratch("init-defaults");
    let text = printed(&["init"]);
    let shown: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# ")).filter(|l| l.contains(" = ")).collect();
    assert!(shown.len() > 40, "{shown:?}");
    let plain = qwentune::cli::train_settings(&["--output-dir", "o"]).unwrap().0;
    for line in shown {
        let file = folder.join("one.toml");
        std::fs::write(&file, format!("{line}\n")).unwrap();
        let read = qwentune::cli::train_settings(&["--config", file.to_str().unwrap(), "--output-dir", "o"]);
        assert_eq!(read.unwrap_or_else(|e| panic!("{line}: {e}")).0, plain, "{line}");
    }
}
