//! Rows in the forms that people bring: what is trained on, or the key that is refused by name.

use crate::data::Folder;
use qwentune::config::{Settings, Template, TrainOn};
use qwentune::data::preview::{PreviewRow, preview};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn settings(folder: &Folder, file: PathBuf) -> Settings {
    Settings {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text/small"),
        train_files: vec![file],
        cache_dir: Some(folder.path().join("cache")),
        template: Template::None,
        ..Settings::default()
    }
}

fn shown_file(name: &str, content: &str, change: impl Fn(&mut Settings)) -> Result<Vec<PreviewRow>, String> {
    let folder = Folder::new(&format!("rows-{:?}", std::thread::current().id()));
    let mut settings = settings(&folder, folder.file(name, content));
    change(&mut settings);
    preview(&settings, usize::MAX).map_err(|fault| fault.to_string())
}

/// What is read, the scored stretches in brackets, or why the row is not used.
fn read(row: &PreviewRow) -> String {
    if !row.note.is_empty() {
        return row.note.clone();
    }
    let piece = |(text, scored): &(String, bool)| if *scored { format!("[{text}]") } else { text.clone() };
    row.pieces.iter().map(piece).collect()
}

/// [`read`] of one row; a fault of its file stands for it.
fn reading(row: &Value, change: impl Fn(&mut Settings)) -> String {
    match shown_file("rows.jsonl", &format!("{row}\n"), change) {
        Ok(rows) => read(&rows[0]),
        Err(fault) => fault,
    }
}

fn check(rows: &[(Value, &str)], change: impl Fn(&mut Settings)) {
    for (row, expected) in rows {
        assert_eq!(reading(row, &change), *expected, "{row}");
    }
}

fn refused(rows: &[(Value, &[&str])]) {
    for (row, words) in rows {
        let said = reading(row, |_| ());
        assert!(
            words.iter().all(|word| said.contains(word)) && !said.contains("<|endoftext|>"),
            "{row}: {said}"
        );
    }
}

fn columns(pairs: &[(&str, &str)]) -> impl Fn(&mut Settings) {
    let map = pairs.iter().map(|(name, key)| ((*name).to_owned(), (*key).to_owned())).collect();
    move |settings| settings.columns.clone_from(&map)
}

fn turns(flags: &[Value]) -> Value {
    let mut messages =
        vec![json!({"role": "user", "content": "one?"}), json!({"role": "assistant", "content": "one"})];
    messages
        .extend([json!({"role": "user", "content": "two?"}), json!({"role": "assistant", "content": "two"})]);
    for (message, flags) in messages.iter_mut().filter(|m| m["role"] == "assistant").zip(flags) {
        message.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    }
    json!({ "messages": messages })
}

#[test]
fn a_turn_says_whether_it_is_trained_on() {
    const BOTH: &str = "one?[one<|endoftext|>]two?[two<|endoftext|>]";
    const SECOND: &str = "one?one<|endoftext|>two?[two<|endoftext|>]";
    const FIRST: &str = "one?[one<|endoftext|>]two?two<|endoftext|>";
    let off = [json!({"weight": 0}), json!({"weight": 0.0}), json!({"loss": false}), json!({"train": false})];
    let more = [json!({"training": false}), json!({"loss_scale": 0}), json!({"loss": 0, "train": false})];
    for flag in off.iter().chain(&more) {
        check(
            &[(turns(std::slice::from_ref(flag)), SECOND), (turns(&[json!({}), flag.clone()]), FIRST)],
            |_| (),
        );
        check(&[(turns(&[json!({}), flag.clone()]), "left out: nothing in it is scored")], |settings| {
            settings.train_on = TrainOn::LastTurn;
        });
        check(
            &[(turns(std::slice::from_ref(flag)), "[one?]one<|endoftext|>[two?two<|endoftext|>]")],
            |settings| {
                settings.train_on = TrainOn::All;
            },
        );
    }
    for flag in [json!({"weight": 1}), json!({"loss": true, "train": true}), json!({"loss": null}), json!({})]
    {
        check(&[(turns(&[flag.clone(), flag]), BOTH)], |_| ());
    }
    check(&[(turns(&[json!({"train": true})]), BOTH), (turns(&[]), SECOND)], |settings| {
        settings.train_on = TrainOn::LastTurn;
    });
    refused(&[
        (turns(&[json!({"weight": 0.5})]), &["message 2", "`weight`", "1 or 0"]),
        (turns(&[json!({"weight": "0"})]), &["`weight`"]),
        (turns(&[json!({"loss": true, "train": false})]), &["`loss` and `train` contradict"]),
        (turns(&[json!({"train_detail": [{"begin_offset": 0}]})]), &["`train_detail`"]),
        (turns(&[json!({"prefix": true})]), &["`prefix`"]),
        (turns(&[json!({"refusal": "No."})]), &["`refusal`"]),
        (
            json!({"messages": [{"role": "user", "content": "q", "train": true}, {"role": "assistant", "content": "a"}]}),
            &["message 1", "only answers"],
        ),
        (json!({"prompt": "q", "completion": "a", "weight": 0.3}), &["`weight`"]),
        (json!({"prompt": "q", "completion": "a", "train": false}), &["leave it out"]),
    ]);
}

