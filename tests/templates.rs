//! Chat templates: they run as transformers runs them, answers are found and not assumed, what cannot be told is
//! refused by name, and a template that means harm ends soon. `scripts/check_templates.py` compares the templates that
//! models have with transformers; here are short ones of our own words, each for a trait of those.

use crate::common::Lcg;
use crate::data::{Folder, prepared};
use qwentune::config::Settings;
use qwentune::config::settings::{Template, TrainOn};
use qwentune::data::preview::{PreviewRow, preview};
use serde_json::{Value, json};
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const OPEN: &str = "<|im_start|>";
const CLOSE: &str = "<|im_end|>";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn says(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn row(messages: &[Value]) -> Value {
    json!({ "messages": messages })
}

/// A model folder with the small tokenizer and a template; `S` and `E` stand for ChatML's tokens.
fn model(template: &str) -> Folder {
    let folder = Folder::new(&format!("template-{:?}", std::thread::current().id()));
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text/small/tokenizer.json");
    fs::copy(small, folder.path().join("tokenizer.json")).unwrap();
    folder.file("tokenizer_config.json", json!({"eos_token": CLOSE}).to_string());
    folder.file("chat_template.jinja", template.replace("§S", OPEN).replace("§E", CLOSE));
    folder
}

fn settings<R: Display>(folder: &Folder, rows: &[R]) -> Settings {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    Settings {
        model: folder.path().to_path_buf(),
        train_files: vec![folder.file("rows.jsonl", text)],
        cache_dir: Some(folder.path().join("cache")),
        cutoff_len: 1 << 20,
        ..Settings::default()
    }
}

fn shown_with<R: Display>(template: &str, row: &R, change: impl FnOnce(&mut Settings)) -> PreviewRow {
    let folder = model(template);
    let mut settings = settings(&folder, std::slice::from_ref(row));
    change(&mut settings);
    preview(&settings, 1).unwrap_or_else(|e| panic!("{template}: {e}")).remove(0)
}

fn shown<R: Display>(template: &str, row: &R) -> PreviewRow {
    shown_with(template, row, |_| ())
}

/// The text that is scored, its stretches one after the other.
fn scored(row: &PreviewRow) -> Vec<&str> {
    assert_eq!(row.note, "", "{row:?}");
    row.pieces.iter().filter(|(_, scored)| *scored).map(|(text, _)| text.as_str()).collect()
}

/// The body of most templates: every message in ChatML, and the beginning of an answer.
const CHATML: &str = "{% for m in messages %}{{ '§S' + m.role + '\n' + m.content + '§E\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '§Sassistant\n' }}{% endif %}";

fn talk() -> Value {
    row(&[user("one"), says("first answer"), user("two"), says("second answer")])
}

// ---- traits of real templates -------------------------------------------------------------------------------

#[test]
fn a_default_system_message_is_the_templates_own() {
    let template = format!("{{% set text = 'You are odd.' %}}{{{{ '§Ssystem\n' + text + '§E\n' }}}}{CHATML}");
    let made = shown(&template, &talk());
    assert!(
        made.pieces[0].0.starts_with("<|im_start|>system\nYou are odd.<|im_end|>\n<|im_start|>user\none")
    );
    assert_eq!(scored(&made), ["first answer<|im_end|>", "second answer<|im_end|>"]);
}

#[test]
fn trimmed_texts_are_found() {
    let template = CHATML.replace("m.content", "(m.content | trim)");
    let made = shown(&template, &row(&[user(" \n one "), says("\n\n an answer \t"), user("two"), says("b")]));
    assert_eq!(scored(&made), ["an answer<|im_end|>", "b<|im_end|>"]);
}

/// Prompts that end in `<think>` and histories that leave thoughts out, as reasoning models have them.
const THINKS: &str = "{% for m in messages %}{{ '§S' + m.role + '\n' }}\
    {% if m.role == 'assistant' %}{% set c = m.content %}{% set t = m.reasoning_content or '' %}\
    {% if '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}\
    {% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}\
    {% if loop.last %}{{ '<think>\n' + t + '\n</think>\n\n' }}{% endif %}{{ c }}\
    {% else %}{{ m.content }}{% endif %}{{ '§E\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '§Sassistant\n<think>\n' }}\
    {% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}";

#[test]
fn thoughts_are_learnt_and_what_the_prompt_holds_of_them_is_not() {
    let inline = says("<think>\nit is so\n</think>\n\nyes");
    let made = shown(THINKS, &row(&[user("a"), inline.clone()]));
    assert_eq!(scored(&made), ["it is so\n</think>\n\nyes<|im_end|>"]);
    let field = json!({"role": "assistant", "content": "yes", "reasoning_content": "it is so"});
    assert_eq!(shown(THINKS, &row(&[user("a"), field.clone()])).ids, made.ids);
    let without = shown(THINKS, &row(&[user("a"), says("yes")]));
    assert_eq!(scored(&without), ["yes<|im_end|>"], "thoughts that are none are not learnt");
    let earlier = shown(THINKS, &row(&[user("a"), inline, user("b"), says("no")]));
    assert_eq!(earlier.note, "the thoughts of 1 earlier answers are left out");
    let text: Vec<&str> = earlier.pieces.iter().filter(|p| p.1).map(|p| p.0.as_str()).collect();
    assert_eq!(text, ["yes<|im_end|>", "no<|im_end|>"]);
    for (thinking, end) in
        [(None, "<think>\n"), (Some(true), "<think>\n"), (Some(false), "<think>\n\n</think>\n\n")]
    {
        let made =
            shown_with(THINKS, &row(&[user("a"), field.clone()]), |settings| settings.thinking = thinking);
        assert!(
            made.written.unwrap().prompt.unwrap().ends_with(&format!("assistant\n{end}")),
            "{thinking:?}"
        );
    }
    let told = json!({"messages": [user("a"), field], "chat_template_kwargs": {"enable_thinking": false}});
    assert!(shown(THINKS, &told).written.unwrap().prompt.unwrap().ends_with("</think>\n\n"));
}

#[test]
fn a_header_written_with_the_question_is_found() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content + '<|im_start|>>' }}\
                    {% elif m.role == 'assistant' %}{{ m.content + '§E' }}{% endif %}{% endfor %}";
    let made = shown(template, &talk());
    assert_eq!(scored(&made), ["first answer<|im_end|>", "second answer<|im_end|>"]);
}

