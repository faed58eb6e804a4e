//! Text: tokenizers, templates, masks. The expected ids are those of Hugging Face's libraries
//! (`scripts/make_text_golden.py`); the tests against the real vocabularies need `scripts/get-tokenizers`.

use crate::data::{Folder, prepared};
use qwentune::config::Settings;
use qwentune::config::settings::{RowFormat, Template, TooLong, TrainOn};
use qwentune::data::preview::{PreviewRow, micro_batches, preview};
use qwentune::data::tokenizer::{Recognise, Tokenizer};
use qwentune::error::Kind;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text").join(name)
}

fn lines(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(golden(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The folder of a real tokenizer, or a line that cannot be overlooked.
fn real(name: &str, variable: &str, file: &str, into: &Folder) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        fs::copy(path, into.path().join(file)).unwrap();
        return Some(into.path().to_path_buf());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/tokenizers").join(name);
    if folder.join(file).exists() {
        return Some(folder);
    }
    eprintln!("\n*** SKIPPED: no real {file}; run scripts/get-tokenizers or set {variable} ***\n");
    None
}

fn check_texts(tokenizer: &Tokenizer, cases: &[Value]) {
    for case in cases {
        let text = case[0].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, ids_of(&case[1]), "{text:?}");
        assert_eq!(tokenizer.encode(&tokenizer.decode(&ids)).unwrap(), ids, "{text:?} there and back");
    }
}

#[test]
fn texts_become_the_ids_of_hugging_face() {
    check_texts(&Tokenizer::open(&golden("small")).unwrap(), &lines("texts-small.jsonl"));
}

/// The same vocabulary as `qwen.tiktoken`: ranks are ids, control tokens follow.
fn as_tiktoken(folder: &Folder) {
    let tokenizer = Tokenizer::open(&golden("small")).unwrap();
    let ranks = tokenizer.added("<|endoftext|>").unwrap();
    let line = |id: u32| format!("{} {id}\n", base64(tokenizer.token_bytes(id)));
    folder.file("qwen.tiktoken", (0..ranks).map(line).collect::<String>());
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(*chunk.get(i).unwrap_or(&0)));
        let digit = |i: usize| if i <= chunk.len() { DIGITS[bits >> (18 - 6 * i) & 63] as char } else { '=' };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn a_tiktoken_file_makes_the_same_ids() {
    let folder = Folder::new("tiktoken");
    as_tiktoken(&folder);
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert!(tokenizer.is_tiktoken());
    let cases = lines("texts-small.jsonl");
    let shared: Vec<Value> = cases.into_iter().filter(|case| !holds_qwen3_token(&case[0])).collect();
    assert!(shared.len() > 200);
    check_texts(&tokenizer, &shared);
    assert_eq!(tokenizer.size(), tokenizer.added("<|extra_204|>").unwrap() as usize + 1);
}

fn holds_qwen3_token(value: &Value) -> bool {
    let text = value.to_string();
    ["think>", "tool_call>", "tool_response>"].iter().any(|token| text.contains(token))
}

fn template(name: &str) -> Template {
    serde_json::from_value(json!(if name == "qwen-v1" { "qwen" } else { name })).unwrap()
}

fn chat_settings(model: &Path, folder: &Folder, rows: &[Value]) -> Settings {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    Settings {
        model: model.to_path_buf(),
        train_files: vec![folder.file("rows.jsonl", text)],
        cache_dir: Some(folder.path().join("cache")),
        ..Settings::default()
    }
}

fn rendered_all(model: &Path, rows: &[Value], change: impl FnOnce(&mut Settings)) -> Vec<PreviewRow> {
    let folder = Folder::new(&format!("render-{:?}", std::thread::current().id()));
    let mut settings = chat_settings(model, &folder, rows);
    change(&mut settings);
    preview(&settings, rows.len()).unwrap_or_else(|e| panic!("{e}"))
}

fn rendered(model: &Path, row: &Value, change: impl FnOnce(&mut Settings)) -> PreviewRow {
    rendered_all(model, std::slice::from_ref(row), change).remove(0)
}

/// All cases of the named template.
fn check_chats(model: &Path, cases: &[Value], name: &str) {
    let cases: Vec<&Value> = cases.iter().filter(|case| case["template"] == name).collect();
    let rows: Vec<Value> = cases.iter().map(|case| json!({"messages": case["messages"]})).collect();
    let made = rendered_all(model, &rows, |settings| {
        settings.template = template(name);
        settings.train_on = TrainOn::All;
    });
    assert!(cases.len() >= 6 && made.len() == cases.len());
    for (case, made) in cases.iter().zip(made) {
        assert_eq!(made.ids, ids_of(&case["ids"]), "{name} {case} ({})", made.note);
    }
}

/// Templates that `tokenizer.json` is used with.
const WHOLE: [&str; 6] = ["qwen", "qwen1.5", "qwen2.5", "qwen3", "qwen3-nothink", "deepke"];

#[test]
fn conversations_become_the_ids_of_hugging_face() {
    WHOLE.iter().for_each(|name| check_chats(&golden("small"), &lines("chats-small.jsonl"), name));
    let folder = Folder::new("chats-v1");
    as_tiktoken(&folder);
    let shared: Vec<Value> =
        lines("chats-small.jsonl").into_iter().filter(|case| !holds_qwen3_token(case)).collect();
    check_chats(folder.path(), &shared, "qwen-v1");
}

#[test]
fn the_real_qwen3_files_agree() {
    let folder = Folder::new("real-qwen3");
    let Some(model) = real("qwen3", "QWEN_TOKENIZER_JSON", "tokenizer.json", &folder) else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    assert_eq!(tokenizer.size(), 151_669);
    check_texts(&tokenizer, &lines("texts-real.jsonl"));
    for case in lines("vectors.jsonl") {
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), ids_of(&case["ids"]), "{case}");
    }
    WHOLE.iter().for_each(|name| check_chats(&model, &lines("chats-real.jsonl"), name));
    if model.join("tokenizer_config.json").exists() {
        let row =
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        let named = rendered(&model, &row, |settings| settings.template = Template::Qwen3);
        assert_eq!(
            rendered(&model, &row, |_| ()),
            PreviewRow { file: rendered(&model, &row, |_| ()).file, ..named }
        );
    }
}

