//! `generate`: an answer to one prompt, or to every row of a file.

use super::tokenize::standard_input;
use super::{commands, option, show, signals};
use crate::config::{self, Settings};
use crate::config::{Layer, model_folder};
use crate::data::prompts::Prompter;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Kind, Result, printable};
use crate::formats::publish::MadeFrom;
use crate::generate::{Event, Generator, Model, Options, Sampling, job, text};
use crate::report::console::{Console, complain, duration, say, type_out};
use crate::train::{Control, Devices};
use clap::ArgMatches;
use std::cell::Cell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is to be answered.
enum Task {
    Prompt(String),
    File { input: PathBuf, output: PathBuf },
}

/// `qwentune generate`.
pub fn generate(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    for (name, why) in [("cutoff_len", "prompts are not cut"), ("output_dir", "answers go to --output-file")]
    {
        if option(matches, name).is_some() {
            warnings.push(format!("--{} has no effect: {why}", name.replace('_', "-")));
        }
    }
    let (settings, options) = asked(matches, warnings)?;
    let task = task(matches)?;
    let Answerer { model, prompter, options } = open(matches, &settings, options)?;
    let control = Control::default();
    control.begin(); // what was answered is kept from the first row on
    signals::watch(&control, &Layer::default())?;
    match task {
        Task::Prompt(prompt) => answer(&model, &prompter, options, &prompt, &settings, &control),
        Task::File { input, output } => {
            let mut console = Console::new(settings.quiet);
            let start = Instant::now();
            let stop = || control.stop_requested();
            let done = job::run(&model, &prompter, &options, &input, &output, &mut console, &stop)?;
            drop(console);
            if !settings.quiet {
                say(&ending(&done, &output, start.elapsed().as_secs_f64(), options.max_new_tokens));
            }
            Ok(())
        }
    }
}