#[test]
fn markers_agree_or_decide() {
    let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '§Sassistant\n' }}\
                  {%- generation %}{{ m.content + '§E' }}{% endgeneration %}{{ '\n' }}\
                  {% else %}{{ '§S' + m.role + '\n' + m.content + '§E\n' }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}{{ '§Sassistant\n' }}{% endif %}";
    assert_eq!(scored(&shown(marked, &talk())), ["first answer<|im_end|>", "second answer<|im_end|>"]);
    // Without a prompt the rule cannot tell; the markers can.
    let (no_prompt, _) = marked.split_once("{% if add").unwrap();
    assert_eq!(scored(&shown(no_prompt, &talk())), ["first answer<|im_end|>", "second answer<|im_end|>"]);
    let wrong = marked.replace("m.role == 'assistant' %}{{", "m.role == 'user' %}{{");
    assert!(shown(&wrong, &talk()).note.contains("--train-on template"), "{}", shown(&wrong, &talk()).note);
    let followed = shown_with(&wrong, &talk(), |settings| settings.train_on = TrainOn::Template);
    assert_eq!(scored(&followed), ["one<|im_end|>", "two<|im_end|>"]);
    let folder = model(CHATML);
    let asked = Settings { train_on: TrainOn::Template, ..settings(&folder, &[talk()]) };
    assert_eq!(prepared(&asked).0.err().unwrap().exit_code(), 2);
}

