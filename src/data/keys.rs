//! The keys of rows: which names stand for one thing, which of them say whether something is trained on, and which
//! mean something that cannot be honoured here. A key of the last kind is refused by name: left out silently, it
//! would change what is learned.

use super::json::{Fields, Json};

type Read<T> = std::result::Result<T, String>;

/// The question of a row of one question and one answer.
pub(super) const QUESTION: &[&str] = &["instruction", "prompt", "question", "query"];
/// Its answer.
pub(super) const ANSWER: &[&str] = &["output", "completion", "response", "answer"];
/// What follows the question on a line of its own.
pub(super) const INPUT: &str = "input";
/// The messages of a conversation.
pub(super) const MESSAGES: &[&str] = &["messages", "conversations", "conversation"];
/// The system message of a row.
pub(super) const SYSTEM: &[&str] = &["system", "system_prompt"];
/// Who speaks in a message, and what is said.
pub(super) const SPEAKER: &[&str] = &["role", "from"];
pub(super) const SAID: &[&str] = &["content", "value"];
/// Whether a message is trained on.
const TRAINED: &[&str] = &["weight", "loss", "train", "training", "loss_scale"];
/// Which tokens of a tokenised row are scored: 1 or 0 for each.
pub(super) const MASKS: &[&str] = &["completion_mask", "assistant_masks", "loss_mask"];

/// Keys that mean one thing that is not done here.
struct Refused {
    keys: &'static [&'static str],
    why: &'static str,
    /// Whether a row of prompts, which are only answered, is refused too.
    prompts: bool,
}

const REFUSED: &[Refused] = &[
    Refused {
        keys: &[
            "chosen",
            "rejected",
            "chosen_response",
            "rejected_response",
            "chosen_messages",
            "rejected_messages",
            "kto_tag",
            "margin",
            "completions",
        ],
        why: "belongs to preference training (DPO, KTO, reward models); rows here have one answer",
        prompts: false,
    },
    Refused {
        keys: &[
            "images",
            "image",
            "videos",
            "video",
            "audios",
            "audio",
            "objects",
            "pixel_values",
            "image_grid_thw",
            "video_grid_thw",
        ],
        why: "belongs to a model that sees or hears; this one reads text",
        prompts: true,
    },
    Refused {
        keys: &["reasoning", "thinking", "thought", "thoughts"],
        why: "would not be trained on: give an answer's thoughts as `reasoning_content` of its message",
        prompts: false,
    },
    Refused {
        keys: &[
            "weights",
            "sample_weight",
            "sample_weights",
            "loss_weight",
            "loss_weights",
            "train_detail",
            "mask",
            "masked",
        ],
        why: "weighs single rows, words or tokens; every scored token counts the same here",
        prompts: false,
    },
];

/// Keys beside a question that would be left out of it.
const BESIDE_A_QUESTION: &[&str] = &["context", "contexts", "passage"];

/// Absent, null, or an empty text, list or object.
pub(super) fn says_nothing(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.keys().next().is_none(),
        _ => false,
    }
}

/// The value of a key that says something.
pub(super) fn said<'a>(fields: &'a Fields, key: &str) -> Option<&'a Json> {
    fields.get(key).filter(|value| !says_nothing(value))
}

/// The one of `names` that the row uses: the one that says something, else the first that is there. `column` is its
/// name in `--columns`, for the message when two say different things.
pub(super) fn one_of(fields: &Fields, names: &[&'static str], column: &str) -> Read<Option<&'static str>> {
    let mut saying = names.iter().filter(|name| said(fields, name).is_some());
    let Some(first) = saying.next() else {
        return Ok(names.iter().find(|name| fields.contains_key(name)).copied());
    };
    match saying.find(|other| fields.get(other) != fields.get(first)) {
        None => Ok(Some(first)),
        Some(other) => Err(format!(
            "both `{first}` and `{other}` say something: name the one that counts, --columns {column}={first}"
        )),
    }
}

/// Refuses a row with a key that changes what is learned and cannot be honoured; `prompts`: its answer is not read.
pub(super) fn check_row(fields: &Fields, prompts: bool) -> Read<()> {
    refuse(fields, prompts)?;
    if prompts {
        return Ok(());
    }
    if !fields.contains_key("input_ids")
        && let Some(key) = MASKS.iter().find(|key| said(fields, key).is_some())
    {
        return Err(format!("`{key}` counts tokens: it belongs beside `input_ids`"));
    }
    // In a conversation thoughts have their place in a message.
    if said(fields, "reasoning_content").is_some() {
        return Err("`reasoning_content` belongs in a message: write the row as `messages`".into());
    }
    match fields.get("label") {
        Some(Json::Bool(_) | Json::Integer(0 | 1)) => Err(refusal("label", REFUSED[0].why)),
        Some(Json::String(text)) if ["true", "false"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {
            Err(refusal("label", REFUSED[0].why))
        }
        _ => match trained(fields) {
            Ok(Some(false)) => Err("the row says that it is not to be trained on: leave it out".into()),
            Ok(_) => Ok(()),
            Err(fault) => Err(fault),
        },
    }
}

/// The same for a message.
pub(super) fn check_message(fields: &Fields) -> Read<()> {
    refuse(fields, false)?;
    if said(fields, "refusal").is_some() {
        return Err("`refusal` is not read: write it as `content` if it is to be learned".into());
    }
    for key in ["prefix", "partial"] {
        if !matches!(fields.get(key), None | Some(Json::Null | Json::Bool(false))) {
            return Err(format!("`{key}` marks an answer to be continued; answers here are whole"));
        }
    }
    Ok(())
}

/// Refuses what stands beside a question and would not be read.
pub(super) fn check_question(fields: &Fields) -> Read<()> {
    match BESIDE_A_QUESTION.iter().find(|key| said(fields, key).is_some()) {
        None => Ok(()),
        Some(key) => {
            Err(format!("`{key}` beside a question is not read: --columns query={key} puts it behind it"))
        }
    }
}

fn refuse(fields: &Fields, prompts: bool) -> Read<()> {
    for refused in REFUSED.iter().filter(|refused| refused.prompts || !prompts) {
        if let Some(key) = refused.keys.iter().find(|key| said(fields, key).is_some()) {
            return Err(refusal(key, refused.why));
        }
    }
    Ok(())
}

fn refusal(key: &str, why: &str) -> String {
    format!("`{key}` {why}")
}

/// What the keys of a row or a message say about training on it; `None`: nothing.
pub(super) fn trained(fields: &Fields) -> Read<Option<bool>> {
    let mut found: Option<(&str, bool)> = None;
    for &key in TRAINED {
        let yes = match fields.get(key) {
            None | Some(Json::Null) => continue,
            Some(Json::Bool(yes)) => *yes,
            Some(Json::Integer(number @ (0 | 1))) => *number == 1,
            Some(Json::Float(number)) if *number == 0.0 || *number == 1.0 => *number == 1.0,
            Some(_) => {
                return Err(format!(
                    "`{key}` must be true, false, 1 or 0: every scored token counts the same"
                ));
            }
        };
        match found {
            Some((other, before)) if before != yes => {
                return Err(format!("`{other}` and `{key}` contradict each other"));
            }
            _ => found = Some((key, yes)),
        }
    }
    Ok(found.map(|(_, yes)| yes))
}
