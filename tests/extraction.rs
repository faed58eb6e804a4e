//! Precision, recall and F1 of predictions: hand-computed cases, an independent implementation's figures
//! (scripts/extraction_reference.py), and what is said of files that are wrong.

use qwentune::data::extraction::{MatchMode, NO_SOURCE, Scorer, Task};
use qwentune::data::predictions;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Rows of source, id, label and answer; each entry of the result is (matched, gold, predicted).
fn counts(
    task: Task,
    mode: MatchMode,
    rows: &[(&str, &str, &str, &str)],
) -> (u64, u64, Vec<(u64, u64, u64)>) {
    let mut scorer = Scorer::new(task);
    for (source, id, label, answer) in rows {
        scorer.add(source, id, &serde_json::from_str(label).unwrap(), answer).unwrap();
    }
    let tally = scorer.total(mode);
    let counts = tally.counts.iter().map(|c| (c.matched, c.gold, c.predicted)).collect();
    (tally.texts, tally.unparsable, counts)
}

/// `{"entity", "entity_type"}` of pairs.
fn entities(pairs: &[(&str, &str)]) -> String {
    json!(pairs.iter().map(|(e, t)| json!({ "entity": e, "entity_type": t })).collect::<Vec<_>>()).to_string()
}

#[test]
fn entities_are_counted_by_hand() {
    let zh = entities(&[("胡", "人物"), ("康有为", "人物"), ("中华", "地理位置")]);
    let en = entities(&[("Oslo", "location"), ("Oslo", "location"), ("Mara", "person")]);
    // (label, answers of the parts of one text, as multisets, as sets, unparsable)
    type Case<'a> = (&'a str, &'a [&'a str], (u64, u64, u64), (u64, u64, u64), u64);
    let cases: &[Case] = &[
        (&zh, &[r#"{"人物": ["胡", "康有为"], "地理位置": ["中华"]}"#], (3, 3, 3), (3, 3, 3), 0),
        (&zh, &[r#"{"人物": ["胡", "谭嗣同"], "组织机构": ["中华"]}"#], (1, 3, 3), (1, 3, 3), 0),
        // A schema in two parts: their answers are joined.
        (&zh, &[r#"{"人物": ["胡"]}"#, r#"{"地理位置": ["中华", "北京"]}"#], (2, 3, 3), (2, 3, 3), 0),
        (&zh, &[r#"{"人物": ["胡"]}"#, "抱歉"], (1, 3, 1), (1, 3, 1), 1),
        // Both parts name the same entity: the second is one too many, unless repetitions do not count.
        (&zh, &[r#"{"人物": ["胡"]}"#, r#"{"人物": ["胡"]}"#], (1, 3, 2), (1, 3, 1), 0),
        // Gold holds a repetition.
        (&en, &[r#"{"location": ["Oslo"], "person": ["Mara"]}"#], (2, 3, 2), (2, 2, 2), 0),
        (&en, &[r#"{"location": ["Oslo", "Oslo", "Oslo"]}"#], (2, 3, 3), (1, 2, 1), 0),
        // Nothing is forgiven: case, spaces.
        (&en, &[r#"{"location": ["oslo", "Oslo "], "Person": ["Mara"]}"#], (0, 3, 3), (0, 2, 3), 0),
        // What has not the shape of an answer is passed over and is no error.
        (
            &en,
            &[r#"{"location": "Oslo", "person": ["Mara", 5, null, ["x"], {"a": "b"}]}"#],
            (1, 3, 1),
            (1, 2, 1),
            0,
        ),
        // The later of two equal keys counts.
        (&en, &[r#"{"person": ["x"], "person": ["Mara"]}"#], (1, 3, 1), (1, 2, 1), 0),
        (
            &en,
            &["[]", "", "null", "3", r#"{"location": ["Os"#, "{} {}", "{'a': []}"],
            (0, 3, 0),
            (0, 2, 0),
            7,
        ),
        (&en, &["{}", " {} \n"], (0, 3, 0), (0, 2, 0), 0),
        ("[]", &[r#"{"person": ["Mara"]}"#], (0, 0, 1), (0, 0, 1), 0),
        ("[]", &["{}"], (0, 0, 0), (0, 0, 0), 0),
    ];
    for (label, answers, normal, set, unparsable) in cases {
        let rows: Vec<_> = answers.iter().map(|answer| ("news", "1", *label, *answer)).collect();
        for (mode, expected) in [(MatchMode::Normal, normal), (MatchMode::Set, set)] {
            let found = counts(Task::Ner, mode, &rows);
            assert_eq!(found, (1, *unparsable, vec![*expected]), "{mode:?} {label} {answers:?}");
        }
    }
}

#[test]
fn relations_events_and_triggers_are_counted_by_hand() {
    let relations =
        r#"[{"head": "你的名字", "relation": "作者", "tail": "新海诚"}, {"head": "a", "relation": "r"}]"#;
    let events = r#"[{"event_type": "人生-订婚", "event_trigger": "订婚", "arguments": [
        {"argument": "向佐", "role": "订婚主体"}, {"argument": "郭碧婷", "role": "订婚主体"}]},
        {"event_type": "attack", "event_trigger": "hit", "arguments": []}]"#;
    type Case<'a> = (Task, &'a str, &'a str, &'a [(u64, u64, u64)]);
    let cases: &[Case] = &[
        (Task::Re, relations, r#"{"作者": [{"subject": "你的名字", "object": "新海诚"}]}"#, &[(1, 2, 1)]),
        (Task::Re, relations, r#"{"作者": [{"subject": "新海诚", "object": "你的名字"}]}"#, &[(0, 2, 1)]),
        // A missing subject or object is the empty text, on both sides.
        (
            Task::Re,
            relations,
            r#"{"r": [{"subject": "a"}, {"object": "a"}, {}, "a", {"subject": 1}]}"#,
            &[(1, 2, 3)],
        ),
        (
            Task::Ee,
            events,
            r#"{"人生-订婚": [{"trigger": "订婚", "arguments": {"订婚主体": ["向佐", "郭碧婷"], "时间": "NAN"}}], "attack": []}"#,
            &[(1, 2, 1), (2, 2, 2)],
        ),
        // Arguments do not need their event's trigger to be right; a wrong role is wrong.
        (
            Task::Ee,
            events,
            r#"{"人生-订婚": [{"trigger": "后", "arguments": {"订婚主体": "向佐", "时间": ["郭碧婷", "NAN"]}}]}"#,
            &[(0, 2, 1), (1, 2, 2)],
        ),
        // An event without trigger has the empty one; values that are no text never match, but were predicted.
        (Task::Ee, events, r#"{"attack": [{"arguments": {"x": [5, null]}}]}"#, &[(0, 2, 1), (0, 2, 2)]),
        // A trigger that is no text: the event is passed over. Arguments that are no object: it has none.
        (
            Task::Ee,
            events,
            r#"{"attack": [{"trigger": 1}, {"trigger": "hit", "arguments": []}]}"#,
            &[(1, 2, 1), (0, 2, 0)],
        ),
        (Task::Eet, events, r#"{"attack": ["hit", "hit"], "人生-订婚": []}"#, &[(1, 2, 2)]),
        // Arguments alone, as IEPile writes them and as DeepKE does.
        (
            Task::Eea,
            events,
            r#"{"人生-订婚": [{"订婚主体": ["向佐", "NAN"]}], "attack": [{}]}"#,
            &[(2, 2, 2), (1, 2, 1)],
        ),
        (
            Task::Eea,
            events,
            r#"{"人生-订婚": [{"trigger": "x", "arguments": {"订婚主体": "向佐"}}]}"#,
            &[(1, 2, 1), (1, 2, 1)],
        ),
    ];
    for (task, label, answer, expected) in cases {
        let found = counts(*task, MatchMode::Normal, &[("s", "1", label, answer)]);
        assert_eq!(found, (1, 0, expected.to_vec()), "{task:?} {answer}");
    }
}

#[test]
fn texts_are_told_apart_by_source_and_id_and_counted_by_source() {
    let label = entities(&[("x", "t")]);
    let answer = r#"{"t": ["x"]}"#;
    let mut scorer = Scorer::new(Task::Ner);
    for (source, id, answer) in [("a", "1", answer), ("a", "2", "{}"), ("b", "1", answer), ("b", "1", answer)]
    {
        scorer.add(source, id, &serde_json::from_str(&label).unwrap(), answer).unwrap();
    }
    let sources: Vec<(&str, u64, (u64, u64, u64))> = scorer
        .by_source(MatchMode::Normal)
        .into_iter()
        .map(|(name, t)| (name, t.texts, (t.counts[0].matched, t.counts[0].gold, t.counts[0].predicted)))
        .collect();
    assert_eq!(sources, [("a", 2, (1, 2, 1)), ("b", 1, (1, 1, 2))]);
    let total = scorer.total(MatchMode::Normal);
    assert_eq!((total.texts, total.counts[0].matched, total.counts[0].gold), (3, 2, 3));
    // Precision 2 of 3, recall 2 of 3; F1 from the figures as they are shown.
    let count = total.counts[0];
    assert_eq!((count.precision(), count.recall(), count.f1()), (66.67, 66.67, 66.67));
    // Another label for the same text is told, and the first one counts.
    assert_eq!(scorer.other_labels, 0);
    scorer.add("b", "1", &json!([]), "{}").unwrap();
    assert_eq!((scorer.other_labels, scorer.total(MatchMode::Normal).counts[0].gold), (1, 3));
    let empty = Scorer::new(Task::Ee).total(MatchMode::Set).counts;
    assert!(empty.iter().all(|c| (c.precision(), c.recall(), c.f1()) == (0.0, 0.0, 0.0)));
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/extraction").join(name)
}

#[test]
fn random_files_score_as_the_independent_implementation_says() {
    let text = std::fs::read_to_string(golden("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    for (name, task) in Task::ALL {
        let file = golden(&format!("{}.jsonl", name.to_lowercase()));
        let (found, scorer) = predictions::read(&file, None).unwrap();
        assert_eq!((found, scorer.other_labels), (task, 0));
        for (word, mode) in [("normal", MatchMode::Normal), ("set", MatchMode::Set)] {
            let (tally, wanted) = (scorer.total(mode), &expected[name][word]);
            assert_eq!(json!(tally.texts), wanted["texts"]);
            assert_eq!(json!(tally.unparsable), wanted["unparsable"], "{name} {word}");
            for (kind, count) in task.counted().iter().zip(&tally.counts) {
                let wanted = &wanted[*kind];
                let made = json!({
                    "matched": count.matched, "gold": count.gold, "predicted": count.predicted,
                    "precision": count.precision(), "recall": count.recall(), "f1": count.f1(),
                });
                assert_eq!(&made, wanted, "{name} {word} {kind}");
                assert!(count.matched > 10 && count.f1() < 90.0, "{name}: the file shows nothing");
            }
        }
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_row() {
    let folder = crate::scratch::folder();
    let file = folder.join("rows.jsonl");
    let good = r#"{"id": "1", "task": "NER", "label": "[]", "output": "{}"}"#;
    for (row, task, says) in [
        (r#"{"task": "NER", "label": "[]", "output": "{}"}"#, None, "rows.jsonl:2: `id` is missing"),
        (r#"{"id": "1", "output": "{}"}"#, None, "rows.jsonl:2: `label` is missing"),
        (r#"{"id": "1", "label": "[]"}"#, None, "qwentune generate"),
        (r#"{"id": "1", "label": "[]", "output": {}}"#, None, "`output` is an object, not a string"),
        (r#"{"id": "1", "label": "[", "output": "{}"}"#, None, "`label` is not JSON"),
        (r#"{"id": "1", "label": "{}", "output": "{}"}"#, None, "the label is not a list"),
        (r#"{"id": "1", "label": "[1]", "output": "{}"}"#, None, "no `entity`"),
        (
            r#"{"id": "1", "task": "RE", "label": "[]", "output": "{}"}"#,
            None,
            "the row's task is RE, NER is evaluated",
        ),
        (r#"{"id": "1", "task": "SPO", "label": "[]", "output": "{}"}"#, None, "there are rules for NER, RE"),
        (good, Some(Task::Re), "rows.jsonl:1: the row's task is NER, RE is evaluated"),
        ("[]", None, "the row is an array"),
        ("{", None, "rows.jsonl:2: column"),
    ] {
        std::fs::write(&file, format!("{good}\n{row}\n")).unwrap();
        let error = predictions::read(&file, task).expect_err(row);
        assert_eq!(error.exit_code(), 65, "{row}: {error}");
        assert!(error.to_string().contains(says), "{row}: {error}");
    }
    std::fs::write(&file, r#"{"id": 1, "label": "[]", "output": "{}"}"#).unwrap();
    let error = predictions::read(&file, None).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.remedy.contains("--task"), "{error}");
    let (_, scorer) = predictions::read(&file, Some(Task::Ner)).unwrap();
    assert_eq!(scorer.by_source(MatchMode::Normal).keys().collect::<Vec<_>>(), [&NO_SOURCE]);
    std::fs::write(&file, "\n").unwrap();
    assert!(predictions::read(&file, Some(Task::Ner)).unwrap_err().what.contains("no rows"));
}