#[test]
fn a_hoisted_system_message_and_tools_are_written() {
    let template = "{{ '§Ssystem\n' }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}\
        {% for t in tools or [] %}{{ '\n' + (t | tojson) }}{% endfor %}{{ '§E\n' }}\
        {% for m in messages if m.role != 'system' %}{{ '§S' + m.role + '\n' + (m.content or '') }}\
        {% for c in m.tool_calls or [] %}{% set c = c.function or c %}\
        {{ '<tool_call>\n{\"name\": \"' + c.name + '\", \"arguments\": ' + (c.arguments | tojson) + '}\n</tool_call>' }}\
        {% endfor %}{{ '§E\n' }}{% endfor %}{% if add_generation_prompt %}{{ '§Sassistant\n' }}{% endif %}";
    // As text, because the order of keys is what it is about.
    let call = r#"{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "look",
        "arguments": {"z": "\"q\"", "a": [1, 2.5, true, null]}}}]}"#;
    let row = format!(
        r#"{{"messages": [{{"role": "system", "content": "s"}}, {{"role": "user", "content": "q"}}, {call},
        {{"role": "tool", "content": "sunny", "tool_call_id": "1"}}, {{"role": "assistant", "content": "ok"}}],
        "tools": [{{"z": 1, "a": {{"k": "ü"}}}}]}}"#
    )
    .replace('\n', " ");
    let made = shown(template, &row);
    assert_eq!(
        scored(&made),
        [
            "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"z\": \"\\\"q\\\"\", \"a\": [1, 2.5, true, null]}}\n\
             </tool_call><|im_end|>",
            "ok<|im_end|>"
        ]
    );
    assert!(
        made.pieces[0].0.contains("s\n{\"z\": 1, \"a\": {\"k\": \"ü\"}}<|im_end|>"),
        "{:?}",
        made.pieces[0]
    );
    let tools = json!({"messages": [user("q"), says("a")], "tools": [{"name": "f"}]});
    assert!(shown(CHATML, &tools).note.contains("writes nothing of `tools`"));
}

#[test]
fn parts_and_other_templates_for_tools_are_followed() {
    let template = "{% for m in messages %}{{ '§S' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}\
        {% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{{ '§E\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '§Sassistant\n' }}{% endif %}";
    let parts =
        json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
    let made = shown(template, &row(&[parts, says("ok")]));
    assert!(made.pieces[0].0.contains("user\nab<|im_end|>"));
    assert_eq!(scored(&made), ["ok<|im_end|>"]);
    assert!(
        shown(
            CHATML,
            &row(&[user("q"), json!({"role": "assistant", "content": [{"type": "text", "text": "x"}]})])
        )
        .note
        .contains("chat template")
    );
}

#[test]
fn the_text_of_rows_stays_text() {
    let made = shown(CHATML, &row(&[user("x<|im_end|>\n<|im_start|>system\ny"), says("<|im_end|> z")]));
    assert_eq!(scored(&made), ["<|im_end|> z<|im_end|>"]);
    let ends = made.ids.iter().filter(|id| **id == *made.ids.iter().rev().nth(1).unwrap()).count();
    assert_eq!(ends, 2, "of the question and of the answer");
    let tools = json!({"messages": [user("q"), says("a")], "tools": [{"name": "<|im_end|>"}]});
    let template = format!("{{{{ tools | tojson }}}}{CHATML}");
    assert!(shown(&template, &tools).note.contains("the control token <|im_end|> in tools"));
    let planes = shown(CHATML, &row(&[user("\u{40000}"), says("a")]));
    assert!(planes.note.contains("planes without meaning"), "{}", planes.note);
}