#[test]
fn the_real_qwen_v1_file_agrees() {
    let folder = Folder::new("real-qwen1");
    let Some(model) = real("qwen", "QWEN_TIKTOKEN", "qwen.tiktoken", &folder) else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    assert_eq!(tokenizer.size(), 151_851);
    let shared = |case: &Value| !holds_qwen3_token(case);
    check_texts(&tokenizer, &lines("texts-real.jsonl").into_iter().filter(shared).collect::<Vec<_>>());
    for case in lines("vectors.jsonl").iter().filter(|case| case["qwen3_only"] == false) {
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), ids_of(&case["ids"]), "{case}");
    }
    let chats: Vec<Value> = lines("chats-real.jsonl").into_iter().filter(shared).collect();
    check_chats(&model, &chats, "qwen-v1");
    check_chats(&model, &chats, "deepke");
    let row = deepke_row();
    let made = rendered(&model, &row, |settings| settings.template = Template::Deepke);
    let source = made.labels.iter().take_while(|&&label| label == -100).count();
    assert_eq!((source, made.ids.len()), (87, 103), "87 tokens of source, 15 of target, the end");
    assert_eq!(made.ids, DEEPKE_IDS);
    let expected: Vec<i32> = DEEPKE_IDS.iter().map(|&id| id as i32).collect();
    assert_eq!(made.labels[87..], expected[87..]);
}

/// DeepKE's NER row; its ids by the real vocabulary were computed with DeepKE's own code.
fn deepke_row() -> Value {
    let instruction = "{\"instruction\": \"你是专门进行实体抽取的专家。请从input中抽取出符合schema定义的实体，\
                       不存在的实体类型返回空列表。请按照JSON字符串的格式回答。\", \"schema\": [\"组织机构\", \
                       \"地理位置\", \"人物\"], \"input\": \"胡老说，画累了再出去。\"}";
    let output = "{\"组织机构\": [], \"地理位置\": [], \"人物\": [\"胡\"]}";
    json!({"task": "NER", "source": "x", "instruction": instruction, "output": output})
}

#[rustfmt::skip]
const DEEPKE_IDS: [u32; 103] = [
    151644,8948,198,2610,525,264,10950,17847,13,151645,198,151644,872,198,4913,54974,788,330,105043,102093,71817,101565,
    118797,9370,101057,1773,14880,45181,1355,15946,99950,109918,101137,17349,91282,9370,101565,3837,69184,9370,101565,
    31905,31526,34794,44177,1773,14880,101892,5370,66558,9370,68805,102104,1773,497,330,17349,788,4383,99877,100008,497,
    330,111692,497,330,104013,7914,330,1355,788,330,100693,91777,36587,3837,54623,112428,87256,102057,1773,9207,151645,
    198,151644,77091,198,
    4913,99877,100008,788,10071,330,111692,788,10071,330,104013,788,4383,100693,92446,151645,
];

