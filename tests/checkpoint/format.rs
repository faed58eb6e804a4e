//! The bytes: what is written is read back, and nothing else is accepted.

use super::disk::Rng;
use super::{sized_state, state};
use qwentune::checkpoint::encode::file_len;
use qwentune::checkpoint::format::{BLOCK, DIGEST_AT, ENTRY_LEN, SECTIONS, TABLE_AT, decode, encode};
use qwentune::checkpoint::state::{Ancestor, Best, Change, Descent, Length, State, TensorEntry};
use qwentune::identity::{Identity, RowSet, canonical_json, from_canonical_json};
use qwentune::report::line::{EvalLine, LogLine, StepLine};
use std::path::Path;

fn error(bytes: &[u8]) -> String {
    decode(Path::new("step.qckpt"), bytes).expect_err("must be refused").what
}

#[test]
fn round_trip() {
    let no_tensors = State {
        tensors: vec![],
        weights: vec![],
        m: vec![],
        v: vec![],
        log: vec![],
        identity: Identity::default(),
        ..state(4, 0)
    };
    // The last one is long enough for several chunks of each array and of the log.
    for state in [state(1, 0), state(7, 3), no_tensors, sized_state(900, 1, 300_000), state(10_000, 1)] {
        let mut state = state;
        state.history.lengths[0].total_steps = 10_000;
        let bytes = encode(&state);
        assert_eq!(bytes.len() as u64, file_len(&state));
        let back = decode(Path::new("x"), &bytes).expect("own bytes");
        assert_eq!(back, state);
        assert_eq!(encode(&back), bytes);
    }
}

/// The bytes of a fixed state, so that a change of the format cannot pass unnoticed: it needs a new version.
#[test]
fn bytes_are_pinned() {
    let digest = blake3::hash(&encode(&state(3, 1))).to_hex();
    assert_eq!(digest.as_str(), PINNED);
}

const PINNED: &str = "3c804f998de54f9dfef257743ab0833b4e4f8ea22a83e735bb9db4ab0fb872b2";

#[test]
fn every_flipped_bit_is_refused() {
    let good = encode(&state(2, 0));
    let mut bytes = good.clone();
    for at in 0..bytes.len() {
        for bit in [at % 8, (at + 3) % 8, (at + 6) % 8] {
            bytes[at] ^= 1 << bit;
            let refused = decode(Path::new("x"), &bytes);
            assert!(refused.is_err(), "byte {at}, bit {bit}");
            bytes[at] ^= 1 << bit;
        }
    }
    assert_eq!(bytes, good);
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let mut bytes = encode(&state(2, 0));
    for len in 0..bytes.len() {
        assert!(decode(Path::new("x"), &bytes[..len]).is_err(), "length {len}");
    }
    assert!(error(&bytes[..bytes.len() - 1]).contains("the header says"));
    for extra in [1, 4095, 4096] {
        let len = bytes.len();
        bytes.resize(len + extra, 0);
        assert!(decode(Path::new("x"), &bytes).is_err(), "{extra} more bytes");
        bytes.truncate(len);
    }
}

#[test]
fn damage_is_named() {
    let good = encode(&state(2, 0));
    let flip = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        error(&bytes)
    };
    let entry = |i: usize| u64_at(&good, TABLE_AT + i * ENTRY_LEN + 16) as usize;
    for (i, name) in SECTIONS.into_iter().enumerate() {
        let offset = entry(i);
        let text = flip(offset);
        assert!(text.contains(&format!("section {name} damaged")), "{text}");
        assert!(text.contains(&format!("{offset:#x}..")), "{text}");
        let text = flip(offset + BLOCK as usize - 1);
        assert!(text.contains(&format!("padding after section {name}")), "{text}");
    }
    assert!(flip(0).contains("magic number"));
    assert!(flip(8).contains("header damaged"), "a flipped version is damage, not a newer format");
    assert!(flip(good.len() - 1).contains("trailer damaged"));
    assert!(error(b"").contains("not a checkpoint"));
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Makes all digests and lengths true again after bytes were changed, as an attacker would.
fn seal(bytes: &mut [u8]) {
    let len = bytes.len();
    for i in 0..SECTIONS.len() {
        let at = TABLE_AT + i * ENTRY_LEN;
        let (offset, length) = (u64_at(bytes, at + 16), u64_at(bytes, at + 24));
        let end = offset.saturating_add(length);
        if end <= len as u64 && offset <= end {
            let digest = *blake3::hash(&bytes[offset as usize..end as usize]).as_bytes();
            bytes[at + 40..at + 72].copy_from_slice(&digest);
        }
    }
    let digest = *blake3::hash(&bytes[..DIGEST_AT]).as_bytes();
    bytes[DIGEST_AT..DIGEST_AT + 32].copy_from_slice(&digest);
    bytes[len - 4096 + 16..len - 4096 + 48].copy_from_slice(&digest);
}