#[test]
fn keys_that_mean_another_training_are_refused_by_name() {
    let with = |key: &str, value: Value| {
        let mut rows = vec![
            json!({"instruction": "q", "output": "a"}),
            json!({"prompt": "q", "completion": "a"}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            json!({"text": "a"}),
            json!({"input_ids": [1, 2]}),
        ];
        rows.iter_mut().for_each(|row| row[key] = value.clone());
        rows
    };
    let named = [
        ("chosen", json!("a")),
        ("rejected", json!([{"role": "assistant", "content": "b"}])),
        ("label", json!(true)),
        ("label", json!("False")),
        ("kto_tag", json!(false)),
        ("images", json!(["a.png"])),
        ("videos", json!(["a.mp4"])),
        ("reasoning", json!("because")),
        ("thinking", json!("because")),
        ("weights", json!([1, 0])),
    ];
    for (key, value) in named {
        for row in with(key, value) {
            let said = reading(&row, |_| ());
            assert!(said.contains(&format!("`{key}`")), "{row}: {said}");
        }
    }
    // What says nothing changes nothing, and DeepKE's own `label` is a text.
    for (key, value) in
        [("images", json!([])), ("chosen", json!(null)), ("label", json!("{\"a\": []}")), ("id", json!(7))]
    {
        for row in with(key, value).into_iter().take(4) {
            assert_eq!(reading(&row, |_| ()), "q[a<|endoftext|>]", "{row}");
        }
    }
    refused(&[
        (json!({"prompt": "q", "chosen": "a", "rejected": "b"}), &["`chosen`", "DPO"]),
        (json!({"prompt": "q", "completion": ["a"]}), &["`completion` is an array"]),
        (json!({"instruction": ["q"], "output": "a"}), &["message 1"]),
        (
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "r"}]}),
            &["message 2", "`reasoning`", "reasoning_content"],
        ),
        (
            json!({"messages": [{"role": "user", "content": "q", "images": ["a.png"]}, {"role": "assistant", "content": "a"}]}),
            &["`images`"],
        ),
        (
            json!({"prompt": "q", "completion": "a", "completion_mask": [0, 1]}),
            &["`completion_mask`", "input_ids"],
        ),
        (json!({"question": "q", "answer": "a", "context": "c"}), &["`context`", "--columns query=context"]),
    ]);
}