/// What the command line says, checked before anything is read or waited for.
pub(super) fn asked(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<(Settings, Options)> {
    let mut settings = config::resolve(&commands::given(matches, warnings)?)?;
    show(warnings);
    let options = options(matches, &settings)?;
    Devices::default().check(&settings)?;
    settings.model = model_folder::find(&settings.model)?;
    Ok((settings, options))
}

/// What answers.
pub(super) struct Answerer {
    pub model: Model,
    pub prompter: Prompter,
    pub options: Options,
}

/// Opens model, adapter, tokenizer and template, and completes the options by what they say.
pub(super) fn open(matches: &ArgMatches, settings: &Settings, mut options: Options) -> Result<Answerer> {
    let model = Model::open(&settings.model, option(matches, "adapter").map(Path::new))?;
    let prompter = Prompter::open(settings, model.spec.vocab)?;
    show(&model.defaults.notes);
    if option(matches, "repetition_penalty").is_none() {
        options.sampling.repetition_penalty = model.defaults.repetition_penalty;
    }
    options.ends.extend(&model.ends);
    options.ends.extend(prompter.ends());
    options.ends.sort_unstable();
    options.ends.dedup();
    Ok(Answerer { model, prompter, options })
}

fn options(matches: &ArgMatches, settings: &Settings) -> Result<Options> {
    let count = |name: &str, least: usize| match option(matches, name).map(str::parse::<usize>) {
        None => Ok(None),
        Some(Ok(n)) if (least..=1 << 24).contains(&n) => Ok(Some(n)),
        Some(_) => Err(wrong(matches, name, &format!("a whole number from {least} to {}", 1 << 24))),
    };
    let number = |name: &str, fits: fn(f64) -> bool, what: &str| match option(matches, name) {
        None => Ok(None),
        Some(text) => match text.parse::<f64>() {
            Ok(x) if fits(x) => Ok(Some(x)),
            _ => Err(wrong(matches, name, what)),
        },
    };
    let top_k = count("top_k", 0)?.filter(|k| *k > 0);
    let top_p = number("top_p", |p| p > 0.0 && p <= 1.0, "a number above 0 up to 1")?;
    let narrowed = top_k.is_some() || top_p.is_some();
    let temperature = number("temperature", |t| (0.0..=1000.0).contains(&t), "a number from 0 to 1000")?;
    if narrowed && temperature == Some(0.0) {
        return Err(Error::usage(
            "--temperature 0 takes the likeliest token: --top-k and --top-p mean nothing",
        ));
    }
    let penalty = number("repetition_penalty", |p| (1e-3..=1e3).contains(&p), "a number above 0")?;
    let sampling = Sampling {
        repetition_penalty: penalty.map_or(1.0, |penalty| penalty as f32),
        temperature: temperature.unwrap_or(if narrowed { 1.0 } else { 0.0 }),
        top_k,
        top_p: top_p.unwrap_or(1.0),
    };
    Ok(Options {
        max_new_tokens: count("max_new_tokens", 1)?.unwrap_or(512),
        sampling,
        seed: settings.seed,
        batch: settings.per_device_eval_batch_size,
        ends: Vec::new(),
        threads: settings.threads,
        device: settings.device,
        dtype: settings.dtype,
        cpu_isa: settings.cpu_isa,
        devices: Devices::default(),
    })
}

fn wrong(matches: &ArgMatches, name: &str, what: &str) -> Error {
    let (flag, text) = (name.replace('_', "-"), option(matches, name).unwrap_or_default());
    Error::usage(format!("--{flag}: '{text}' is not {what}"))
}

fn task(matches: &ArgMatches) -> Result<Task> {
    let words =
        matches.get_many::<String>("prompt").map(|words| words.map(String::as_str).collect::<Vec<_>>());
    match (option(matches, "input_file"), option(matches, "output_file"), words) {
        (Some(_), _, Some(_)) => Err(Error::usage("give a prompt or --input-file, not both")),
        (Some(input), Some(output), None) => Ok(Task::File { input: input.into(), output: output.into() }),
        (Some(_), None, None) => Err(Error::usage("--output-file is missing: where the answers go")),
        (None, Some(_), _) => Err(Error::usage("--output-file needs --input-file FILE")),
        (None, None, Some(words)) => Ok(Task::Prompt(words.join(" "))),
        (None, None, None) => {
            let text = standard_input()?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            Ok(Task::Prompt(text.strip_suffix('\r').unwrap_or(text).to_owned()))
        }
    }
}

/// Answers one prompt; the text is written as it comes.
fn answer(
    model: &Model,
    prompter: &Prompter,
    options: Options,
    prompt: &str,
    settings: &Settings,
    control: &Control,
) -> Result<()> {
    let ids = prompter.question(prompt)?;
    let mut generator = Generator::new(model, options, ids.len(), 1)?;
    let start = Instant::now();
    let said = speak(&mut generator, prompter.tokenizer(), &ids, 0, &|| control.stop_requested())?;
    model.check_unchanged()?;
    if said.cancelled && !said.unheard {
        return Err(Error::new(Kind::Stopped, "stopped"));
    }
    if !settings.quiet && std::io::stderr().is_terminal() {
        let (tokens, seconds) = (said.ids.len(), start.elapsed().as_secs_f64());
        complain(&format!("{tokens} tokens, {:.1} tokens/s", tokens as f64 / seconds));
    }
    Ok(())
}

/// An answer that was written to standard output.
pub(super) struct Said {
    pub ids: Vec<u32>,
    /// It ended by itself, not by its length.
    pub ended: bool,
    pub cancelled: bool,
    /// Whoever read standard output is gone.
    pub unheard: bool,
}

/// Writes the answer to `prompt`, which is row `row` for what is drawn, as it comes, and a line end behind it. A terminal
/// obeys nothing that the model says.
pub(super) fn speak(
    generator: &mut Generator,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    row: usize,
    cancelled: &dyn Fn() -> bool,
) -> Result<Said> {
    let terminal = std::io::stdout().is_terminal();
    let unheard = Cell::new(false);
    let write = |text: &str| {
        let written = if terminal { type_out(&printable(text)) } else { type_out(text) };
        unheard.set(unheard.get() || !written);
    };
    let (mut stream, mut ids, mut by_itself) = (text::Stream::default(), Vec::new(), false);
    let mut tell = |event| {
        match event {
            Event::Token { id, .. } => {
                ids.push(id);
                write(&stream.push(tokenizer, id));
            }
            Event::Answer { ended, .. } => {
                by_itself = ended;
                write(&stream.finish());
            }
        }
        Ok(())
    };
    let complete = generator.run(&[prompt], row, &mut tell, &|| cancelled() || unheard.get())?;
    write("\n");
    Ok(Said { ids, ended: by_itself, cancelled: !complete, unheard: unheard.get() })
}

fn ending(done: &job::Done, output: &Path, seconds: f64, longest: usize) -> String {
    let (rows, tokens, time) = (done.rows - done.continued, done.tokens, duration(seconds));
    let rate = tokens as f64 / seconds.max(1e-9);
    let cut = match done.cut {
        0 => String::new(),
        n => format!("; {n} cut at their longest (--max-new-tokens {longest})"),
    };
    format!("{}: {rows} rows, {tokens} tokens in {time} ({rate:.1} tokens/s){cut}", output.display())
}
