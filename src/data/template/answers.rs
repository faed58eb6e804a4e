//! Where the model's answers stand in a rendered conversation: from where its prompt ends to the token that ends it.
//!
//! Nothing is assumed of the template. The prompt of an answer is what the template writes of the messages before
//! it with `add_generation_prompt`; what cannot be told is refused, with the reason.

use super::rendering::Rendering;
use crate::data::rows::{Message, Role};
use std::ops::Range;

type Made<T> = std::result::Result<T, String>;

/// How the beginning of an answer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The rendering begins with the prompt.
    Prompt,
    /// The prompt's own end stands before the answer, once: the history is written in another way.
    PromptEnd,
    /// As before, without the `<think>` that prompts end in and histories leave out.
    Header,
    /// The template's own markers.
    Markers,
}

/// An answer; places are characters of the rendering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) message: usize,
    pub(super) start: usize,
    /// The token that ends it; scored with it.
    pub(super) end: Range<usize>,
    pub(super) found: Found,
}

/// What a template writes of a beginning of the conversation, or of a bare question; none when it fails.
pub(super) trait Prompts {
    /// The messages before `message`, thinking set so, with or without the beginning of an answer.
    fn before(&self, message: usize, thinking: Option<bool>, prompt: bool) -> Option<Vec<char>>;
    /// A question alone.
    fn question(&self, thinking: Option<bool>, prompt: bool) -> Option<Vec<char>>;
    /// The settings of thinking that the template tells apart; the run's own first.
    fn modes(&self) -> Vec<Option<bool>>;
    /// Tokens that end an answer.
    fn ends(&self) -> &[String];
    /// Whether the text begins with a control token, and which.
    fn control(&self, text: &[char]) -> Option<String>;
}

/// The answers of a conversation, in order.
pub(super) fn find(rendering: &Rendering, messages: &[Message], prompts: &dyn Prompts) -> Made<Vec<Answer>> {
    let finder = Finder::new(rendering, messages, prompts);
    let mut answers: Vec<Answer> = Vec::new();
    for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
        let named = |fault: String| format!("message {}: {fault}", index + 1);
        let place = finder.place(index).map_err(named)?;
        let found = finder.answer(index, message, place.clone());
        let answer = match found {
            Ok(answer) => answer,
            Err(fault) => finder.marked(index, place).ok_or_else(|| named(fault))?,
        };
        if answers.last().is_some_and(|before| before.end.end > answer.start) {
            return Err(named("the chat template does not write it apart from the answer before".into()));
        }
        answers.push(answer);
    }
    agree(rendering, &answers)?;
    Ok(answers)
}

/// The template's own markers check what was found: each answer has exactly one marked stretch.
fn agree(rendering: &Rendering, answers: &[Answer]) -> Made<()> {
    let marked: Vec<&Range<usize>> = rendering.stretches.iter().filter(|s| !s.is_empty()).collect();
    if marked.is_empty() {
        return Ok(());
    }
    let meet = |answer: &Answer, stretch: &Range<usize>| {
        stretch.start < answer.end.end && answer.start < stretch.end
    };
    let lone = answers.iter().find(|answer| marked.iter().filter(|s| meet(answer, s)).count() != 1);
    let stray =
        marked.iter().any(|stretch| answers.iter().filter(|answer| meet(answer, stretch)).count() != 1);
    let hint = "follow the markers with --train-on template";
    match lone {
        Some(answer) => Err(format!(
            "message {}: what the chat template marks with {{% generation %}} is not the answer; {hint}",
            answer.message + 1
        )),
        None if stray => {
            Err(format!("the chat template marks with {{% generation %}} what is no answer; {hint}"))
        }
        None => Ok(()),
    }
}

struct Finder<'a> {
    rendering: &'a Rendering,
    messages: &'a [Message],
    prompts: &'a dyn Prompts,
    /// The control token that a prompt begins with.
    openers: Vec<String>,
}

impl<'a> Finder<'a> {
    fn new(rendering: &'a Rendering, messages: &'a [Message], prompts: &'a dyn Prompts) -> Self {
        let mut openers = vec!["<|im_start|>".to_owned()];
        let finder = Finder { rendering, messages, prompts, openers: Vec::new() };
        let modes = prompts.modes();
        openers.extend(modes.iter().filter_map(|mode| prompts.control(&finder.bare(*mode)?)));
        Finder { openers, ..finder }
    }