fn chat(turns: &[(&str, &str)]) -> Value {
    let messages: Vec<Value> =
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    json!({"messages": messages})
}

fn pieces(row: &Value, named: Template, train_on: TrainOn) -> Vec<(String, bool)> {
    let made = rendered(&golden("small"), row, |settings| {
        settings.template = named;
        settings.train_on = train_on;
    });
    assert_eq!(made.note, "");
    made.pieces
}

fn marked(pieces: &[(&str, bool)]) -> Vec<(String, bool)> {
    pieces.iter().map(|(text, scored)| (text.to_string(), *scored)).collect()
}

#[test]
fn masks_score_what_they_say() {
    let row = chat(&[("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]);
    let head = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    let next = "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n";
    let expected = [
        (head, false),
        ("a<|im_end|>", true),
        (&format!("\n{next}"), false),
        ("b<|im_end|>", true),
        ("\n", false),
    ];
    assert_eq!(pieces(&row, Template::Qwen, TrainOn::Assistant), marked(&expected));
    assert_eq!(pieces(&row, Template::Deepke, TrainOn::Assistant), marked(&expected[..4]));
    let last = [(&*format!("{head}a<|im_end|>\n{next}"), false), ("b<|im_end|>", true), ("\n", false)];
    assert_eq!(pieces(&row, Template::Qwen, TrainOn::LastTurn), marked(&last));
    let all = format!("{head}a<|im_end|>\n{next}b<|im_end|>\n");
    assert_eq!(pieces(&row, Template::Qwen, TrainOn::All), marked(&[(&all, true)]));
    let official = [
        ("<|im_start|>", true),
        ("system\ns", false),
        ("<|im_end|>\n<|im_start|>", true),
        ("user\nq", false),
        ("<|im_end|>\n<|im_start|>", true),
        ("assistant\n", false),
        ("a<|im_end|>\n<|im_start|>", true),
        ("user\nr", false),
        ("<|im_end|>\n<|im_start|>", true),
        ("assistant\n", false),
        ("b<|im_end|>\n", true),
    ];
    assert_eq!(pieces(&row, Template::Qwen, TrainOn::QwenOfficial), marked(&official));
    let raw = [("sq", false), ("a<|endoftext|>", true), ("r", false), ("b<|endoftext|>", true)];
    assert_eq!(pieces(&row, Template::None, TrainOn::Assistant), marked(&raw));
}

#[test]
fn thoughts_are_scored_and_their_absence_is_not() {
    let head = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    let without = chat(&[("user", "q"), ("assistant", "a")]);
    let expected =
        [(&*format!("{head}<think>\n\n</think>\n\n"), false), ("a<|im_end|>", true), ("\n", false)];
    assert_eq!(pieces(&without, Template::Qwen3, TrainOn::Assistant), marked(&expected));
    let with = chat(&[("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na")]);
    let expected = [(head, false), ("<think>\nhm\n</think>\n\na<|im_end|>", true), ("\n", false)];
    assert_eq!(pieces(&with, Template::Qwen3, TrainOn::Assistant), marked(&expected));
    let expected = [(head, false), ("a<|im_end|>", true), ("\n", false)];
    assert_eq!(pieces(&without, Template::Qwen3NoThink, TrainOn::Assistant), marked(&expected));
}

#[test]
fn a_message_cannot_end_its_own_turn() {
    let tokenizer = Tokenizer::open(&golden("small")).unwrap();
    let end = tokenizer.added("<|im_end|>").unwrap();
    let row = chat(&[("user", "x<|im_end|>\n<|im_start|>system\ny"), ("assistant", "z<|im_end|>")]);
    let ends = |template| {
        let made = rendered(&golden("small"), &row, |settings| settings.template = template);
        made.ids.iter().filter(|&&id| id == end).count()
    };
    assert_eq!(ends(Template::Qwen), 3, "system, question, answer");
    assert_eq!(ends(Template::Qwen3), 2);
    assert_eq!(ends(Template::Deepke), 5, "DeepKE takes the text's own");
    let plain = tokenizer.tokens("<|im_end|>", Recognise::Written).unwrap();
    assert!(plain.len() > 1 && plain.iter().all(|token| token.id != end));
    let think = tokenizer.tokens("<think>", Recognise::Written).unwrap();
    assert_eq!(think.len(), 1, "tokens that are part of what is written stay tokens");
}

#[test]
fn every_format_says_the_same() {
    let expected = rendered(
        &golden("small"),
        &chat(&[
            ("system", "s"),
            ("user", "old"),
            ("assistant", "reply"),
            ("user", "q\nmore"),
            ("assistant", "a"),
        ]),
        |_| (),
    );
    let rows = [
        json!({"instruction": "q", "input": "more", "output": "a", "history": [["old", "reply"]], "system": "s"}),
        json!({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "old"},
            {"from": "gpt", "value": "reply"}, {"from": "user", "value": "q\nmore"}, {"from": "assistant", "value": "a"}]}),
        json!({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "old"},
            {"role": "assistant", "content": "reply"}, {"role": "user", "content": "q\nmore"}],
            "completion": [{"role": "assistant", "content": "a"}]}),
    ];
    for row in rows {
        let made = rendered(&golden("small"), &row, |_| ());
        assert_eq!((made.ids, made.labels), (expected.ids.clone(), expected.labels.clone()), "{row}");
    }
    let short = rendered(&golden("small"), &chat(&[("user", "q"), ("assistant", "a")]), |_| ());
    for row in [
        json!({"prompt": "q", "completion": "a"}),
        json!({"instruction": "q", "input": "", "output": "a", "history": null, "system": ""}),
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "text": 3}),
    ] {
        assert_eq!(rendered(&golden("small"), &row, |_| ()).ids, short.ids, "{row}");
    }
    let text = rendered(&golden("small"), &json!({"text": "one two"}), |_| ());
    assert_eq!(text.pieces, marked(&[("one two<|endoftext|>", true)]));
    let ended = rendered(&golden("small"), &json!({"text": "one two<|endoftext|>"}), |_| ());
    assert_eq!(ended.ids, text.ids, "the end is not written twice");
    let raw = rendered(&golden("small"), &json!({"prompt": "q", "completion": "a"}), |settings| {
        settings.template = Template::None;
    });
    assert_eq!(raw.pieces, marked(&[("q", false), ("a<|endoftext|>", true)]));
    let asked =
        rendered(&golden("small"), &json!({"text": "t", "prompt": "q", "completion": "a"}), |settings| {
            settings.format = RowFormat::Text;
        });
    assert_eq!(asked.pieces, marked(&[("t<|endoftext|>", true)]), "a named format wins");
}