#[test]
fn values_are_printed_as_python_prints_them() {
    let written = |expression: &str| {
        let made = shown(&format!("{{{{ {expression} }}}}"), &row(&[user("Käse <b>")]));
        made.written.unwrap().text
    };
    for (expression, expected) in [
        ("none", "None"),
        ("true", "True"),
        ("1.0", "1.0"),
        ("1e16", "1e+16"),
        ("0.00001", "1e-05"),
        ("123456789012345.0", "123456789012345.0"),
        ("[1, 'a', \"it's\", none]", "[1, 'a', \"it's\", None]"),
        ("{'a': [true], 'b': {}}", "{'a': [True], 'b': {}}"),
        ("['a\\n', '\\\\']", "['a\\n', '\\\\']"),
        ("messages[0].content", "Käse <b>"),
        ("[messages[0].content]", "['Käse <b>']"),
        ("messages[0].content | tojson", "\"Käse <b>\""),
        ("{'b': 1, 'a': 'ü\\n'} | tojson", "{\"b\": 1, \"a\": \"ü\\n\"}"),
        ("{'b': 1, 'a': 'ü'} | tojson(ensure_ascii=true, sort_keys=true)", "{\"a\": \"\\u00fc\", \"b\": 1}"),
        ("[1, {'a': []}] | tojson(indent=2)", "[\n  1,\n  {\n    \"a\": []\n  }\n]"),
        ("[1, 2] | tojson(separators=(',', ':'))", "[1,2]"),
        ("' a b '.split()", "['a', 'b']"),
        ("'a,b,c'.split(',', 1)", "['a', 'b,c']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("'xxaxx'.strip('x')", "a"),
        ("'abc'.startswith(('x', 'ab'))", "True"),
        ("'aXbX'.replace('X', '--', 1)", "a--bX"),
        ("none is iterable", "False"),
        ("'a' is sequence", "True"),
        ("{} is sequence", "True"),
        ("true is number", "True"),
        ("missing is iterable", "True"),
        ("'%s' ~ 1", "%s1"),
        ("'a' ~ true ~ none ~ 0.0000001 ~ [1, 'b'] ~ {'k': 1e16}", "aTrueNone1e-07[1, 'b']{'k': 1e+16}"),
        ("(1 ~ 2) ~ ('3' ~ [true ~ ''][0])", "123True"),
        ("'a' ~ (none if false else 'b' ~ false) ~ '~'", "abFalse~"),
        ("'a' ~ 2 * 3 ~ -1 if 'a' ~ 1 == 'a1' and not 'b' ~ none != 'bNone' else 'no'", "a6-1"),
        ("[true, none, 'x', 1e-7] | join(' ~ ')", "True ~ None ~ x ~ 1e-07"),
        ("[{'n': 1}, {'n': false}] | join('-', attribute='n')", "1-False"),
        ("'abc' | join('.') ~ {'a': 'b' ~ 1}.a", "a.b.cb1"),
        ("'a' | string", "a"),
    ] {
        assert_eq!(written(expression).as_deref(), Ok(expected), "{expression}");
    }
    for expression in ["'%9d' | format(1)", "'{}'.format(1)", "debug()", "open('x')", "missing | tojson"] {
        assert!(written(expression).is_err(), "{expression}");
    }
}

// ---- what cannot be told ------------------------------------------------------------------------------------

#[test]
fn odd_templates_are_refused_by_name() {
    let looks = "looks into the messages' text";
    let cases: &[(&str, &str)] = &[
        (&CHATML.replace("m.content", "(m.content | upper)"), looks),
        (&CHATML.replace("m.content", "(m.content | list | sort | join)"), looks),
        (&CHATML.replace("m.content", "('yes' if 'answer' in m.content else 'no')"), looks),
        (&CHATML.replace("m.content", "('!' if m.content[0] == 'f' else '') + m.content"), looks),
        (&CHATML.replace("m.content", "m.content + m.content"), "writes it twice"),
        (&CHATML.replace("in messages %}", "in messages | reverse %}"), "order"),
        (
            &CHATML.replace("§E\n' }}{% endfor %}", "' }}{% endfor %}"),
            "no token behind it that ends an answer",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ '§E' }}", "message 2"),
        (&CHATML.replace("{% if add_generation_prompt %}{{ '§Sassistant\n' }}{% endif %}", ""), "message 2"),
        (&CHATML.replace("'§Sassistant\n' }}", "'§Sbot\n' }}"), "cannot be told"),
        (&CHATML.replace("'§S' + m.role", "'§S' + loop.index ~ m.role"), "cannot be told"),
        (&CHATML.replace("m.content + '§E", "m.content[:3] + '§E"), "only a part"),
        ("{{ messages | tojson }}{{ '§E' }}", "message 2"),
        (
            &CHATML.replace("m.content", "m.content[:3] + '§E\n§Suser\n' + m.content[3:]"),
            "more than one turn",
        ),
        (&CHATML.replace("m.content +", "messages[0].content + m.content +"), "cannot be told"),
        (
            &CHATML.replace("m.content", "m.content[:3] + messages[0].content + m.content[3:]"),
            "mixes it with another",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ '§Suser\n' + m.content + '§E\n' }}{% endfor %}",
            "message 2",
        ),
        (
            "{% for m in messages if m.role != 'user' %}{{ '§S' + m.role + '\n' + m.content + '§E\n' }}{% endfor %}",
            "message 1: the chat template writes nothing of it",
        ),
        ("", "writes nothing of it"),
        ("{{ messages[0].content.title() }}", looks),
        (&CHATML.replace("m.content", "(m.content | replace('answer', '<|im_end|>'))"), "message 2"),
    ];
    for (template, expected) in cases {
        let made = shown(template, &row(&[user("odd question"), says("first answer")]));
        assert!(made.ids.is_empty() && made.note.contains(expected), "{template}: {:?}", made);
    }
    let lost = json!({"role": "assistant", "content": "a", "reasoning_content": "why"});
    let made = shown(CHATML, &row(&[user("q"), lost]));
    assert!(
        made.note.contains("message 2: the chat template has no place for `reasoning_content`"),
        "{}",
        made.note
    );
    let dropped = THINKS.replace("loop.last", "false");
    let made = shown(&dropped, &row(&[user("q"), says("<think>\nwhy\n</think>\n\na")]));
    assert!(made.note.contains("thoughts of the last answer"), "{}", made.note);
    let calls = json!({"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": {}}]});
    assert!(shown(CHATML, &row(&[user("q"), calls])).note.contains("no place for `tool_calls`"));
    let unknown = json!({"messages": [user("q"), says("a")], "chat_template_kwargs": {"style": "x"}});
    assert!(shown(CHATML, &unknown).note.contains("knows no style"));
}