#[test]
fn a_system_message_beside_the_turns_is_read() {
    let messages = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    check(
        &[
            (json!({"system": "s:", "messages": messages}), "s:q[a<|endoftext|>]"),
            (json!({"system": "s:", "prompt": "q", "completion": "a"}), "s:q[a<|endoftext|>]"),
            (
                json!({"system": "s:", "prompt": [messages[0]], "completion": [messages[1]]}),
                "s:q[a<|endoftext|>]",
            ),
            (json!({"system": "s:", "instruction": "q", "output": "a"}), "s:q[a<|endoftext|>]"),
            (json!({"system_prompt": "s:", "query": "q", "response": "a"}), "s:q[a<|endoftext|>]"),
            (
                json!({"system": "s:", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
                "s:q[a<|endoftext|>]",
            ),
            (json!({"system": "", "messages": messages}), "q[a<|endoftext|>]"),
        ],
        |_| (),
    );
    let system = json!({"role": "system", "content": "s:"});
    let both = json!([system, messages[0], messages[1]]);
    check(&[(json!({"system": "s:", "messages": both}), "s:q[a<|endoftext|>]")], |_| ());
    refused(&[(json!({"system": "other", "messages": both}), &["`system`", "two system messages"])]);
}

#[test]
fn masks_of_tokenised_rows_are_read() {
    let labels = |row: Value| {
        let rows = shown_file("rows.jsonl", &format!("{row}\n"), |_| ())
            .unwrap_or_else(|fault| panic!("{row}: {fault}"));
        assert_eq!(rows[0].note, "", "{row}");
        rows[0].labels.clone()
    };
    let ids = json!([5, 6, 7, 8]);
    assert_eq!(labels(json!({"input_ids": ids})), [5, 6, 7, 8]);
    assert_eq!(labels(json!({"input_ids": ids, "completion_mask": [0, 0, 1, 1]})), [-100, -100, 7, 8]);
    assert_eq!(labels(json!({"input_ids": ids, "assistant_masks": [0, 1, 0, 1]})), [-100, 6, -100, 8]);
    let both = json!({"input_ids": ids, "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 0, 1, 1]});
    assert_eq!(labels(both), [-100, -100, 7, 8], "as in TRL's collator: what both have");
    let labelled = json!({"input_ids": ids, "labels": [-100, 6, 7, 8], "loss_mask": [1, 1, 0, 1]});
    assert_eq!(labels(labelled), [-100, 6, -100, 8]);
    assert_eq!(
        labels(json!({"input_ids": ids, "position_ids": [0, 1, 2, 3], "seq_lengths": [4]})),
        [5, 6, 7, 8]
    );
    refused(&[
        (json!({"input_ids": ids, "completion_mask": [0, 1]}), &["`completion_mask`", "4 tokens"]),
        (json!({"input_ids": ids, "assistant_masks": [0, 1, 2, 1]}), &["`assistant_masks`"]),
        (json!({"input_ids": ids, "position_ids": [0, 1, 0, 1]}), &["`position_ids`", "--packing"]),
        (json!({"input_ids": ids, "seq_lengths": [2, 2]}), &["`seq_lengths`"]),
    ]);
}

#[test]
fn rows_are_read_under_the_names_people_use() {
    let asked = "q[a<|endoftext|>]";
    check(
        &[
            (json!({"question": "q", "answer": "a"}), asked),
            (json!({"query": "q", "response": "a"}), asked),
            (json!({"instruction": "q", "response": "a"}), asked),
            (json!({"prompt": "q", "response": "a", "id": 3, "source": "s"}), asked),
            (
                json!({"query": "q", "response": "a", "history": [["one?", "one"]]}),
                "one?[one<|endoftext|>]q[a<|endoftext|>]",
            ),
            (json!({"question": "q", "input": "i", "answer": "a"}), "q\ni[a<|endoftext|>]"),
            (
                json!({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
                asked,
            ),
            (
                json!({"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
                asked,
            ),
            (
                json!({"messages": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}),
                asked,
            ),
            (json!({"instruction": "", "input": "q", "output": "a"}), asked),
            (json!({"input": "q", "output": "a"}), asked),
            (json!({"instruction": "q", "input": "", "output": "a", "tools": "[]"}), asked),
            (
                json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": []}),
                asked,
            ),
            (
                json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": ""}),
                asked,
            ),
        ],
        |_| (),
    );
    refused(&[
        (
            json!({"instruction": "x", "question": "q", "answer": "a"}),
            &["both `instruction` and `question`", "--columns prompt="],
        ),
        (
            json!({"question": "q", "answer": "a", "response": "b"}),
            &["both `response` and `answer`", "--columns response="],
        ),
        (json!({"Frage": "q", "Antwort": "a"}), &["Antwort", "Frage", "--columns prompt=KEY,response=KEY"]),
        (json!({"instruction": "", "input": "", "output": "a"}), &["`instruction` is empty"]),
        (json!({"messages": [{"role": "bob", "content": "q"}]}), &["\"bob\"", "--columns user_tag=bob"]),
    ]);
}

#[test]
fn columns_name_the_keys_of_rows() {
    let row = json!({"Frage": "q", "Antwort": "a", "prompt": "unused", "Ort": "i"});
    check(&[(row.clone(), "q[a<|endoftext|>]")], columns(&[("prompt", "Frage"), ("response", "Antwort")]));
    let all = [("prompt", "Frage"), ("query", "Ort"), ("response", "Antwort")];
    check(&[(row, "q\ni[a<|endoftext|>]")], columns(&all));
    let chat = json!({"dialog": [{"who": "Q", "says": "q"}, {"who": "A", "says": "a"}], "rules": "s:"});
    let tags = [
        ("messages", "dialog"),
        ("system", "rules"),
        ("role_tag", "who"),
        ("content_tag", "says"),
        ("user_tag", "Q"),
        ("assistant_tag", "A"),
    ];
    check(&[(chat, "s:q[a<|endoftext|>]")], columns(&tags));
    let swapped = json!({"prompt": "a", "response": "q"});
    check(&[(swapped, "q[a<|endoftext|>]")], columns(&[("prompt", "response"), ("response", "prompt")]));
    let without = json!({"instruction": "q", "input": "i", "output": "a"});
    check(&[(without, "q[a<|endoftext|>]")], columns(&[("query", "")]));
}

/// Small rows in the forms of LLaMA-Factory's demo sets and of IEPile.
#[test]
fn demo_sets_are_read_as_their_tools_read_them() {
    let identity = json!({"instruction": "Who are you?", "input": "", "output": "I am Tune."});
    let alpaca = json!({"instruction": "Add.", "input": "1 and 2", "output": "3"});
    let history = json!({"instruction": "And 3?", "input": "", "output": "6", "system": "Sums.", "history": [["1 and 2?", "3"]]});
    check(
        &[
            (identity, "Who are you?[I am Tune.<|endoftext|>]"),
            (alpaca, "Add.\n1 and 2[3<|endoftext|>]"),
            (history, "Sums.1 and 2?[3<|endoftext|>]And 3?[6<|endoftext|>]"),
        ],
        |_| (),
    );
    let iepile = json!({
        "task": "NER", "source": "made",
        "instruction": "{\"instruction\": \"Find.\", \"schema\": [\"place\"], \"input\": \"In Ulm.\"}",
        "output": "{\"place\": [\"Ulm\"]}",
    });
    let expected = format!(
        "{}[{}<|endoftext|>]",
        iepile["instruction"].as_str().unwrap(),
        iepile["output"].as_str().unwrap()
    );
    check(&[(iepile, &expected)], |_| ());
    let call = json!({"name": "add", "arguments": {"a": 1}});
    let tools = json!({
        "conversations": [
            {"from": "human", "value": "Add 1."},
            {"from": "function_call", "value": call.to_string()},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "It is 2."},
        ],
        "tools": "[{\"name\": \"add\", \"description\": \"adds\", \"parameters\": {}}]",
    });
    // This template has no place for tools, and says so; templates that have are tried elsewhere.
    let said = reading(&tools, |_| ());
    assert!(said.contains("tools"), "{said}");
    let preference = json!({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}});
    let kto = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": true});
    let seen = json!({"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}], "images": ["a.jpg"]});
    refused(&[(preference, &["`chosen`"]), (kto, &["`label`"]), (seen, &["`images`"])]);
}

#[test]
fn tables_are_rows() {
    let csv = "id,instruction,input,output\n1,\"say \"\"hi\"\",\nthen go\",,\"hi,\ngo\"\n2,q,i,a\n";
    let rows = shown_file("rows.csv", csv, |_| ()).unwrap();
    assert_eq!(
        rows.iter().map(read).collect::<Vec<_>>(),
        ["say \"hi\",\nthen go[hi,\ngo<|endoftext|>]", "q\ni[a<|endoftext|>]"]
    );
    assert_eq!(
        rows.iter().map(|row| row.place.to_string()).collect::<Vec<_>>(),
        [":2 (row 1)", ":5 (row 2)"]
    );
    let tsv = shown_file("rows.tsv", "\u{feff}question\tanswer\r\nq\ta\r\n", |_| ()).unwrap();
    assert_eq!(read(&tsv[0]), "q[a<|endoftext|>]");
    let lists = "messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"q\"\"}, {\"\"role\"\": \"\"assistant\"\", \"\"content\"\": \"\"a\"\"}]\"\n";
    assert_eq!(read(&shown_file("rows.csv", lists, |_| ()).unwrap()[0]), "q[a<|endoftext|>]");
    let short = shown_file("rows.csv", "prompt,completion\nq,a\nonly\n", |_| ()).unwrap();
    assert_eq!(read(&short[1]), "1 cells for 2 columns");
    let kto = shown_file("rows.csv", "prompt,completion,label\nq,a,True\n", |_| ()).unwrap_err();
    assert!(kto.contains("`label`") && kto.contains("rows.csv:2 (row 1)"), "{kto}");
    for (text, words) in [
        ("prompt;completion\nq;a\n", "separated by ';'"),
        ("prompt,prompt\nq,a\n", "two columns are called \"prompt\""),
        ("prompt,\nq,a\n", "column 2 has no name"),
        ("", "0 usable rows"),
    ] {
        let fault = shown_file("rows.csv", text, |_| ()).unwrap_err();
        assert!(fault.contains(words), "{fault}");
    }
    let json = shown_file("rows.csv", "{\"prompt\": \"q\", \"completion\": \"a\"}\n", |_| ()).unwrap();
    assert_eq!(read(&json[0]), "q[a<|endoftext|>]", "JSON in a file of another name");
    if !cfg!(feature = "parquet") {
        let fault = shown_file("rows.parquet", "PAR1....PAR1", |_| ()).unwrap_err();
        assert!(fault.contains("--features parquet") && fault.contains("read_parquet"), "{fault}");
    }
}

#[test]
fn a_bad_row_is_named_by_its_number_where_lines_do_not_tell() {
    let rows = [json!({"prompt": "q", "completion": "a"}), json!({"prompt": "q"})];
    let line = json!([rows[0], rows[0], rows[1]]).to_string();
    let folder = Folder::new("places");
    let fault = |name: &str, text: &str| {
        let settings = settings(&folder, folder.file(name, text));
        crate::data::prepared(&settings).0.err().unwrap().to_string()
    };
    let said = fault("line.json", &line);
    assert!(said.contains("line.json:1 (row 3): "), "{said}");
    let said = fault("spread.json", &serde_json::to_string_pretty(&json!([rows[0], rows[1]])).unwrap());
    assert!(said.contains("spread.json:6 (row 2): "), "{said}");
    let said = fault("rows.jsonl", &format!("{}\n\n{}\n", rows[0], rows[1]));
    assert!(said.contains("rows.jsonl:3: "), "{said}");
    let said = fault("rows.csv", "prompt,completion\n\"a\nb\",c\nq,\n");
    assert!(said.contains("rows.csv:4 (row 2): `completion`"), "{said}");
}

#[test]
fn the_first_rows_of_each_file_are_taken() {
    let folder = Folder::new("first-rows");
    let text: String = (0..9).map(|i| format!("{{\"prompt\": \"q{i}\", \"completion\": \"a\"}}\n")).collect();
    let files = vec![folder.file("one.jsonl", &text), folder.file("two.jsonl", &text)];
    let few = Settings { train_files: files, max_samples: Some(4), ..settings(&folder, PathBuf::new()) };
    assert_eq!(crate::data::prepared(&few).0.unwrap().train.len(), 8);
    let shown = preview(&few, usize::MAX).unwrap();
    assert_eq!(shown.iter().map(read).filter(|row| row.starts_with("q3[")).count(), 2);
    assert_eq!(shown.len(), 8);
    let all = Settings { max_samples: Some(50), ..few };
    assert_eq!(crate::data::prepared(&all).0.unwrap().train.len(), 18);
}

#[test]
fn what_was_recognised_is_explained() {
    let row = json!({"id": 1, "question": "q", "input": "i", "answer": "a", "system": "s", "history": []});
    let shown = shown_file("rows.jsonl", &format!("{row}\n"), |_| ()).unwrap();
    assert_eq!(
        shown[0].recognised,
        [
            "format prompt-completion: by the keys of the file's first row",
            "question: `question`",
            "behind it, on a line of its own: `input`",
            "answer: `answer`",
            "system message: `system`",
            "not used: `history`, `id`",
        ]
    );
}

/// Files that pyarrow wrote: two row groups, nested columns, nulls; snappy and zstd.
#[test]
#[cfg(feature = "parquet")]
fn parquet_is_read_as_the_rows_it_stands_for() {
    let folder = Folder::new("parquet");
    let golden = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let shown = |name: &str| preview(&settings(&folder, golden(name)), usize::MAX).unwrap();
    let rows = shown("rows.snappy.parquet");
    let expected = ["q[a<|endoftext|>]", "s:two\n\u{201c}lines\u{201d}[b<|endoftext|>]", "r[c<|endoftext|>]"];
    assert_eq!(rows.iter().map(read).collect::<Vec<_>>(), expected);
    assert_eq!(rows[2].place.to_string(), " (row 3)");
    assert_eq!(
        shown("rows.zstd.parquet").iter().map(read).collect::<Vec<_>>(),
        ["q[a<|endoftext|>]", "r[b<|endoftext|>]"]
    );
    let made = crate::data::prepared(&settings(&folder, golden("rows.snappy.parquet"))).0.unwrap();
    assert_eq!(made.train.len(), 3);
    let torn = std::fs::read(golden("rows.snappy.parquet")).unwrap();
    let torn = folder.file("torn.parquet", &torn[..torn.len() / 2]);
    let fault = preview(&settings(&folder, torn), 1).unwrap_err().to_string();
    assert!(fault.contains("torn.parquet"), "{fault}");
}