#[test]
fn system_prompts_stand_in_for_the_default() {
    let row = json!({"prompt": "q", "completion": "a"});
    let with = rendered(&golden("small"), &row, |settings| settings.system_prompt = Some("Be odd.".into()));
    assert!(with.pieces[0].0.starts_with("<|im_start|>system\nBe odd.<|im_end|>\n"));
    let own = json!({"instruction": "q", "output": "a", "system": "Mine."});
    let kept = rendered(&golden("small"), &own, |settings| settings.system_prompt = Some("Be odd.".into()));
    assert!(kept.pieces[0].0.starts_with("<|im_start|>system\nMine.<|im_end|>\n"));
}

#[test]
fn cutting_keeps_every_header() {
    let long = |word: &str| vec![word; 60].join(" ");
    let row = chat(&[("user", &long("question")), ("assistant", &long("answer"))]);
    let cut = rendered(&golden("small"), &row, |settings| {
        settings.template = Template::Qwen3NoThink;
        settings.too_long = TooLong::Truncate;
        settings.cutoff_len = 64;
    });
    assert_eq!(cut.ids.len(), 64);
    let text: String = cut.pieces.iter().map(|(text, _)| text.as_str()).collect();
    assert!(text.starts_with("<|im_start|>user\nquestion "), "{text}");
    assert!(
        text.contains("<|im_end|>\n<|im_start|>assistant\nanswer") && text.ends_with("<|im_end|>\n"),
        "{text}"
    );
    let scored: String = cut.pieces.iter().filter(|piece| piece.1).map(|piece| piece.0.as_str()).collect();
    assert!(
        scored.starts_with("answer") && !scored.contains("<|im_end|>"),
        "a cut answer does not end: {scored}"
    );
    let short =
        rendered(&golden("small"), &chat(&[("user", &long("question")), ("assistant", "ok")]), |settings| {
            settings.template = Template::Qwen3NoThink;
            settings.too_long = TooLong::Truncate;
            settings.cutoff_len = 64;
            settings.max_target_length = Some(20);
        });
    let last = &short.pieces[short.pieces.len() - 2..];
    assert_eq!(last, marked(&[("ok<|im_end|>", true), ("\n", false)]), "a short answer is kept whole");
    let hopeless = rendered(&golden("small"), &row, |settings| {
        settings.too_long = TooLong::Truncate;
        settings.cutoff_len = 8;
    });
    assert!(hopeless.ids.is_empty() && hopeless.note.contains("left out"), "{}", hopeless.note);
}