// ---- templates that mean harm -------------------------------------------------------------------------------

#[test]
fn hostile_templates_end_soon() {
    let deep =
        |open: &str, close: &str, n: usize| format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n));
    let big = "x".repeat((1 << 20) + 1);
    let templates: Vec<String> = [
        "{% for i in range(100000000) %}{{ i }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('ab') }}",
        "{% set ns = namespace(a='x') %}{% for i in range(64) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a='x') %}{% for i in range(64) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | string }}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(90000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(90000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson }}",
        "{% set ns = namespace(a=[1]) %}{% for i in range(9999) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a | length }}",
        "{% for a in [[1]] recursive %}{{ loop([a + a]) }}{% endfor %}",
        "{% macro f(a) %}{{ f(a + a) }}{% endmacro %}{{ f([1]) }}",
        "{{ 'x' * 2000000000 }}",
        "{{ ('x' * 100000) * 100000 }}",
        "{{ [1] * 2000000000 }}",
        "{{ range(100000) | list | tojson(indent=64) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('a,' * 100000) | replace(',', 'b' * 100000) }}",
        "{{ (',' * 90000).split(',') | join('x' * 90000) }}",
        "{{ ('x' * 90000).center(9999999999) }}",
        "{{ 'x' | indent(2000000000) }}",
        "{{ 10 ** 10 ** 10 ** 10 }}",
        "{% for i in range(9) recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__ }}",
        "{% for c in messages[0].content %}{% for d in messages[0].content %}{{ messages[0].content }}{% endfor %}{% endfor %}",
        "{{ '\\u{0}' * 1000 }}{% raw %}",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([deep("(", ")", 50_000), deep("[", "]", 50_000), deep("not ", "", 50_000), big])
    .chain([deep("not ", "", 1_300), deep("'a' + ", "", 3_900), deep("-", "", 3_900), deep("1 if ", "", 1_300)])
    .chain([deep("", ".a", 1_900), deep("", "|e", 1_900), deep("", "[0]", 1_300), "{% if 1 %}".repeat(50_000)])
    .chain(["{% for a in b %}".repeat(50_000), "{{ 1 }}".repeat(140_000), "{{".into(), "{% set".into()])
    .collect();
    assert!(templates.len() >= 30);
    for template in templates {
        let name: String = template.chars().take(80).collect();
        let folder = model(&template);
        let rows = row(&[user("question"), says("answer")]).to_string();
        let words =
            [folder.path().display().to_string(), folder.file("rows.jsonl", rows).display().to_string()];
        // Its memory is bounded by the system: whoever allocates before it pays is found.
        let bounded = "ulimit -v 1500000; exec \"$0\" preview --json --model \"$1\" --train-file \"$2\"";
        let start = Instant::now();
        let program = env!("CARGO_BIN_EXE_qwentune");
        let done = Command::new("sh").args(["-c", bounded, program]).args(words).output().unwrap();
        // Refused when it is opened, or for its row; and never any other way.
        let refused = match done.status.code() {
            Some(65) => true,
            Some(0) => {
                let shown: Value = serde_json::from_slice(&done.stdout).unwrap();
                shown["input_ids"] == json!([]) && shown["note"] != ""
            }
            _ => false,
        };
        assert!(refused, "{name}: {done:?}");
        // Generous: what never ends is looked for.
        assert!(start.elapsed() < Duration::from_secs(60), "{name} took {:?}", start.elapsed());
    }
}

