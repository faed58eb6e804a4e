//! Reads `tokenizer.json` and `qwen.tiktoken` into one checked form. The files are untrusted: nothing of them
//! reaches the tokenizer library before it was checked here, because a crafted file makes that library panic.
//!
//! Only what Qwen uses is accepted: byte-level BPE, NFC, Qwen's own splitting expression. Anything else would
//! silently give other ids.

use crate::error::{Error, Result};
use crate::files;
use crate::formats::lfs;
use rayon::prelude::*;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

/// Qwen's splitting expression (`tokenization_qwen.py`, `PRETOKENIZE_REGEX` of transformers).
const QWEN_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// That of Qwen3.5 and later: marks belong to the letters they stand on.
const QWEN35_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
);

const MAX_FILE: u64 = 256 << 20;
const MAX_ID: u32 = 1 << 24;

/// A token that is found in the text before it is split.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// A control token, as opposed to one that is part of what is written (`<think>`).
    pub(super) special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

/// A checked byte-level BPE vocabulary. Token strings are in the byte-level alphabet (GPT-2's printable
/// stand-ins for bytes).
pub(super) struct Vocabulary {
    pub(super) ids: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) added: Vec<AddedToken>,
    /// The splitting expression.
    pub(super) split: &'static str,
    pub(super) around: Around,
    /// BLAKE3 of the file.
    pub(super) digest: blake3::Hash,
}

/// The added tokens that the tokenizer's post-processor puts around a text of its own; a conversation has none of
/// them but what its template writes (transformers' `add_special_tokens=False`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
}

/// The printable stand-in of each byte (GPT-2, `bytes_to_unicode`).
pub(super) fn byte_alphabet() -> [char; 256] {
    let mut alphabet = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255u8 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        alphabet[byte as usize] = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    alphabet
}

/// The vocabulary of a model folder; `tokenizer.json` wins over `qwen.tiktoken`. Also whether it was the latter.
pub(super) fn read(folder: &Path) -> Result<(Vocabulary, bool)> {
    let json = folder.join("tokenizer.json");
    let tiktoken = folder.join("qwen.tiktoken");
    let is_tiktoken = !files::exists(&json)? && files::exists(&tiktoken)?;
    let path = if is_tiktoken { tiktoken } else { json };
    if !files::exists(&path)? {
        return Err(Error::input(format!(
            "{} holds neither tokenizer.json nor qwen.tiktoken",
            folder.display()
        ))
        .hint("put the model's tokenizer file beside its weights, or give rows of input_ids"));
    }
    let wrong = |what: String| Error::input(format!("{}: {what}", path.display()));
    let bytes = files::read(&path, MAX_FILE)?;
    if lfs::is_pointer(&bytes) {
        return Err(lfs::pointer(&path));
    }
    let made = if is_tiktoken { from_tiktoken(&bytes) } else { from_json(&bytes) };
    let vocabulary = made.map_err(wrong)?;
    vocabulary.check().map_err(wrong)?;
    Ok((vocabulary, is_tiktoken))
}

type Made<T> = std::result::Result<T, String>;

impl Vocabulary {
    fn check(&self) -> Made<()> {
        let alphabet = byte_alphabet();
        if let Some(byte) = (0..256).find(|&b| !self.ids.contains_key(alphabet[b].to_string().as_str())) {
            return Err(format!("byte {byte:#04x} has no token, so text with it could not be written"));
        }
        // The alphabet ends at U+0143.
        let is_letter: Vec<bool> = ('\0'..'\u{200}').map(|c| alphabet.contains(&c)).collect();
        let written = |token: &str| token.chars().all(|c| is_letter.get(c as usize) == Some(&true));
        let mut seen: HashMap<u32, &str> = HashMap::with_capacity(self.ids.len());
        let mut tokens: Vec<(&str, u32)> = self.ids.iter().map(|(token, &id)| (token.as_str(), id)).collect();
        tokens.sort_unstable_by_key(|&(token, id)| (id, token));
        for (token, id) in tokens {
            if id >= MAX_ID {
                return Err(format!("token {token:?} has the id {id}"));
            }
            if token.is_empty() || !written(token) {
                return Err(format!("token {token:?} (id {id}) is not in the byte-level alphabet"));
            }
            if let Some(other) = seen.insert(id, token) {
                return Err(format!("the tokens {other:?} and {token:?} have the same id {id}"));
            }
        }
        self.check_merges()?;
        self.check_added(&seen)
    }