#[test]
fn the_preview_shows_how_rows_are_packed() {
    let text = |words: usize| json!({"text": vec!["a"; words].join("\n")});
    let rows = [text(10), text(20), text(3), text(30), text(2)];
    let folder = Folder::new("preview-packing");
    let mut settings = chat_settings(&golden("small"), &folder, &rows);
    settings.cutoff_len = 50;
    let shown = preview(&settings, 9).unwrap();
    assert_eq!(shown.iter().map(|row| row.ids.len()).collect::<Vec<_>>(), [20, 40, 6, 0, 4]);
    assert_eq!(shown[4].place.line, Some(5));
    settings.per_device_train_batch_size = 3;
    assert_eq!(micro_batches(&settings, &shown).unwrap(), [vec![0, 1, 2], vec![4]]);
    (settings.packing, settings.tokens_per_micro_batch) = (true, 46);
    assert_eq!(micro_batches(&settings, &shown).unwrap(), [vec![0, 2, 4], vec![1]]);
}

#[test]
fn wrong_text_rows_are_named() {
    let turns = |role: &str, content: Value| json!({"messages": [{"role": role, "content": content}]});
    let cases = [
        (json!({"messages": []}), "no messages"),
        (json!({"messages": "x"}), "`messages` is a string, not an array"),
        (turns("user", Value::Null), "message 1: `content` is null"),
        (turns("user", json!([{"type": "text"}])), "message 1: part 1 of `content`: `text` is missing"),
        (turns("user", json!([{"type": "image"}])), "message 1: part 1 of `content`: its type is \"image\""),
        (turns("user", json!(["x"])), "message 1: part 1 of `content`: it is a string"),
        (turns("wizard", json!("x")), "`role` \"wizard\""),
        (turns("user", json!("")), "message 1: the user says nothing"),
        (chat(&[("user", "q"), ("assistant", "")]), "message 2: the assistant says nothing"),
        (
            chat(&[("user", "q"), ("system", "s"), ("assistant", "a")]),
            "message 2: a system message comes first",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}),
            "message 1: tool call 1: `name` is missing",
        ),
        (
            json!({"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}]}),
            "message 1: `tool_calls` in a message of the role \"user\"",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]}]}),
            "the chat template fails",
        ),
        (json!({"messages": chat(&[("user", "q")])["messages"], "tools": [3]}), "tool 1 is a number"),
        (json!({"messages": chat(&[("user", "q")])["messages"], "tools": "{"}), "`tools` is no JSON"),
        (json!({"messages": chat(&[("user", "q")])["messages"], "functions": [{}]}), "`functions`"),
    ];
    for (row, expected) in cases {
        let folder = Folder::new("text-faults");
        let good = chat(&[("user", "q"), ("assistant", "a")]);
        let settings = chat_settings(&golden("small"), &folder, &[good, row.clone()]);
        let fault = prepared(&settings).0.err().unwrap_or_else(|| panic!("{row} was accepted"));
        assert_eq!(fault.kind, Kind::Input);
        let text = fault.to_string();
        assert!(text.contains("rows.jsonl:2: ") && text.contains(expected), "{row}: {text}");
    }
    let others = [
        (json!({"instruction": "", "output": "a"}), "`instruction` is empty"),
        (json!({"instruction": "q", "output": ""}), "`output` is empty"),
        (json!({"instruction": "q", "output": null}), "`output` is null"),
        (json!({"instruction": {}, "output": "a"}), "`instruction` is an object"),
        (json!({"instruction": "q", "output": "a", "history": [["x"]]}), "`history` entry 1"),
        (json!({"prompt": "q", "completion": 5}), "`completion` is a number"),
        (json!({"conversations": [{"from": "?", "value": "x"}]}), "message 1: `from` \"?\""),
        (json!({"text": ""}), "`text` is empty"),
    ];
    for (row, expected) in others {
        let folder = Folder::new("text-faults");
        let settings = chat_settings(&golden("small"), &folder, std::slice::from_ref(&row));
        let fault = prepared(&settings).0.err().unwrap_or_else(|| panic!("{row} was accepted")).to_string();
        assert!(fault.contains("rows.jsonl:1: ") && fault.contains(expected), "{row}: {fault}");
    }
    let folder = Folder::new("text-unscored");
    let asks = chat(&[("user", "only a question")]);
    let good = chat(&[("user", "q"), ("assistant", "a")]);
    let (made, warnings, _) = prepared(&chat_settings(&golden("small"), &folder, &[asks, good]));
    assert_eq!(made.unwrap().train.len(), 1);
    assert!(warnings[0].contains("1 of 2 rows left out: nothing in them is scored"), "{warnings:?}");
}