    /// The first and one past the last character of a message.
    fn place(&self, index: usize) -> Made<Range<usize>> {
        let (mut first, mut last, mut seen) = (None, 0, Vec::new());
        for place in 0..self.rendering.text.len() {
            if self.rendering.origin(place).is_some_and(|origin| origin.message == index) {
                first = first.or(Some(place));
                last = place;
                seen.extend(self.rendering.numbers[place]);
            }
        }
        let Some(first) = first else { return Err("the chat template writes nothing of it".into()) };
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() < count {
            return Err("the chat template writes it twice".into());
        }
        Ok(first..last + 1)
    }

    fn answer(&self, index: usize, message: &Message, place: Range<usize>) -> Made<Answer> {
        self.alone(index, &place)?;
        let before = (0..place.start).rev().find(|p| self.rendering.numbers[*p].is_some());
        let free = before.map_or(0, |last| last + 1);
        let (start, found, header) = self.start(index, free, &place)?;
        let start = self.behind_empty_thoughts(start);
        self.check_lead(start..place.start.max(start), header, message)?;
        let end = self.end(place.end)?;
        Ok(Answer { message: index, start, end, found })
    }

    /// Nothing of another message, and no end or beginning of a turn, within it; nothing later before it.
    fn alone(&self, index: usize, place: &Range<usize>) -> Made<()> {
        let others = |within: Range<usize>, other: &dyn Fn(usize) -> bool| {
            within.filter_map(|p| self.rendering.origin(p)).any(|origin| other(origin.message))
        };
        if others(place.clone(), &|message| message != index) {
            return Err("the chat template mixes it with another message".into());
        }
        let hoisted = |message: usize| matches!(self.messages[message].role, Role::System | Role::Developer);
        let behind = place.end..self.rendering.text.len();
        if others(0..place.start, &|message| message > index && !hoisted(message))
            || others(behind, &|message| message < index)
        {
            return Err("the chat template changes the order of the messages".into());
        }
        let within = self.rendering.controls_in(place.clone()).find(|c| self.ends_or_opens(&c.token));
        within.map_or(Ok(()), |c| {
            Err(format!("the chat template writes {} within it: more than one turn", c.token))
        })
    }

    fn ends_or_opens(&self, token: &String) -> bool {
        self.openers.contains(token) || self.prompts.ends().contains(token)
    }

    /// Where it begins, how that was found, and whether prompts have text of their own there. `free` is where the
    /// row's text before ends.
    fn start(&self, index: usize, free: usize, place: &Range<usize>) -> Made<(usize, Found, bool)> {
        let text = &self.rendering.text;
        let modes = self.prompts.modes();
        let prompt =
            |mode: Option<bool>| if index > 0 { self.prompts.before(index, mode, true) } else { None };
        let whole: Vec<Option<Vec<char>>> = modes.iter().map(|mode| prompt(*mode)).collect();
        let begins = |whole: &Vec<char>| (free..place.end).contains(&whole.len()) && text.starts_with(whole);
        let first =
            modes.iter().zip(&whole).filter_map(|(mode, p)| Some((mode, p.as_ref().filter(|p| begins(p))?)));
        if let Some((mode, longest)) = first.max_by_key(|(_, p)| p.len()) {
            let header = self.own_end(index, *mode, Some(longest)).is_some_and(|own| !own.is_empty());
            return Ok((longest.len(), Found::Prompt, header));
        }
        let ends: Vec<Vec<char>> =
            modes.iter().zip(&whole).filter_map(|(mode, p)| self.own_end(index, *mode, p.as_ref())).collect();
        let opens = |end: &&Vec<char>| self.prompts.control(end).is_some();
        // It may reach into what the message says (`<think>`): the model is given it, whoever wrote it.
        let once = |wanted: &[char]| once(text, free..place.start, place.end, wanted);
        if let Some(start) = ends.iter().filter(opens).filter_map(|end| once(end)).max() {
            return Ok((start, Found::PromptEnd, true));
        }
        let think: Vec<char> = "<think>".chars().collect();
        let header = |end: &Vec<char>| {
            let at = end.windows(think.len()).position(|window| window == think)?;
            once(&end[..at])
        };
        match ends.iter().filter(opens).filter_map(header).max() {
            Some(start) => Ok((start, Found::Header, true)),
            None => Err("where the answer begins cannot be told from what the chat template writes".into()),
        }
    }