// ---- random conversations -----------------------------------------------------------------------------------

const WORDS: [&str; 28] = [
    "yes",
    "no",
    "42",
    "你好",
    "é",
    "\n",
    "\n\n",
    " ",
    "\t",
    "<think>",
    "</think>",
    "<think>\n",
    "\n</think>\n\n",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "<b>",
    "assistant",
    "user\n",
    "assistant\n",
    "{{",
    "{%",
    "\"",
    "\\",
    "</",
    "question",
    "|",
    ".",
];

fn text(random: &mut Lcg) -> String {
    (0..1 + random.below(7)).map(|_| WORDS[random.below(WORDS.len())]).collect()
}

fn conversation(random: &mut Lcg) -> Value {
    let mut messages = Vec::new();
    if random.below(3) == 0 {
        messages.push(json!({"role": "system", "content": text(random)}));
    }
    for _ in 0..1 + random.below(3) {
        messages.push(user(&format!("q{}", text(random))));
        messages.push(says(&text(random)));
    }
    row(&messages)
}

/// Between a header and an end token, read off the text. Empty thoughts are the template's unless the row has them.
fn read_off(text: &str, row: &Value) -> Vec<String> {
    let header = format!("{OPEN}assistant\n");
    let answer = |rest: &str| {
        let said = &rest[..rest.find(CLOSE).unwrap() + CLOSE.len()];
        let inside = said.strip_prefix("<think>").unwrap_or(said).trim_start_matches('\n');
        let rest = inside.strip_prefix("</think>").filter(|after| after.starts_with('\n'));
        let ours = |message: &Value| message["content"].as_str().unwrap().contains("</think>");
        match rest.filter(|_| !row["messages"].as_array().unwrap().iter().any(ours)) {
            Some(after) => after.trim_start_matches('\n').to_owned(),
            None => said.to_owned(),
        }
    };
    text.split(&header).skip(1).map(answer).collect()
}

#[test]
fn answers_of_random_conversations_are_found_or_refused() {
    let trimmed = CHATML.replace("m.content", "(m.content | trim)");
    let mut random = Lcg(20);
    let rows: Vec<Value> = (0..400).map(|_| conversation(&mut random)).collect();
    for (name, template) in
        [("plain", Some(CHATML)), ("trim", Some(&*trimmed)), ("qwen2.5", None), ("qwen3", None)]
    {
        let folder = model(template.unwrap_or_default());
        let mut settings = settings(&folder, &rows);
        if template.is_none() {
            settings.template = serde_json::from_value::<Template>(json!(name)).unwrap();
        }
        let mut found = 0;
        for (row, made) in rows.iter().zip(preview(&settings, rows.len()).unwrap()) {
            let Some(written) = made.written.filter(|written| !written.answers.is_empty()) else {
                assert!(!made.note.is_empty(), "{name} {row}");
                continue;
            };
            let text: Vec<char> = written.text.unwrap().chars().collect();
            let answers: Vec<String> =
                written.answers.iter().map(|answer| text[answer.place.clone()].iter().collect()).collect();
            let expected = read_off(&text.iter().collect::<String>(), row);
            // Where the row itself has thoughts, those that are none are passed over or not.
            let same = answers.iter().zip(&expected).all(|(found, read)| read.ends_with(found.as_str()));
            let exact = !row.to_string().contains("</think>");
            assert!(
                answers.len() == expected.len() && same && (!exact || answers == expected),
                "{name} {row}"
            );
            found += 1;
        }
        assert!(found > 150, "{name}: {found} of {}", rows.len());
    }
}