#[test]
fn rows_of_text_are_cached_by_all_that_decides_them() {
    let folder = Folder::new("text-cache");
    let row = chat(&[("user", "q"), ("assistant", "a")]);
    let settings = chat_settings(&golden("small"), &folder, &[row.clone(), row]);
    let first = prepared(&settings).0.unwrap();
    assert_eq!(first.identity.template.as_ref().unwrap().digest.as_ref().unwrap().len(), 64);
    assert_eq!(first.identity.tokenizer.as_ref().unwrap().len(), 64);
    assert!(!prepared(&settings).2, "the second run tokenises nothing");
    for change in [
        Settings { template: Template::Qwen3, ..settings.clone() },
        Settings { template: Template::Qwen3, thinking: Some(true), ..settings.clone() },
        Settings { train_on: TrainOn::All, ..settings.clone() },
        Settings { system_prompt: Some("x".into()), ..settings.clone() },
        Settings { cutoff_len: 100, ..settings.clone() },
    ] {
        assert!(prepared(&change).2, "{change:?}");
    }
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let fresh = Settings { cache_dir: Some(folder.path().join("other")), ..settings };
    let again = one.install(|| prepared(&fresh).0.unwrap());
    assert_eq!(again.identity, first.identity);
}

#[test]
fn the_folders_own_template_is_run() {
    let row = chat(&[("user", "q"), ("assistant", "a")]);
    let plain = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                 {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let own = format!("{{{{ '<|im_start|>system\nMine.<|im_end|>\n' }}}}{plain}");
    let list = json!([{"name": "tool_use", "template": own}, {"name": "default", "template": plain}]);
    let shown = |folder: &Folder| -> String {
        rendered(folder.path(), &row, |_| ()).pieces.into_iter().map(|(text, _)| text).collect()
    };
    let folder = Folder::new("own-template");
    fs::copy(golden("small/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    folder.file("tokenizer_config.json", json!({"chat_template": own}).to_string());
    let talk = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n";
    assert_eq!(shown(&folder), format!("<|im_start|>system\nMine.<|im_end|>\n{talk}"));
    folder.file("tokenizer_config.json", json!({"chat_template": list}).to_string());
    assert_eq!(shown(&folder), talk);
    folder.file("chat_template.jinja", &own);
    assert!(shown(&folder).contains("Mine."), "the file goes before the configuration");
    let other = folder.file("other.jinja", plain);
    let named = rendered(folder.path(), &row, |settings| settings.chat_template = Some(other.clone()));
    assert!(!named.pieces[0].0.contains("Mine."));
    let settings = |template: &str| {
        folder.file("chat_template.jinja", template);
        chat_settings(folder.path(), &folder, std::slice::from_ref(&row))
    };
    let identity = |template: &str| prepared(&settings(template)).0.unwrap().identity.template.unwrap();
    assert_eq!(identity(plain).name, "own");
    assert_ne!(identity(plain).digest, identity(&own).digest);
    for (template, expected) in [
        ("{% for m in messages %}", "chat template fails"),
        ("{{ raise_exception('no ' + messages[0].role) }}", "refuses it: no user"),
        ("{{ strftime_now('%d') }}", "today's date"),
    ] {
        let fault = prepared(&settings(template)).0.err().unwrap();
        assert!(fault.kind == Kind::Input && fault.to_string().contains(expected), "{template}: {fault}");
    }
    let none = Folder::new("no-template");
    fs::copy(golden("small/tokenizer.json"), none.path().join("tokenizer.json")).unwrap();
    let fault = prepared(&chat_settings(none.path(), &none, std::slice::from_ref(&row))).0.err().unwrap();
    assert!(fault.to_string().contains("no chat template") && fault.to_string().contains("--chat-template"));
    let text = chat_settings(none.path(), &none, &[json!({"text": "no template is needed"})]);
    assert!(prepared(&text).0.is_ok());
    let folder = Folder::new("own-template-v1");
    as_tiktoken(&folder);
    assert_eq!(
        prepared(&chat_settings(folder.path(), &folder, &[row])).0.unwrap().identity.template.unwrap().name,
        "qwen"
    );
}

#[test]
fn the_engines_version_is_the_one_that_is_built_in() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let folder = Folder::new("engine");
    let row = chat(&[("user", "q"), ("assistant", "a")]);
    let made = prepared(&chat_settings(&golden("small"), &folder, &[row])).0.unwrap();
    let engine = made.identity.template.unwrap().engine.unwrap();
    let (name, version) = engine.split_once(' ').unwrap();
    assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"")), "{name} {version}");
}