    /// What a prompt adds to the messages before it; for the first message, or where that is no addition, what it
    /// adds to a bare question.
    fn own_end(&self, index: usize, mode: Option<bool>, whole: Option<&Vec<char>>) -> Option<Vec<char>> {
        let own = whole.and_then(|whole| {
            let history = self.prompts.before(index, mode, false)?;
            whole.strip_prefix(history.as_slice()).map(<[char]>::to_vec)
        });
        own.or_else(|| self.bare(mode))
    }

    fn bare(&self, mode: Option<bool>) -> Option<Vec<char>> {
        let (whole, history) = (self.prompts.question(mode, true)?, self.prompts.question(mode, false)?);
        whole.strip_prefix(history.as_slice()).map(<[char]>::to_vec)
    }

    /// Thoughts that are none are not learnt: `<think>\n\n</think>\n\n`, or what of it is not in the prompt.
    fn behind_empty_thoughts(&self, start: usize) -> usize {
        let own: String = (start..self.rendering.text.len())
            .take_while(|p| self.rendering.numbers[*p].is_none())
            .map(|p| self.rendering.text[p])
            .collect();
        let opened = own.strip_prefix("<think>").unwrap_or(&own).trim_start_matches('\n');
        let Some(after) = opened.strip_prefix("</think>") else { return start };
        let rest = after.trim_start_matches('\n');
        if rest.len() == after.len() { start } else { start + own.chars().count() - rest.chars().count() }
    }

    /// What the template writes between the beginning of the answer and its first character.
    fn check_lead(&self, lead: Range<usize>, header: bool, message: &Message) -> Made<()> {
        if let Some(control) = self.rendering.controls_in(lead.clone()).find(|c| self.ends_or_opens(&c.token))
        {
            return Err(format!("the chat template writes {} where its answer would begin", control.token));
        }
        let text = self.rendering.slice(lead);
        let mut rest = text.as_str();
        for tag in super::chars::tags(&text).into_iter().rev() {
            rest = if rest[tag.end..].trim().is_empty() { &rest[..tag.start] } else { rest };
        }
        if !header && !rest.trim().is_empty() && message.tool_calls.is_empty() {
            return Err(format!(
                "the chat template begins no answer; before this one it writes {:?}",
                rest.trim()
            ));
        }
        Ok(())
    }

    /// The first end token behind the answer's last character.
    fn end(&self, after: usize) -> Made<Range<usize>> {
        let numbers = &self.rendering.numbers;
        let until = (after..numbers.len()).find(|p| numbers[*p].is_some()).unwrap_or(numbers.len());
        match self.rendering.controls_in(after..until).find(|c| self.ends_or_opens(&c.token)) {
            Some(control) if self.prompts.ends().contains(&control.token) => Ok(control.place.clone()),
            _ => Err(format!(
                "the chat template writes no token behind it that ends an answer ({})",
                self.prompts.ends().join(", ")
            )),
        }
    }

    /// The marked stretch that holds the message and nothing of another.
    fn marked(&self, index: usize, place: Range<usize>) -> Option<Answer> {
        let holds = |s: &&Range<usize>| s.start <= place.start && place.end <= s.end;
        let stretch = self.rendering.stretches.iter().find(holds)?;
        let alone = stretch.clone().filter_map(|p| self.rendering.origin(p)).all(|o| o.message == index);
        let ends = self.rendering.controls_in(place.end..stretch.end);
        let end = ends.filter(|c| self.prompts.ends().contains(&c.token)).last()?;
        alone.then(|| Answer {
            message: index,
            start: stretch.start,
            end: end.place.clone(),
            found: Found::Markers,
        })
    }
}

/// The end of `wanted`, when exactly one begins within a part of the text and ends before `last`.
fn once(text: &[char], within: Range<usize>, last: usize, wanted: &[char]) -> Option<usize> {
    if wanted.is_empty() {
        return None;
    }
    let mut places = within.filter(|at| text[*at..last].starts_with(wanted));
    let at = places.next()?;
    places.next().is_none().then_some(at + wanted.len())
}