    fn check_merges(&self) -> Made<()> {
        for (index, (left, right)) in self.merges.iter().enumerate() {
            let joined = format!("{left}{right}");
            let missing = [left, right, &joined].into_iter().find(|token| !self.ids.contains_key(*token));
            if let Some(token) = missing {
                return Err(format!("merge {index} ({left:?} {right:?}) needs {token:?}, which is no token"));
            }
        }
        Ok(())
    }

    fn check_added(&self, seen: &HashMap<u32, &str>) -> Made<()> {
        let mut contents = HashSet::new();
        let mut ids = HashSet::new();
        for token in &self.added {
            let AddedToken { id, content, .. } = token;
            let free = seen.get(id).is_none_or(|other| other == content);
            if *id >= MAX_ID || content.is_empty() || !free || !contents.insert(content) || !ids.insert(id) {
                return Err(format!("added token {content:?} clashes with another token over the id {id}"));
            }
            if self.ids.get(content).is_some_and(|other| other != id) {
                return Err(format!("added token {content:?} is in the vocabulary under another id"));
            }
            if token.single_word || token.lstrip || token.rstrip || (token.normalized && !content.is_ascii())
            {
                return Err(format!("added token {content:?} uses stripping rules that Qwen does not have"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Value,
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Ids,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// A map from token to id without duplicate keys.
struct Ids(HashMap<String, u32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Ids;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tokens to ids")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Ids, A::Error> {
                let mut ids = HashMap::new();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if let Some(other) = ids.insert(token, id) {
                        return Err(A::Error::custom(format!("a token with the ids {other} and {id}")));
                    }
                }
                Ok(Ids(ids))
            }
        }
        from.deserialize_map(Read)
    }
}

fn from_json(bytes: &[u8]) -> Made<Vocabulary> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_string())?;
    let file: File = serde_json::from_str(text)
        .map_err(|fault| format!("it is not a tokenizer of the kind Qwen has: {fault}"))?;
    let split = check_pipeline(&file)?;
    let merge = |(index, merge): (usize, Merge)| match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Line(line) => match line.split_once(' ') {
            Some((left, right)) => Ok((left.to_string(), right.to_string())),
            None => Err(format!("merge {index} ({line:?}) is not a pair")),
        },
    };
    Ok(Vocabulary {
        ids: file.model.vocab.0,
        merges: file.model.merges.into_iter().enumerate().map(merge).collect::<Made<_>>()?,
        around: around(&file.post_processor, &file.added_tokens)?,
        added: file.added_tokens,
        split,
        digest: blake3::hash(bytes),
    })
}

/// Byte for byte what Qwen's own files say; what cannot change ids (decoder, offsets) is not looked at. Gives the splitting
/// expression.
fn check_pipeline(file: &File) -> Made<&'static str> {
    if file.normalizer != json!({"type": "NFC"}) {
        return Err(format!("the normaliser {} is not NFC", short(&file.normalizer)));
    }
    let steps = match file.pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) if file.pre_tokenizer["type"] == "Sequence" => steps.as_slice(),
        _ => &[],
    };
    let [split, bytes] = steps else {
        return Err(format!("the splitting {} is not Qwen's", short(&file.pre_tokenizer)));
    };
    let known = [QWEN_SPLIT, QWEN35_SPLIT];
    let expression = known.into_iter().find(|known| split["pattern"] == json!({ "Regex": known }));
    let isolated = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
    let Some(expression) = expression.filter(|_| isolated) else {
        return Err(format!("the splitting expression {} is not Qwen's", short(&split["pattern"])));
    };
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] != false || bytes["use_regex"] != false {
        return Err(format!("the splitting step {} is not Qwen's", short(bytes)));
    }
    let model = &file.model;
    let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    let plain = model.kind.as_deref().is_none_or(|kind| kind == "BPE")
        && model.dropout.is_none_or(|p| p == 0.0)
        && model.unk_token.is_none()
        && empty(&model.continuing_subword_prefix)
        && empty(&model.end_of_word_suffix)
        && !model.byte_fallback
        && !model.ignore_merges;
    if plain { Ok(expression) } else { Err("the model is not the plain byte-level BPE that Qwen has".into()) }
}

