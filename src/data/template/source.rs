//! Where a chat template comes from, and what a model folder says about its tokens.

use super::jinja::MAX_SOURCE;
use crate::config::settings::Template as Name;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::files;
use crate::formats::json;
use serde_json::Value;
use std::path::Path;

/// Longest `tokenizer_config.json`, `config.json` or `generation_config.json`.
const MAX_CONFIG: u64 = 16 << 20;

/// The text of a chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Name and text; `default`, and `tool_use` where rows with tools have a template of their own.
    pub(super) templates: Vec<(String, String)>,
    /// `own`, `file`, or its name among the built-in ones.
    pub(super) name: &'static str,
    /// Where it was found, for people.
    pub(super) place: String,
    /// It leaves thoughts out, and is chosen for that.
    pub(super) drops_thoughts: bool,
}

impl Source {
    fn one(name: &'static str, text: String, place: String) -> Self {
        Source { templates: vec![("default".to_owned(), text)], name, place, drops_thoughts: false }
    }

    /// A built-in template.
    pub(super) fn named(name: Name) -> Option<Self> {
        let (label, text) = match name {
            Name::Qwen15 => ("qwen1.5", include_str!("named/qwen1.5.jinja")),
            Name::Qwen25 => ("qwen2.5", include_str!("named/qwen2.5.jinja")),
            Name::Qwen3 => ("qwen3", include_str!("named/qwen3.jinja")),
            Name::Qwen3NoThink => ("qwen3-nothink", include_str!("named/qwen3-nothink.jinja")),
            Name::Auto | Name::Qwen | Name::Deepke | Name::None => return None,
        };
        let source = Source::one(label, text.to_owned(), format!("built in: {label}"));
        Some(Source { drops_thoughts: name == Name::Qwen3NoThink, ..source })
    }

    /// The file that `--chat-template` names.
    pub(super) fn file(path: &Path) -> Result<Self> {
        let text =
            read(path)?.ok_or_else(|| Error::input(format!("{}: there is no such file", path.display())))?;
        Ok(Source::one("file", text, path.display().to_string()))
    }

    /// The model folder's own: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`.
    pub(super) fn own(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join("chat_template.jinja");
        let more = folder.join("additional_chat_templates/tool_use.jinja");
        let mut found = read(&file)?.map(|text| Source::one("own", text, file.display().to_string()));
        if found.is_none() {
            let path = folder.join("tokenizer_config.json");
            let config = config(&path)?;
            let templates: Vec<(String, String)> = match &config["chat_template"] {
                Value::String(text) => vec![("default".to_owned(), text.clone())],
                Value::Array(list) => list.iter().filter_map(entry).collect(),
                _ => Vec::new(),
            };
            if templates.iter().any(|(name, _)| name == "default") {
                let place = format!("{} (chat_template)", path.display());
                found = Some(Source { templates, name: "own", place, drops_thoughts: false });
            }
        }
        if let (Some(source), Some(text)) = (&mut found, read(&more)?) {
            source.templates.retain(|(name, _)| name != "tool_use");
            source.templates.push(("tool_use".to_owned(), text));
        }
        Ok(found)
    }

    /// The template for a row.
    pub(super) fn choice(&self, has_tools: bool) -> &'static str {
        let own = has_tools && self.templates.iter().any(|(name, _)| name == "tool_use");
        if own { "tool_use" } else { "default" }
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.templates.iter().find(|(other, _)| other == name).map_or("", |(_, text)| text)
    }

    /// BLAKE3 of all texts.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in self.templates.iter().flat_map(|(name, text)| [name, text]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// A template of a list, by its name; only two names have a meaning.
fn entry(entry: &Value) -> Option<(String, String)> {
    let (name, text) = (entry["name"].as_str()?, entry["template"].as_str()?);
    ["default", "tool_use"].contains(&name).then(|| (name.to_owned(), text.to_owned()))
}

fn read(path: &Path) -> Result<Option<String>> {
    if files::exists(path)? { files::read_text(path, MAX_SOURCE as u64).map(Some) } else { Ok(None) }
}

/// A configuration file as JSON; an empty object where there is none.
fn config(path: &Path) -> Result<Value> {
    if !files::exists(path)? {
        return Ok(Value::Object(json::Object::new()));
    }
    json::read_object(path, MAX_CONFIG).map(Value::Object)
}

/// What a model folder says about its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// Tokens by their names in `tokenizer_config.json` (`eos_token`), as templates know them.
    pub(super) special: Vec<(String, String)>,
    /// Tokens that end an answer.
    pub(super) ends: Vec<String>,
}

impl Tokens {
    /// From `tokenizer_config.json`, `generation_config.json` and `config.json`. The end tokens are `eos_token`, the
    /// `eos_token_id` of both others, and `<|im_end|>`, as far as the tokenizer has them.
    pub(super) fn read(folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let tokens = config(&folder.join("tokenizer_config.json"))?;
        let mut special = Vec::new();
        for (name, value) in
            tokens.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"))
        {
            let text = value.as_str().or_else(|| value["content"].as_str());
            special.extend(text.map(|text| (name.clone(), text.to_owned())));
        }
        let mut ends: Vec<String> =
            special.iter().filter(|(name, _)| name == "eos_token").map(|(_, token)| token.clone()).collect();
        for name in ["generation_config.json", "config.json"] {
            let ids = &config(&folder.join(name))?["eos_token_id"];
            let list = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
            let token = |id: &Value| {
                let id = u32::try_from(id.as_u64()?).ok()?;
                String::from_utf8(tokenizer.token_bytes(id).to_vec()).ok()
            };
            ends.extend(list.iter().filter_map(token));
        }
        ends.push("<|im_end|>".to_owned());
        ends.retain(|token| tokenizer.added(token).is_some());
        ends.sort();
        ends.dedup();
        Ok(Tokens { special, ends })
    }
}