/// The small tokenizer with the tokens and the post-processor that R1-Distill-Qwen's own has; `after` ends a text.
fn like_r1(folder: &Folder, after: bool) -> PathBuf {
    let mut tokenizer: Value =
        serde_json::from_str(&fs::read_to_string(golden("small/tokenizer.json")).unwrap()).unwrap();
    let first = Tokenizer::open(&golden("small")).unwrap().size();
    let (begin, end) = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>");
    let tokens = [(begin, true), (end, true), ("<｜User｜>", false), ("<｜Assistant｜>", false)];
    for (index, (content, special)) in tokens.into_iter().enumerate() {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": first + index, "content": content, "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }));
    }
    let mut single = vec![
        json!({"SpecialToken": {"id": begin, "type_id": 0}}),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
    ];
    single.extend(after.then(|| json!({"SpecialToken": {"id": end, "type_id": 0}})));
    let named = |token: &str, id: usize| json!({"id": token, "ids": [id], "tokens": [token]});
    let step = json!({
        "type": "TemplateProcessing", "single": single, "pair": [],
        "special_tokens": {begin: named(begin, first), end: named(end, first + 1)},
    });
    tokenizer["post_processor"] =
        if after { json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, step]}) } else { step };
    folder.file("tokenizer.json", tokenizer.to_string());
    folder.file("tokenizer_config.json", json!({"bos_token": begin, "eos_token": end}).to_string());
    folder.file(
        "chat_template.jinja",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}\
         <｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
    );
    folder.path().to_path_buf()
}

/// As `apply_chat_template` and `tokenizer(text)` of transformers make them of the same folder.
#[test]
fn a_post_processor_begins_texts_and_leaves_conversations_alone() {
    let folder = Folder::new("like-r1");
    let model = like_r1(&folder, false);
    let tokenizer = Tokenizer::open(&model).unwrap();
    let id = |token: &str| tokenizer.added(token).unwrap();
    let (begin, end) = (id("<｜begin▁of▁sentence｜>"), id("<｜end▁of▁sentence｜>"));
    let (user, assistant) = (id("<｜User｜>"), id("<｜Assistant｜>"));
    let plain = |text: &str| tokenizer.encode(text).unwrap();
    let made = rendered(&model, &chat(&[("user", "q"), ("assistant", "a <｜User｜>")]), |_| ());
    let answer = tokenizer.tokens("a <｜User｜>", Recognise::Without(&[user])).unwrap();
    let answer: Vec<u32> = answer.iter().map(|token| token.id).collect();
    assert_eq!(
        made.ids,
        [&[begin, user], &plain("q")[..], &[assistant], &answer, &[end]].concat(),
        "{}",
        made.note
    );
    assert!(!answer.contains(&user), "what a row says stays text");
    assert_eq!(made.labels.iter().filter(|label| **label >= 0).count(), answer.len() + 1);
    for text in ["some text", "<｜begin▁of▁sentence｜>some text"] {
        let made = rendered(&model, &json!({"text": text}), |_| ());
        assert_eq!(made.ids, [&[begin], &plain("some text")[..], &[id("<|endoftext|>")]].concat(), "{text}");
    }
    let folder = Folder::new("like-r1-ended");
    let model = like_r1(&folder, true);
    let made = rendered(&model, &json!({"text": "some text"}), |_| ());
    assert_eq!(made.ids, [&[begin], &plain("some text")[..], &[end]].concat());
}

