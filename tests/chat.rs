//! A conversation: what was said before counts, `/reset` forgets it, and a terminal obeys nothing that a model says.

use qwentune::config::{Settings, Template};
use qwentune::data::prompts::{Dialogue, Prompter};
use qwentune::model::Spec;
use std::io::Write;
use std::process::{Command, Output, Stdio};

const MODEL: &str = "examples/quickstart/model";

fn answered(words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_qwentune"))
        .args(words)
        .args(["--model", MODEL, "--template", "deepke", "--max-new-tokens", "12", "--threads", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn chat(input: &str) -> (Vec<String>, String) {
    let output = answered(&["chat"], input);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    (String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect(), errors)
}

#[test]
fn a_first_answer_is_that_of_generate_and_reset_brings_it_back() {
    let alone = answered(&["generate", "Where does Anna work?"], "");
    let alone = String::from_utf8(alone.stdout).unwrap();
    let (first, errors) = chat("Where does Anna work?\n");
    assert_eq!(first, alone.lines().collect::<Vec<_>>(), "{errors}");

    let question = "Where does Anna work?\n";
    let (same, _) = chat(&format!("{question}\n/reset\n{question}"));
    assert_eq!(same.len() % 2, 0);
    assert_eq!(same[..same.len() / 2], same[same.len() / 2..]);
}

#[test]
fn what_was_said_before_is_in_the_prompt() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let settings = Settings { model: root.join(MODEL), template: Template::Qwen, ..Settings::default() };
    let prompter = Prompter::open(&settings, Spec::read(&settings.model).unwrap().vocab).unwrap();
    let mut dialogue = Dialogue::default();
    dialogue.ask("one");
    assert_eq!(prompter.dialogue(&dialogue).unwrap(), prompter.question("one").unwrap());
    dialogue.answer("two");
    dialogue.ask("three");
    let text = prompter.tokenizer().decode(&prompter.dialogue(&dialogue).unwrap());
    let turns = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n\
        <|im_start|>assistant\n";
    assert!(text.ends_with(turns), "{text}");
    dialogue.take_back();
    dialogue.ask("four");
    let text = prompter.tokenizer().decode(&prompter.dialogue(&dialogue).unwrap());
    assert!(text.contains("two") && text.contains("four") && !text.contains("three"), "{text}");
}

#[test]
fn commands_are_no_questions() {
    let (lines, errors) = chat("/resett\n/quit\nWhere does Anna work?\n");
    assert!(lines.is_empty(), "{lines:?}");
    assert!(errors.contains("/resett is no command here") && errors.contains("/reset begins"), "{errors}");
    let (lines, errors) = chat("");
    assert!(lines.is_empty() && errors.is_empty(), "{errors}");
}

#[test]
fn what_the_model_cannot_read_is_said_and_forgotten() {
    let long = "word ".repeat(4000);
    let (lines, errors) = chat(&format!("{long}\nWhere does Anna work?\n"));
    assert!(errors.contains("/reset begins a new one"), "{errors}");
    assert_eq!(lines, chat("Where does Anna work?\n").0);
}

/// Under a pseudo-terminal, made by script(1) of util-linux where there is one.
#[test]
fn a_terminal_shows_a_prompt_and_the_answer() {
    if Command::new("script").arg("--version").output().is_err() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_qwentune");
    let line = format!("{program} chat --model {MODEL} --template deepke --max-new-tokens 4 --threads 1");
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Where does Anna work?\n/quit\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    assert!(
        shown.contains("/reset begins a new conversation") && shown.matches("> ").count() >= 2,
        "{shown}"
    );
}
