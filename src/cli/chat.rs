//! `chat`: a conversation on the terminal, or through pipes a question a line.

use super::generate::{self, Answerer};
use crate::data::prompts::Dialogue;
use crate::error::{Error, Result};
use crate::formats::publish::MadeFrom;
use crate::generate::{Generator, text};
use crate::report::console::{complain, type_out};
use clap::ArgMatches;
use std::io::{BufRead, IsTerminal};
use std::path::Path;

/// Tokens that memory is made for at least; it is made anew, twice as large, when a conversation outgrows it.
const ROOM: usize = 1024;

const COMMANDS: &str = "/reset begins a new conversation, /quit or the end of input ends this one";

/// `qwentune chat`.
pub fn chat(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    let (settings, mut options) = generate::asked(matches, warnings)?;
    options.batch = 1;
    let answerer = generate::open(matches, &settings, options)?;
    let terminal = std::io::stdin().is_terminal();
    if !settings.quiet && terminal {
        complain(COMMANDS);
    }
    let mut chat = Chat { answerer, generator: None, room: 0, dialogue: Dialogue::default(), turns: 0 };
    while let Some(line) = next_line(terminal)? {
        match line.trim() {
            "" => {}
            "/quit" => break,
            "/reset" => {
                chat.dialogue = Dialogue::default();
                if !settings.quiet {
                    complain("a new conversation");
                }
            }
            word if is_command(word) => complain(&format!("{word} is no command here: {COMMANDS}")),
            _ => {
                if !chat.turn(&line)? {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Whether it looks like one: one word that begins with its only slash.
fn is_command(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|word| !word.contains(|c: char| c == '/' || c.is_whitespace()))
}

/// The next line without its end; `None` at the end of input.
fn next_line(terminal: bool) -> Result<Option<String>> {
    if terminal {
        type_out("> ");
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    let read = read.map_err(|e| Error::io("reading", Path::new("standard input"), e))?;
    if read == 0 && terminal {
        type_out("\n");
    }
    Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
}

/// A conversation under way.
struct Chat {
    answerer: Answerer,
    /// The model in its place, with memory for prompts of `room` tokens.
    generator: Option<Generator>,
    room: usize,
    dialogue: Dialogue,
    turns: usize,
}

impl Chat {
    /// Answers one question behind all that was said before. False when nobody reads the answers any more.
    fn turn(&mut self, question: &str) -> Result<bool> {
        let Answerer { model, prompter, options } = &self.answerer;
        self.dialogue.ask(question);
        let prompt = prompter.dialogue(&self.dialogue)?;
        let most = model.spec.longest_text();
        if prompt.len() >= most {
            let tokens = prompt.len();
            complain(&format!(
                "the conversation would have {tokens} tokens; the model reads {most}, answer included: /reset begins a new one"
            ));
            self.dialogue.take_back();
            return Ok(true);
        }
        if self.generator.is_none() || prompt.len() > self.room {
            // The old memory is given back before the new one is asked for.
            self.generator = None;
            self.room = prompt.len().next_power_of_two().max(ROOM).min(most - 1);
            self.generator = Some(Generator::new(model, options.clone(), self.room, 1)?);
        }
        let Some(generator) = &mut self.generator else { return Ok(true) };
        let said = generate::speak(generator, prompter.tokenizer(), &prompt, self.turns, &|| false)?;
        model.check_unchanged()?;
        self.turns += 1;
        self.dialogue.answer(&text::decode(prompter.tokenizer(), &said.ids));
        if !said.ended && !said.unheard {
            complain(&format!("(cut at {} tokens: --max-new-tokens)", said.ids.len()));
        }
        Ok(!said.unheard)
    }
}
