//! What of a row a chat template leaves out: told for the thoughts of earlier answers, which many templates drop on
//! purpose, and refused for everything else.

use super::marks::Field;
use super::rendering::Rendering;
use crate::data::rows::{Message, Role, Said};

type Made<T> = std::result::Result<T, String>;

/// The characters of one text of a message: all, and those that are rendered.
#[derive(Clone, Copy, Default)]
struct Share {
    all: usize,
    rendered: usize,
    /// One past the last that is missing, counted among all characters of the text.
    missing_until: usize,
    seen: usize,
}

/// Checks that a rendering holds what the messages say; gives the number of messages whose thoughts are left out.
///
/// `answered`: the last answer is one to learn, so that it must be whole. `drops_thoughts`: the template is there to
/// leave thoughts out.
pub(super) fn check(
    rendering: &Rendering,
    messages: &[Message],
    source: &str,
    answered: bool,
    drops_thoughts: bool,
) -> Made<usize> {
    let shares = shares(rendering, messages.len());
    let last = messages.iter().rposition(|message| message.role == Role::Assistant).filter(|_| answered);
    let mut left_out = 0;
    for (index, message) in messages.iter().enumerate() {
        let named = |fault: &str| Err(format!("message {}: {fault}", index + 1));
        let [content, reasoning, calls] = shares[index];
        if calls.rendered < calls.all {
            return named("the chat template has no place for `tool_calls`, or not for all of them");
        }
        if message.role != Role::Assistant {
            match content.rendered {
                rendered if rendered == content.all => continue,
                0 => return named("the chat template writes nothing of it"),
                _ => return named("the chat template writes only a part of it"),
            }
        }
        if reasoning.rendered < reasoning.all && !drops_thoughts {
            if !source.contains("reasoning_content") {
                return named("the chat template has no place for `reasoning_content`");
            }
            if Some(index) == last {
                return named(LOST);
            }
        }
        if content.rendered < content.all {
            let thoughts = content.missing_until <= thoughts_end(message);
            if Some(index) == last || !thoughts {
                return named(if thoughts { LOST } else { "the chat template writes only a part of it" });
            }
        }
        left_out += usize::from(reasoning.rendered < reasoning.all || content.rendered < content.all);
    }
    Ok(left_out)
}

const LOST: &str = "the chat template leaves out thoughts of the last answer: give one that keeps them with --chat-template FILE";

fn shares(rendering: &Rendering, messages: usize) -> Vec<[Share; 3]> {
    let mut rendered = vec![false; rendering.row().len()];
    rendering.numbers.iter().flatten().for_each(|number| rendered[*number as usize] = true);
    let mut shares = vec![[Share::default(); 3]; messages];
    for (origin, rendered) in rendering.row().iter().zip(rendered) {
        let share = &mut shares[origin.message][match origin.field {
            Field::Content => 0,
            Field::Reasoning => 1,
            Field::Calls => 2,
        }];
        share.seen += 1;
        if origin.counts() {
            share.all += 1;
            share.rendered += usize::from(rendered);
            if !rendered {
                share.missing_until = share.seen;
            }
        }
    }
    shares
}

/// Where the thoughts written into a content end, in characters; 0: there are none.
fn thoughts_end(message: &Message) -> usize {
    let Said::Text(text) = &message.content else { return 0 };
    text.rfind("</think>").map_or(0, |at| text[..at].chars().count() + "</think>".len())
}