#[test]
fn sealed_lies_are_refused_by_name() {
    let table = |section: usize, field: usize| TABLE_AT + section * ENTRY_LEN + field;
    let good = encode(&state(2, 0));
    let set = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        seal(&mut bytes);
        error(&bytes)
    };
    let huge = u64::MAX.to_le_bytes();
    let section = |i: usize| u64_at(&good, table(i, 16)) as usize;
    let cases: [(String, &str); 17] = [
        (set(8, &[1, 0]), "format 1.0, this build reads 2.0"),
        (set(10, &[1, 0]), "format 2.1, this build reads 2.0"),
        (set(12, &[0, 32]), "lengths are not those"),
        (set(16, &huge), "sections do not fill"),
        (set(40, &[2]), "reserved bytes"),
        (set(730, &[1]), "reserved bytes"),
        (set(3000, &[1]), "reserved bytes"),
        (set(table(0, 0), b"IDX\0"), "where META belongs"),
        (set(table(4, 8), &[1, 0]), "section W: codec 1"),
        (set(table(4, 16), &huge), "section W: begins at"),
        (set(table(4, 24), &[huge, huge].concat()), "section W: longer than the file"),
        (set(table(4, 32), &huge), "raw length"),
        (set(section(0), b" "), "section META"),
        (set(section(1), &huge), "section IDX"),
        (set(section(2) + 32, &huge), "section CUR"),
        (set(section(3), &[7]), "section LOG: record of unknown kind 7"),
        (set(section(4) + 4, &f32::NAN.to_le_bytes()), "section W: element 1 (layers.0.q_proj.lora_A)"),
    ];
    for (i, (text, expected)) in cases.iter().enumerate() {
        assert!(text.contains(expected), "case {i}: {text}");
    }
}

