//! Generation as text: prompts by the templates, rows written back, jobs that were interrupted.

use crate::common::Lcg;
use crate::scratch::{self, Scratch};
use qwentune::config::{Settings, Template};
use qwentune::data::prompts::{Prompter, with_output};
use qwentune::data::tokenizer::Tokenizer;
use qwentune::error::Kind;
use qwentune::generate::text::{Stream, decode};
use qwentune::generate::{Model, Options, Sampling, job};
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn small() -> PathBuf {
    Path::new(ROOT).join("tests/golden/text/small")
}

fn quickstart() -> PathBuf {
    Path::new(ROOT).join("examples/quickstart/model")
}

fn settings(model: &Path, template: &str, thinking: Option<bool>) -> Settings {
    let template: Template = serde_json::from_value(json!(template)).unwrap();
    Settings { model: model.to_owned(), template, thinking, ..Settings::default() }
}

fn prompts(template: &str, thinking: Option<bool>, rows: &[Value]) -> Vec<Vec<u32>> {
    let folder = scratch::folder();
    let file = folder.file("rows.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let prompter = Prompter::open(&settings(&small(), template, thinking), 1000).unwrap();
    prompter.file(&file).unwrap().into_iter().map(|row| row.ids).collect()
}

/// The prompt is what stands before the last answer when the whole conversation is rendered by transformers.
#[test]
fn prompts_are_the_beginning_of_the_conversations_of_hugging_face() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("tests/golden/text/chats-small.jsonl")).unwrap();
    let cases: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tokenizer = Tokenizer::open(&small()).unwrap();
    let mut compared = 0;
    for case in cases.iter().filter(|case| case["template"] != "qwen-v1") {
        let template = case["template"].as_str().unwrap();
        let messages = case["messages"].as_array().unwrap();
        let last = messages.last().unwrap();
        let answer = last["content"].as_str().unwrap();
        // A line feed of the answer becomes one token with the header's: then the prompt is no beginning.
        if last["role"] != "assistant" || answer.starts_with('\n') || messages.len() == 1 {
            continue;
        }
        let whole: Vec<u32> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let thoughts = answer.starts_with("<think>\nf") || last.get("reasoning_content").is_some();
        let thinking = template != "qwen3" || thoughts || messages[messages.len() - 2]["role"] == "system";
        let prompt =
            prompts(template, (!thinking).then_some(false), &[json!({ "messages": messages })]).remove(0);
        assert!(whole.starts_with(&prompt), "{template} {messages:?}: {}", tokenizer.decode(&prompt));
        let rest = tokenizer.decode(&whole[prompt.len()..]);
        if template == "qwen3" {
            let said = answer.rsplit("</think>\n\n").next().unwrap();
            let before = if thinking && thoughts { rest.find("</think>\n\n").unwrap() + 10 } else { 0 };
            assert!(rest[before..].starts_with(said), "{template} {messages:?}: {rest:?}");
        } else {
            assert!(rest.starts_with(answer), "{template} {messages:?}: {rest:?}");
        }
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn every_row_format_is_a_prompt_with_or_without_its_answer() {
    let question =
        prompts("qwen2.5", None, &[json!({"messages": [{"role": "user", "content": "one\ntwo"}]})]);
    for row in [
        json!({"instruction": "one", "input": "two"}),
        json!({"instruction": "one\ntwo", "output": "three"}),
        json!({"prompt": "one\ntwo"}),
        json!({"prompt": [{"role": "user", "content": "one\ntwo"}], "completion": "x"}),
        json!({"conversations": [{"from": "human", "value": "one\ntwo"}, {"from": "gpt", "value": "x"}]}),
        json!({"messages": [{"role": "user", "content": "one\ntwo"}, {"role": "assistant", "content": "x"}]}),
        json!({"input_ids": question[0]}),
    ] {
        assert_eq!(prompts("qwen2.5", None, std::slice::from_ref(&row)), question, "{row}");
    }
    let prompter = Prompter::open(&settings(&small(), "qwen2.5", None), 1000).unwrap();
    assert_eq!(prompter.question("one\ntwo").unwrap(), question[0]);
    let text = prompts("qwen2.5", None, &[json!({"text": "one <|im_end|>"})]).remove(0);
    assert_eq!(Tokenizer::open(&small()).unwrap().decode(&text), "one <|im_end|>");
    assert!(prompter.question("").is_err());
    let refused = Prompter::open(&settings(&small(), "qwen2.5", Some(false)), 1000).err().unwrap();
    assert_eq!(refused.exit_code(), 2);
    let folder = scratch::folder();
    for (rows, says) in [
        ("{\"prompt\": \"a\"}\n{\"prompt\": \"\"}\n[1]\n", "2 bad rows"),
        (
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}",
            ":1: the conversation has no messages",
        ),
        ("{\"input_ids\": [5000]}", ":1: token 5000 at position 0 is outside the vocabulary of 1000"),
        ("{\"input_ids\": []}", ":1: "),
        ("\n", "no rows"),
    ] {
        let error = prompter.file(&folder.file("bad.jsonl", rows)).unwrap_err();
        assert!(error.exit_code() == 65 && error.what.contains(says), "{rows}: {error}");
    }
}