/// What a post-processor adds: `ByteLevel` nothing, `TemplateProcessing` (R1-Distill-Qwen) single tokens.
fn around(post_processor: &Value, added: &[AddedToken]) -> Made<Around> {
    let unknown =
        || format!("the post-processor {} adds tokens in a way that is not known", short(post_processor));
    let steps = match post_processor["type"].as_str() {
        None if post_processor.is_null() => return Ok(Around::default()),
        Some("Sequence") => post_processor["processors"].as_array().ok_or_else(unknown)?.as_slice(),
        _ => std::slice::from_ref(post_processor),
    };
    let mut around = Around::default();
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") if around == Around::default() => {
                around = single(step, added).ok_or_else(unknown)?;
            }
            _ => return Err(unknown()),
        }
    }
    Ok(around)
}

/// The tokens of `TemplateProcessing` before and after the one text; none where it says something else.
fn single(step: &Value, added: &[AddedToken]) -> Option<Around> {
    let (mut around, mut text_seen) = (Around::default(), false);
    for part in step["single"].as_array()? {
        if part["Sequence"]["id"] == "A" && !text_seen {
            text_seen = true;
            continue;
        }
        let name = part["SpecialToken"]["id"].as_str()?;
        for id in step["special_tokens"][name]["ids"].as_array()? {
            let token = added.iter().find(|token| Some(u64::from(token.id)) == id.as_u64())?;
            let side = if text_seen { &mut around.after } else { &mut around.before };
            side.push(token.content.clone());
        }
    }
    (text_seen && around.after.len() < 2).then_some(around)
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 {
        text
    } else {
        format!("{}…", text.chars().take(80).collect::<String>())
    }
}

/// `qwen.tiktoken`: a line for each token, its bytes in base64 and its rank, which is its id. The merge that
/// makes a token is the pair that merging its bytes by lower ranks ends with.
fn from_tiktoken(bytes: &[u8]) -> Made<Vocabulary> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_string())?;
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let read = || {
            let (token, rank) = line.split_once(' ')?;
            let in_order = rank.parse() == Ok(tokens.len());
            decode_base64(token).filter(|token| in_order && (1..=1024).contains(&token.len()))
        };
        tokens.push(read().ok_or_else(|| format!("line {} is not a token and the next rank", index + 1))?);
    }
    let ranks: HashMap<&[u8], u32> =
        tokens.iter().zip(0..).map(|(token, rank)| (token.as_slice(), rank)).collect();
    if ranks.len() != tokens.len() {
        return Err("a token has two ranks".into());
    }
    let alphabet = byte_alphabet();
    let written = |bytes: &[u8]| bytes.iter().map(|&b| alphabet[b as usize]).collect::<String>();
    let merges: Made<Vec<_>> = tokens
        .par_iter()
        .enumerate()
        .filter(|(_, token)| token.len() > 1)
        .map(|(rank, token)| match last_pair(token, rank as u32, &ranks) {
            Some(at) => Ok((written(&token[..at]), written(&token[at..]))),
            None => Err(format!("token {rank} cannot be made from two tokens of lower rank")),
        })
        .collect();
    let ids = tokens.iter().zip(0..).map(|(token, rank)| (written(token), rank)).collect();
    Ok(Vocabulary {
        ids,
        merges: merges?,
        added: v1_control_tokens(tokens.len() as u32),
        split: QWEN_SPLIT,
        around: Around::default(),
        digest: blake3::hash(bytes),
    })
}

/// The control tokens that `tokenization_qwen.py` puts after the ranks.
fn v1_control_tokens(first: u32) -> Vec<AddedToken> {
    let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_string);
    let extra = (0..205).map(|i| format!("<|extra_{i}|>"));
    let token = |(content, id)| AddedToken {
        id,
        content,
        special: true,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
    };
    named.into_iter().chain(extra).zip(first..).map(token).collect()
}

/// Where the last merge of `token` joins its two parts, merging only by ranks below its own.
fn last_pair(token: &[u8], rank: u32, ranks: &HashMap<&[u8], u32>) -> Option<usize> {
    let mut ends: Vec<usize> = (0..=token.len()).collect();
    while ends.len() > 3 {
        let pair = |i: &usize| ranks.get(&token[ends[*i]..ends[*i + 2]]).copied().filter(|&r| r < rank);
        let best = (0..ends.len() - 2).filter_map(|i| pair(&i).map(|r| (r, i))).min()?;
        ends.remove(best.1 + 1);
    }
    Some(ends[1])
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|c| {
        Some(u32::from(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    });
    let digits: Option<Vec<u32>> = digits.collect();
    let mut bytes = Vec::new();
    for group in digits?.chunks(4) {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        let count = match group.len() {
            1 => return None,
            n => n - 1,
        };
        bytes.extend(&bits.to_be_bytes()[1..=count]);
    }
    Some(bytes)
}