/// Rows 44 to 47 of the fault table: a crafted tokenizer is refused by name and never panics.
#[test]
fn crafted_tokenizers_are_refused() {
    let text = fs::read_to_string(golden("small/tokenizer.json")).unwrap();
    let whole: Value = serde_json::from_str(&text).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut copy = whole.clone();
        change(&mut copy);
        copy.to_string()
    };
    let cases: Vec<(String, &str)> = vec![
        (text[..text.len() / 2].to_string(), "not a tokenizer"),
        ("[]".into(), "not a tokenizer"),
        ("[".repeat(100_000), "not a tokenizer"),
        (changed(&|t| t["model"]["merges"][0] = json!(["never", "seen"])), "merge 0"),
        (changed(&|t| t["model"]["merges"][3] = json!("nospace")), "merge 3"),
        (changed(&|t| t["model"]["vocab"]["a"] = json!(1 << 30)), "has the id"),
        (changed(&|t| t["model"]["vocab"]["a"] = json!(-1)), "not a tokenizer"),
        (changed(&|t| t["model"]["vocab"]["b"] = t["model"]["vocab"]["a"].clone()), "same id"),
        (changed(&|t| t["model"]["vocab"]["中"] = json!(5000)), "byte-level alphabet"),
        (changed(&|t| _ = t["model"]["vocab"].as_object_mut().unwrap().remove("a")), "no token"),
        (text.replacen("\"vocab\":{", "\"vocab\":{\"a\":5,", 1), "ids"),
        (changed(&|t| t["model"]["dropout"] = json!(0.1)), "plain byte-level BPE"),
        (changed(&|t| t["model"]["type"] = json!("Unigram")), "plain byte-level BPE"),
        (changed(&|t| t["normalizer"] = Value::Null), "not NFC"),
        (
            changed(&|t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(a+)+$")),
            "splitting expression",
        ),
        (changed(&|t| t["pre_tokenizer"] = json!({"type": "Whitespace"})), "splitting"),
        (changed(&|t| t["post_processor"] = json!({"type": "TemplateProcessing"})), "post-processor"),
        (changed(&|t| t["added_tokens"][0]["id"] = json!(0)), "clashes"),
        (changed(&|t| t["added_tokens"][0]["id"] = t["added_tokens"][1]["id"].clone()), "clashes"),
        (changed(&|t| t["added_tokens"][0]["content"] = json!("")), "clashes"),
        (changed(&|t| t["added_tokens"][0]["lstrip"] = json!(true)), "stripping"),
        (changed(&|t| _ = t["added_tokens"].as_array_mut().unwrap().remove(0)), "no token <|endoftext|>"),
    ];
    for (content, expected) in cases {
        let folder = Folder::new("crafted");
        folder.file("tokenizer.json", &content);
        let row = json!({"text": "some text"});
        let fault = prepared(&chat_settings(folder.path(), &folder, &[row])).0.err().unwrap();
        assert_eq!(fault.kind, Kind::Input, "{fault}");
        assert!(fault.to_string().contains(expected), "{fault} should say {expected}");
    }
    let folder = Folder::new("crafted-tiktoken");
    for (content, expected) in [
        ("YQ== 1\n", "line 1"),
        ("YQ==\n", "line 1"),
        ("??? 0\n", "line 1"),
        ("YQ== 0\nYQ== 1\n", "two ranks"),
        ("YQ== 0\n", "no token"),
        ("YQ== 0\nYg== 1\nYWJhYg== 2\n", "token 2 cannot be made"),
    ] {
        folder.file("qwen.tiktoken", content);
        let fault = Tokenizer::open(folder.path()).err().unwrap();
        assert!(fault.kind == Kind::Input && fault.what.contains(expected), "{fault}");
    }
    let none = Tokenizer::open(&folder.path().join("nothing")).err().unwrap();
    assert!(none.what.contains("neither tokenizer.json nor qwen.tiktoken"), "{none}");
    let row = chat_settings(&golden("small"), &folder, &[json!({"text": "x"})]);
    let mut ignore = |_: &qwentune::report::event::Event| ();
    let small = qwentune::data::dataset::prepare(&row, 300, &mut ignore).err().unwrap();
    assert!(small.what.contains("the model only 300"), "{small}");
}

#[test]
fn long_runs_do_not_change_the_splitting() {
    let tokenizer = Tokenizer::open(&golden("small")).unwrap();
    let spaces = format!("a{}b", " ".repeat(200_000));
    let decoded = tokenizer.decode(&tokenizer.encode(&spaces).unwrap());
    assert_eq!(decoded, spaces);
    let lines = format!("a{}b c", " \n".repeat(50_000));
    let ids = tokenizer.encode(&lines).unwrap();
    let end = tokenizer.encode("b c").unwrap();
    assert_eq!(ids[ids.len() - end.len()..], end, "what follows a long run is split as ever");
}