/// States that are inconsistent in themselves are refused whole digests notwithstanding.
#[test]
fn inconsistent_states_are_refused() {
    let line =
        |step, loss| LogLine::Step(StepLine { step, epoch: 0.0, loss, grad_norm: 0.0, lr: 0.0, tokens: 1 });
    type Lie = (&'static str, fn(&mut State));
    let changes: [Lie; 19] = [
        ("twice", |s| s.tensors[1].name = s.tensors[0].name.clone()),
        ("begins at 14, expected 15", |s| s.tensors[1].offset = 14),
        ("has the shape", |s| s.tensors[0].shape = [0, 7]),
        ("has the shape", |s| s.tensors[1].shape = [usize::MAX, 2]),
        ("not printable", |s| s.tensors[0].name = "a\u{0}b".into()),
        ("not printable", |s| s.tensors[0].name = String::new()),
        ("section M: 24 elements", |s| s.m.truncate(24)),
        ("section M: element 3", |s| s.m[3] = f32::INFINITY),
        ("section V: element 24", |s| s.v[24] = -1.0),
        ("best loss", |s| s.cursor.best = Some(Best { loss: 1.0, step: s.step + 1, adapter: [0; 32] })),
        ("best loss", |s| s.cursor.best = Some(Best { loss: f64::NAN, step: 1, adapter: [0; 32] })),
        ("3 updates behind", |s| s.cursor.updates_behind = 3),
        ("no length", |s| s.history.lengths.clear()),
        ("step 2 of 1", |s| s.history.lengths[0].total_steps = 1),
        ("out of order", |s| {
            s.history.lengths.push(Length { from_step: 3, total_steps: 9, warmup_steps: 0 });
        }),
        ("out of order", |s| {
            s.history.lengths.insert(0, Length { from_step: 1, total_steps: 9, warmup_steps: 0 });
        }),
        ("out of order", |s| {
            s.history.changes.push(Change { from_step: 0, setting: "a".into(), value: "b".into() });
        }),
        ("out of order", |s| {
            s.history.lineage.push(Ancestor { descent: Descent::Import, step: 3, digest: "a".into() });
        }),
        ("tensor name", |s| s.tensors[0].name = "n".repeat(513)),
    ];
    for (expected, change) in changes {
        let mut bad = state(2, 0);
        change(&mut bad);
        let text = error(&encode(&bad));
        assert!(text.contains(expected), "{text} / {expected}");
    }
    let logs: [Vec<LogLine>; 5] = [
        vec![line(1, 1.0)],
        vec![line(1, 1.0), line(1, 1.0), line(2, 1.0)],
        vec![line(1, 1.0), line(2, 1.0), line(3, 1.0)],
        vec![line(1, f64::NAN), line(2, 1.0)],
        vec![line(1, 1.0), LogLine::Eval(EvalLine { step: 2, epoch: 0.0, eval_loss: 1.0 }), line(2, 1.0)],
    ];
    for log in logs {
        let text = error(&encode(&State { log, ..state(2, 0) }));
        assert!(text.contains("section LOG"), "{text}");
    }
}

/// Whatever the bytes are: no panic, and what is accepted is exactly what its content would be written as.
#[test]
fn random_bytes_are_refused_or_canonical() {
    let good = encode(&state(2, 0));
    let mut accepted = 0;
    for seed in 0..20_000u64 {
        let mut rng = Rng(seed);
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(3) {
            // Mostly where fields are: the header, and the beginnings of the sections.
            let block = rng.below(bytes.len() / 4096);
            let within = if rng.coin() { rng.below(256) } else { rng.below(4096) };
            let at = (block * 4096 + within).min(bytes.len() - 8);
            let value = [0, 1, u64::MAX, 1 << 63, rng.next(), 4096, 24][rng.below(7)].to_le_bytes();
            let len = 1 + rng.below(8);
            bytes[at..at + len].copy_from_slice(&value[..len]);
        }
        if rng.coin() {
            let blocks = rng.below(bytes.len() / 4096) + 1;
            bytes.resize(blocks * 4096, 0);
        }
        seal(&mut bytes);
        if let Ok(state) = decode(Path::new("x"), &bytes) {
            accepted += 1;
            assert_eq!(encode(&state), bytes, "seed {seed}");
        }
    }
    assert!(accepted > 100, "the cases are too wild to reach far: {accepted}");
}

#[test]
fn identities_are_canonical_and_compared() {
    let old = super::identity(0);
    let text = canonical_json(&old);
    let expected = r#"{"adapter":{"folded":[],"initial":""},"data":{"train":{"digest":"","files":[],"rows":0}},"engine":{"arithmetic":"","device":"","version":""},"model":{"encoding":"bf16","files":{"a.safetensors":"\u{e9}\"\\\n"}},"objective":"supervised","settings":{"seed":"0"}}"#;
    assert_eq!(text, expected.replace("\\u{e9}", "\u{e9}"));
    assert_eq!(from_canonical_json::<Identity>(text.as_bytes()), Ok(old.clone()));
    for (part, other) in [
        (r#"{"adapter""#, r#"{ "adapter""#),
        (r#""folded":[],"initial":"""#, r#""initial":"","folded":[]"#),
        (r#""folded":[],"#, r#""folded":[],"folded":[],"#),
        (r#""seed":"0""#, r#""seed":"1","seed":"0""#),
        (r#""seed":"0""#, r#""seed":0"#),
        (r#""seed""#, r#""\u0073eed""#),
        (r#""rows":0"#, r#""rows":0.0"#),
        (r#""rows":0"#, r#""rows":-1"#),
        (r#""objective":"supervised""#, r#""objective":"other""#),
        (r#""rows":0}"#, r#""rows":0},"eval":null"#),
        (r#""encoding""#, r#""unknown":1,"encoding""#),
    ] {
        let spelt = text.replacen(part, other, 1);
        assert_ne!(spelt, text, "{part}");
        assert!(from_canonical_json::<Identity>(spelt.as_bytes()).is_err(), "{spelt}");
    }
    let mut now = old.clone();
    assert!(old.differences(&now).is_empty());
    now.settings.insert("seed".into(), "43".into());
    now.data.eval = Some(RowSet { rows: 61, ..RowSet::default() });
    now.model.files.clear();
    let found: Vec<(String, Option<String>, Option<String>)> =
        old.differences(&now).into_iter().map(|d| (d.field, d.old, d.new)).collect();
    let text = |s: &str| Some(s.to_owned());
    assert_eq!(
        found,
        [
            ("data.eval.digest".into(), None, text("")),
            ("data.eval.rows".into(), None, text("61")),
            ("model.files.a.safetensors".into(), text("\u{e9}\"\\\n"), None),
            ("settings.seed".into(), text("0"), text("43")),
        ]
    );
}

/// Records tell their own length; one of another length, or of a kind that is not known, is refused by name.
#[test]
fn log_records_have_kind_and_length() {
    let good = encode(&state(2, 0));
    let at = u64_at(&good, TABLE_AT + 3 * ENTRY_LEN + 16) as usize;
    assert_eq!(good[at..at + 8], [1, 0, 0, 0, 48, 0, 0, 0]);
    assert_eq!(good[at + 112..at + 120], [2, 0, 0, 0, 24, 0, 0, 0]);
    for (place, value) in [(at, 3), (at, 2), (at + 4, 40), (at + 4, 47), (at + 7, 255)] {
        let mut bytes = good.clone();
        bytes[place] = value;
        seal(&mut bytes);
        assert!(error(&bytes).contains("section LOG"), "{}", error(&bytes));
    }
}

/// Tensors must tile the arrays; a checkpoint of another model shape is another table.
#[test]
fn tensor_tables_round_trip() {
    let names = ["a", "12345678", "seven77", "\u{4f60}\u{597d}"];
    let tensors: Vec<TensorEntry> = names
        .iter()
        .enumerate()
        .map(|(i, name)| TensorEntry { name: (*name).into(), shape: [1, 5], offset: 5 * i })
        .collect();
    let array = vec![0.5f32; 20];
    let state = State { tensors, weights: array.clone(), m: array.clone(), v: array, ..state(2, 0) };
    assert_eq!(decode(Path::new("x"), &encode(&state)).expect("own bytes"), state);
}