#[test]
fn a_row_is_written_back_as_it_was_but_for_its_output() {
    for (row, new) in [
        (r#"{}"#, r#"{"output": "\"é\n"}"#),
        (r#"{"b": 1.50, "a": [{"output": 2}]}"#, r#"{"b": 1.50, "a": [{"output": 2}], "output": "\"é\n"}"#),
        (r#"{"output":"old","z":"}"}"#, r#"{"output":"\"é\n","z":"}"}"#),
        (
            r#"{"a": "\"output\": 1", "output": [1, {"x": "]"}] }"#,
            r#"{"a": "\"output\": 1", "output": "\"é\n" }"#,
        ),
        (r#"{"k": "output", "o\u0075tput": null}"#, r#"{"k": "output", "o\u0075tput": "\"é\n"}"#),
    ] {
        assert_eq!(with_output(row, "\"é\n"), new);
        let parsed: Value = serde_json::from_str(new).unwrap();
        assert_eq!(parsed["output"], "\"é\n");
    }
}

#[test]
fn text_comes_in_whole_characters_without_control_tokens() {
    let tokenizer = Tokenizer::open(&small()).unwrap();
    let mut ids = tokenizer.encode("a 😀 é 中 <think>").unwrap();
    let control = tokenizer.added("<|im_start|>").unwrap();
    ids.insert(3, control);
    let mut random = Lcg(9);
    let noise: Vec<u32> = (0..400).map(|_| random.below(600) as u32).collect();
    for ids in [ids, noise] {
        let (mut stream, mut pieces) = (Stream::default(), Vec::new());
        ids.iter().for_each(|id| pieces.push(stream.push(&tokenizer, *id)));
        pieces.push(stream.finish());
        assert_eq!(pieces.concat(), decode(&tokenizer, &ids));
    }
    assert_eq!(decode(&tokenizer, &[control]), "");
}

// ---- jobs -------------------------------------------------------------------------------------------------

struct Job {
    folder: Scratch,
    model: Model,
    prompter: Prompter,
    options: Options,
}

fn rows_file(folder: &Scratch, count: usize) -> PathBuf {
    let text = std::fs::read_to_string(Path::new(ROOT).join("examples/quickstart/test.jsonl")).unwrap();
    folder.file("rows.jsonl", text.lines().take(count).map(|line| format!("{line}\n")).collect::<String>())
}

fn new_job() -> Job {
    let folder = scratch::folder();
    rows_file(&folder, 7);
    let model = Model::open(&quickstart(), None).unwrap();
    let prompter = Prompter::open(&settings(&quickstart(), "deepke", None), model.spec.vocab).unwrap();
    let sampling = Sampling { temperature: 0.8, top_k: None, top_p: 0.9, ..Sampling::GREEDY };
    let ends = [prompter.ends(), model.ends.clone()].concat();
    let options = Options { max_new_tokens: 12, sampling, seed: 1, batch: 3, ends, ..super::options(12) };
    let options = Options { threads: Some(1), ..options };
    Job { folder, model, prompter, options }
}

impl Job {
    fn run(&self, output: &str, cancelled: &dyn Fn() -> bool) -> qwentune::error::Result<job::Done> {
        let (input, output) = (self.folder.join("rows.jsonl"), self.folder.join(output));
        job::run(&self.model, &self.prompter, &self.options, &input, &output, &mut |_: &_| {}, cancelled)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }
}

#[test]
fn an_interrupted_job_continues_to_the_same_bytes() {
    let job = new_job();
    let done = job.run("whole.jsonl", &|| false).unwrap();
    assert_eq!((done.rows, done.continued), (7, 0));
    let whole = job.read("whole.jsonl");
    assert_eq!(whole.lines().count(), 7);
    for (line, row) in whole.lines().zip(job.read("rows.jsonl").lines()) {
        let (mut line, row): (Value, Value) =
            (serde_json::from_str(line).unwrap(), serde_json::from_str(row).unwrap());
        assert!(line["output"].is_string());
        line.as_object_mut().unwrap().remove("output");
        assert_eq!(line, row);
    }
    // Stopped again and again, with a torn line at the end of what is kept.
    let mut continued = Vec::new();
    for attempt in 0.. {
        let left = Cell::new(60);
        let stop = || left.replace(left.get() - 1) == 0;
        match job.run("parts.jsonl", &stop) {
            Ok(done) => {
                continued.push(done.continued);
                break;
            }
            Err(error) => assert_eq!(error.kind, Kind::Stopped, "{error}"),
        }
        assert!(!job.folder.join("parts.jsonl").exists() && attempt < 20);
        let partial = job.read("parts.jsonl.partial");
        continued.push(partial.lines().count() - 1);
        job.folder.file("parts.jsonl.partial", format!("{partial}{{\"torn"));
    }
    assert!(continued.len() >= 3 && continued.is_sorted(), "{continued:?}");
    assert_eq!(job.read("parts.jsonl"), whole);
    assert!(!job.folder.join("parts.jsonl.partial").exists());
}

/// Weights that are edited meanwhile would give answers of another model.
#[test]
fn an_answer_is_of_the_weights_it_says() {
    use std::os::unix::fs::FileExt;
    let mut job = new_job();
    job.run("whole.jsonl", &|| false).unwrap();
    let copy = job.folder.join("model");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(quickstart()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    job.model = Model::open(&copy, None).unwrap();
    let weights = copy.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let left = Cell::new(90);
    let edit = || {
        if left.replace(left.get() - 1) == 0 {
            let file = std::fs::File::options().write(true).open(&weights).unwrap();
            file.write_all_at(&[bytes[bytes.len() - 1] ^ 1], bytes.len() as u64 - 1).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified + std::time::Duration::from_secs(1)).unwrap();
        }
        false
    };
    let error = job.run("out.jsonl", &edit).unwrap_err();
    assert!(error.kind == Kind::Io && error.what.contains("was edited in place"), "{error}");
    assert!(!job.folder.join("out.jsonl").exists());
    // What is kept is of the weights as they were: put back, the same job goes on.
    let kept = job.read("out.jsonl.partial").lines().count() - 1;
    assert!((1..7).contains(&kept), "{kept} answers");
    std::fs::write(&weights, &bytes).unwrap();
    job.model = Model::open(&copy, None).unwrap();
    assert_eq!(job.run("out.jsonl", &|| false).unwrap().continued, kept);
    assert_eq!(job.read("out.jsonl"), job.read("whole.jsonl"));
}

#[test]
fn what_belongs_to_another_job_or_is_there_is_not_touched() {
    let mut job = new_job();
    let left = Cell::new(60);
    job.run("out.jsonl", &|| left.replace(left.get() - 1) == 0).unwrap_err();
    let partial = job.read("out.jsonl.partial");
    job.options.seed = 2;
    let error = job.run("out.jsonl", &|| false).unwrap_err();
    assert_eq!(error.exit_code(), 73);
    assert!(error.what.contains("is of another job"), "{error}");
    assert_eq!(job.read("out.jsonl.partial"), partial);
    // Batch and threads change no answer: still the same job.
    job.options = Options { seed: 1, batch: 1, threads: Some(2), ..job.options };
    job.run("out.jsonl", &|| false).unwrap();
    let error = job.run("out.jsonl", &|| false).unwrap_err();
    assert!(error.exit_code() == 73 && error.what.contains("is there already"), "{error}");
    job.run("again.jsonl", &|| false).unwrap();
    assert_eq!(job.read("again.jsonl"), job.read("out.jsonl"));
}

/// A model that is edited while it answers ends the job; what was answered before is kept, and the job goes on with the
/// model it began with.
#[test]
fn a_model_that_is_edited_meanwhile_ends_the_job() {
    let mut job = new_job();
    let folder = job.folder.join("model");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(quickstart()).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
    }
    job.model = Model::open(&folder, None).unwrap();
    job.run("whole.jsonl", &|| false).unwrap();
    let weights = folder.join("model.safetensors");
    let edit = || {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
        let end = file.metadata().unwrap().len() - 1;
        file.write_all_at(&[1], end).unwrap();
        // Another time stamp, whatever the file system's resolution.
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    };
    let whole = std::fs::read(&weights).unwrap();
    let left = Cell::new(60);
    let edited_meanwhile = || {
        if left.replace(left.get() - 1) == 0 {
            edit();
        }
        false
    };
    let error = job.run("edited.jsonl", &edited_meanwhile).unwrap_err();
    assert_eq!(error.kind, Kind::Io, "{error}");
    assert!(
        error.to_string().contains("model.safetensors")
            && error.to_string().contains("run the command again")
    );
    assert!(!job.folder.join("edited.jsonl").exists());
    let kept = job.read("edited.jsonl.partial").lines().count() - 1;
    std::fs::write(&weights, whole).unwrap();
    job.model = Model::open(&folder, None).unwrap();
    let done = job.run("edited.jsonl", &|| false).unwrap();
    assert_eq!((done.continued, job.read("edited.jsonl")), (kept, job.read("whole.jsonl")));
}

// ---- the program ------------------------------------------------------------------------------------------

fn program(words: &[&str], input: &str) -> Output {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_qwentune"))
        .arg("generate")
        .args(["--model", "examples/quickstart/model", "--template", "deepke"])
        .args(words)
        .current_dir(ROOT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A refused command may be gone before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn the_program_answers_words_standard_input_and_files_alike() {
    let folder = scratch::folder();
    let text = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let words = text(program(&["--max-new-tokens", "12", "Where", "is", "Raven Mini?"], ""));
    assert!(words.len() > 3 && words.ends_with('\n'), "{words:?}");
    assert_eq!(text(program(&["--max_new_tokens=12"], "Where is Raven Mini?\n")), words);
    let rows =
        folder.file("rows.json", "[{\"instruction\": \"Where is\nRaven Mini?\"}]".replace("is\n", "is "));
    let (rows, out) = (rows.display().to_string(), folder.join("out.jsonl").display().to_string());
    let flags = ["--max_new_tokens", "12", "--input_file", &rows, "--output_file", &out, "--do_predict"];
    let said = text(program(&[&flags[..], &["--batch_size", "2", "--num_beams", "1"]].concat(), ""));
    assert!(said.contains("1 rows, "), "{said}");
    let row: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(row["output"].as_str().unwrap(), words.trim_end_matches('\n'));
    let drawn =
        |seed: &str| text(program(&["--top_p", "0.9", "--max_new_tokens", "20", "--seed", seed, "x"], ""));
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn wrong_words_are_one_clear_error() {
    for (words, code, says) in [
        ("--temperature 0 --top-k 5 x", 2, "--top-k and --top-p mean nothing"),
        ("--temperature -1 x", 2, "--temperature: '-1' is not a number from 0 to 1000"),
        ("--top_p 0 x", 2, "--top-p: '0' is not a number above 0 up to 1"),
        ("--max-new-tokens 0 x", 2, "--max-new-tokens: '0' is not"),
        ("--input-file a", 2, "--output-file is missing"),
        ("--output-file a x", 2, "--output-file needs --input-file"),
        ("--input-file a --output-file b x", 2, "not both"),
        ("--input-file nowhere --output-file b", 65, "nowhere"),
        ("--device cuda x", 69, "--device cuda:0"),
        ("--enable-thinking false x", 2, "--thinking false: the template deepke has no thinking"),
        ("--thinking maybe x", 2, "thinking: 'maybe' is not true or false"),
        ("--adapter nowhere x", 65, "nowhere/adapter_config.json"),
        ("--num_beams 4 x", 2, "beams"),
        ("--bits 4 x", 2, "cannot be honoured"),
    ] {
        let words: Vec<&str> = words.split_whitespace().collect();
        let output = program(&words, "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
        assert!(stderr.contains(says) && stderr.lines().count() <= 2, "{words:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}
