//! The commands and their flags, made from the table of settings.

use crate::config::fields::{self, FIELDS, Field, Group, Kind, find};
use crate::config::read::{edit_distance, nearest};
use crate::config::{Layer, value};
use crate::data::extraction::Task;
use crate::error::{Error, Result};
use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Settings that make no sense for `resume`, and why.
pub const NOT_ON_RESUME: &[(&str, &str)] = &[
    ("output_dir", "the run's folder is the argument: qwentune resume OUTPUT_DIR"),
    ("overwrite_output_dir", "a run is continued or started over; train --overwrite-output-dir starts over"),
    (
        "init_adapter",
        "a run is continued with its complete state; train --init-adapter begins one with weights only",
    ),
    ("fresh_optimizer", "this run has its optimizer's state"),
    ("branch", "a branch is a run of its own: train --branch --resume-from-checkpoint RUN --output-dir NEW"),
];

/// Settings that make no sense for `import`, and why.
pub const NOT_ON_IMPORT: &[(&str, &str)] = &[
    ("output_dir", "the run's folder is the second argument: qwentune import CHECKPOINT OUT"),
    ("resume_from_checkpoint", "the checkpoint is the first argument: qwentune import CHECKPOINT OUT"),
    (
        "init_adapter",
        "an import takes the complete state; train --init-adapter begins a run with weights only",
    ),
    ("overwrite_output_dir", "an import needs a folder without a run"),
    ("branch", "an import is a run of its own already"),
    ("stop_signals", "an import does not train"),
];

/// Which settings a command shows in its help.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    All,
    Changeable,
    Import,
    /// Those that decide the loss of a file; the command takes no others.
    Evaluation,
}

impl Shown {
    fn hides(self, field: &Field) -> bool {
        let refused = |not: &[(&str, &str)]| not.iter().any(|(key, _)| *key == field.key);
        match self {
            Shown::All | Shown::Evaluation => false,
            Shown::Changeable => field.class.decides_numbers() || refused(NOT_ON_RESUME),
            Shown::Import => refused(NOT_ON_IMPORT),
        }
    }

    fn takes(self, field: &Field) -> bool {
        let evaluates = match field.group {
            Group::Data => !["train_files", "val_set_size"].contains(&field.key),
            Group::Batches => ["per_device_eval_batch_size", "tokens_per_micro_batch"].contains(&field.key),
            Group::Device => field.key != "recompute",
            _ => ["init_adapter", "quiet"].contains(&field.key),
        };
        self != Shown::Evaluation || evaluates
    }
}

/// The whole command line.
#[must_use]
pub fn program() -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("Settings from a TOML or JSON file, or from the run.json of an earlier run; flags win over it");
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("For a machine: JSON");
    let run_folder = Arg::new("run").value_name("OUTPUT_DIR").required(true).help("The folder of the run");
    let rows = Arg::new("rows").long("rows").value_name("N").default_value("3").help("How many rows to show");
    let explain = Arg::new("explain").long("explain").action(ArgAction::SetTrue);
    let explain = explain.help("Say what was recognised in each row, and why");
    Command::new("qwentune")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Fine-tunes Qwen models with LoRA; an interrupted run continues to the same bytes")
        .args_override_self(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help("-h says it in short, --help in full; qwentune COMMAND --help: what a command takes; qwentune man: all of it")
        .after_long_help(format!(
            "qwentune COMMAND --help: what a command takes; qwentune man: all of it\n\n{}",
            super::completions::exit_statuses()
        ))
        .subcommand(settings(command("train", "Fine-tunes a model"), Shown::All).arg(config.clone()))
        .subcommand(settings(
            command("resume", "Continues the run in a folder from its newest valid checkpoint")
                .arg(run_folder),
            Shown::Changeable,
        ))
        .subcommand(
            settings(command("preview", "Shows how rows are rendered, tokenised, masked"), Shown::All)
                .arg(config.clone())
                .arg(json())
                .arg(explain)
                .arg(rows),
        )
        .subcommand(tokenize())
        .subcommand(plan().arg(config.clone()).arg(json()))
        .subcommand(checkpoint(json))
        .subcommand(
            settings(
                command("import", "Makes a run from a checkpoint of Hugging Face's Trainer")
                    .arg(word("from", "CHECKPOINT", "A checkpoint-N folder with a LoRA adapter"))
                    .arg(word("out", "OUTPUT_DIR", "The folder of the new run")),
                Shown::Import,
            )
            .arg(config),
        )
        .subcommand(export())
        .subcommand(evaluate().arg(json()))
        .subcommand(merge())
        .subcommand(report())
        .subcommand(generate())
        .subcommand(chat())
        .subcommand(command("doctor", "Shows what this machine has and what is missing"))
        .subcommand(selftest())
        .subcommand(init())
        .subcommand(command("completions", "Prints completions for a shell").arg(
            Arg::new("shell").value_name("SHELL").required(true).value_parser(super::completions::SHELLS),
        ))
        .subcommand(command("man", "Prints the manual page: qwentune man | man -l -"))
        .subcommand(super::bench::command())
}

fn plan() -> Command {
    let measure = Arg::new("measure").long("measure").action(ArgAction::SetTrue);
    let measure =
        measure.help("Run a few steps in a folder of their own, and say how long the run takes here");
    settings(command("plan", "Shows memory, steps and tokens of a run, and starts nothing"), Shown::All)
        .arg(measure)
}

fn init() -> Command {
    command("init", "Writes a configuration to begin with: every setting, its default and its meaning")
        .arg(Arg::new("out").value_name("OUT.toml").help("A new file; without it standard output"))
}

fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).args_override_self(true)
}

/// The folder of a model, for commands that take no settings.
fn model(help: &'static str) -> Arg {
    Arg::new("model_name_or_path")
        .long("model-name-or-path")
        .visible_alias("model")
        .value_name("DIR")
        .required(true)
        .help(help)
}

/// The folder of an adapter; `--checkpoint-dir`, DeepKE's name, arrives as `--init-adapter`.
fn adapter() -> Arg {
    Arg::new("adapter").long("adapter").alias("init-adapter").value_name("DIR")
}

/// Settings that `generate` shares with `train`, and what it says of those that mean something else here.
const GENERATING: &[(&str, &str)] = &[
    ("model_name_or_path", "Folder of the model"),
    ("format", ""),
    ("template", ""),
    ("chat_template", ""),
    ("thinking", ""),
    ("system_prompt", ""),
    (
        "per_device_eval_batch_size",
        "Rows answered at once; never changes an answer (default: 8) [also --batch-size]",
    ),
    ("seed", "Decides what is drawn (default: 42)"),
    ("device", ""),
    ("dtype", ""),
    ("cpu_isa", ""),
    ("threads", ""),
    ("quiet", ""),
];

/// A command that answers: what decides an answer.
fn answering(name: &'static str, about: &'static str) -> Command {
    let mut command = command(name, about);
    for (name, help) in GENERATING {
        let Some(field) = FIELDS.iter().find(|field| field.name == *name) else { continue };
        let arg = flag(field, Shown::All).help_heading(None::<&str>);
        let arg = if help.is_empty() { arg } else { arg.help(*help).long_help(*help) };
        command = command.arg(match *name {
            "model_name_or_path" => arg.required(true),
            // What `--batch-size` means to `train`.
            "per_device_eval_batch_size" => arg.alias("per-device-train-batch-size"),
            _ => arg,
        });
    }
    command
        .arg(adapter().help("Folder of an adapter, PEFT's format"))
        .arg(number("max_new_tokens", "Most tokens of an answer (default: 512)"))
        .arg(number("temperature", "0 takes the likeliest token; above it tokens are drawn (default: 0)"))
        .arg(number("top_k", "Draw among the k likeliest tokens; 0: all (default: 0)"))
        .arg(number("top_p", "Draw among the likeliest tokens of this total probability (default: 1)"))
        .arg(number(
            "repetition_penalty",
            "Above 1, tokens that are in the text already are less likely (default: the model's)",
        ))
}

/// A flag that is no setting.
fn valued(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    let long = Arg::new(name).long(name.replace('_', "-"));
    long.value_name(value).value_parser(NonEmptyStringValueParser::new()).help(help)
}

fn number(name: &'static str, help: &'static str) -> Arg {
    valued(name, "X", help).allow_negative_numbers(true)
}

fn chat() -> Command {
    answering("chat", "A conversation: on a terminal, or a question a line of standard input")
        .after_help("/reset begins a new conversation, /quit or the end of input ends it")
}

fn generate() -> Command {
    answering("generate", "Answers a prompt, or every row of a file")
        .arg(valued(
            "input_file",
            "FILE",
            "Rows to answer, as `train` reads them; answers they hold are ignored",
        ))
        .arg(valued(
            "output_file",
            "FILE",
            "The same rows with `output`; FILE.partial until all are answered",
        ))
        .arg(number("cutoff_len", "").hide(true))
        .arg(valued("output_dir", "DIR", "").hide(true))
        .arg(
            Arg::new("prompt")
                .value_name("PROMPT")
                .num_args(0..)
                .help("What to answer; without it and --input-file standard input is read"),
        )
}

fn merge() -> Command {
    command("merge", "Folds an adapter into its base model")
        .arg(model("Folder of the base model"))
        .arg(adapter().required(true).help("Folder of the adapter, PEFT's format"))
        .arg(Arg::new("out").value_name("OUT").required(true).help("The new model folder"))
}

fn report() -> Command {
    command("report", "Makes report.html of a run again, or one page that compares several runs")
        .arg(Arg::new("runs").value_name("OUTPUT_DIR").required(true).num_args(1..).help("Folders of runs"))
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FILE")
                .default_value("comparison.html")
                .help("Where the page of several runs goes; that of one is the folder's report.html"),
        )
}

fn tokenize() -> Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    command("tokenize", "Shows the ids of a text, or the text of ids")
        .arg(model("Folder of the model or its tokenizer"))
        .arg(switch("decode", "The input is ids, separated by spaces or commas"))
        .arg(switch("lines", "One text a line, one line of ids each"))
        .arg(
            Arg::new("text")
                .value_name("TEXT")
                .num_args(0..)
                .help("The text; without it standard input is read"),
        )
}

fn evaluate() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help).help_heading("Extraction")
    };
    let names = Task::ALL.map(|(name, _)| name);
    let about = "Computes loss and perplexity of a file, or precision, recall and F1 of predictions";
    let forms = "Loss: --model DIR [--adapter DIR] --valid-file FILE. Extraction: --predictions FILE... [--task NAME]";
    settings(command("evaluate", about).after_help(forms), Shown::Evaluation)
        .arg(
            flag(
                "predictions",
                "FILE",
                "Rows with `label` and `output`, as generate writes them [also --path1]",
            )
            .alias("path1")
            .num_args(1..)
            .action(ArgAction::Append),
        )
        .arg(
            flag("task", "NAME", "What was extracted (default: what the rows say)")
                .value_parser(names)
                .ignore_case(true)
                .requires("predictions"),
        )
        .arg(
            flag(
                "match-mode",
                "MODE",
                "normal: a gold item is found at most once; set: repetitions do not count",
            )
            .value_parser(["normal", "set"])
            .default_value("normal")
            .requires("predictions"),
        )
        .arg(
            flag("sort-by", "KEY", "source: each source by itself too")
                .value_parser(["source", ""])
                .requires("predictions"),
        )
}

fn selftest() -> Command {
    let flag = |name: &'static str, value: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).default_value(default).help(help)
    };
    command(
        "selftest",
        "Checks every operation, training and resume on this machine's device; exit 1 when one fails",
    )
    .arg(flag("device", "DEVICE", "auto", "auto, cpu, cuda or cuda:N"))
    .arg(flag("repeats", "N", "100", "How often each operation is asked for the same bits"))
    .arg(flag("json", "FILE", "selftest.json", "Where all figures go"))
    .arg(flag("only", "PART", "all", "all, operations or training"))
}

fn checkpoint(json: impl Fn() -> Arg) -> Command {
    let path = |help: &'static str| Arg::new("path").value_name("PATH").required(true).help(help);
    command("checkpoint", "Looks into checkpoints")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            command("show", "What a checkpoint holds")
                .arg(path("A .qckpt file, or a run folder for its newest one"))
                .arg(json()),
        )
        .subcommand(
            command("verify", "Whether every byte is intact; exit 1 when not")
                .arg(path("A .qckpt file, or a run folder for all of them"))
                .arg(json()),
        )
        .subcommand(command("list", "The checkpoints of a run").arg(path("A run folder")).arg(json()))
}

fn word(name: &'static str, shown: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(shown).required(true).help(help)
}

fn export() -> Command {
    let forms = [
        PossibleValue::new("peft").help("the adapter, a folder"),
        PossibleValue::new("hf-trainer")
            .alias("hf_trainer")
            .help("a complete checkpoint that Trainer resumes"),
        PossibleValue::new("gguf").help("the adapter, one file for llama.cpp and what is built on it"),
    ];
    let form = Arg::new("format").long("format").value_name("FORMAT").default_value("peft");
    command("export", "Writes a checkpoint for PEFT, Hugging Face's Trainer or llama.cpp")
        .arg(word("from", "PATH", "A .qckpt file, or a run folder for its newest one"))
        .arg(word("out", "OUT", "A new folder; with gguf a new file"))
        .arg(form.value_parser(PossibleValuesParser::new(forms)).help("What is written"))
}

/// Refuses settings that make no sense for a command.
///
/// # Errors
/// Usage, naming the flag and why.
pub fn refuse(given: &Layer, command: &str, which: &[(&str, &str)]) -> Result<()> {
    let named =
        |(key, why): &(&str, &str)| find(key).filter(|f| given.has(f.key)).map(|f| (f, (*why).to_owned()));
    match which.iter().find_map(named) {
        Some((field, why)) => {
            Err(Error::usage(format!("{command} does not take --{}", field.flag())).hint(why))
        }
        None => Ok(()),
    }
}

/// Adds the flags of all settings, under their headings.
fn settings(mut command: Command, shown: Shown) -> Command {
    for field in FIELDS.iter().filter(|field| shown.takes(field)) {
        let arg = flag(field, shown).hide(shown.hides(field));
        let compared = shown == Shown::Evaluation && field.key == "init_adapter";
        command = command.arg(if compared { adapter_to_compare(arg) } else { arg });
    }
    command
}

/// `--init-adapter` under the name it has where nothing is begun with it.
fn adapter_to_compare(arg: Arg) -> Arg {
    arg.long("adapter")
        .alias("init-adapter")
        .help("An adapter to compare with the base model, PEFT's format")
        .long_help("An adapter to compare with the base model, PEFT's format [also --checkpoint-dir]")
        .help_heading(Group::Data.title())
}

fn flag(field: &'static Field, shown: Shown) -> Arg {
    let aliases = field.aliases.iter().map(|a| format!("--{}", a.replace('_', "-"))).collect::<Vec<_>>();
    let default = match field.default_text().as_str() {
        // What a resumed run is not told stays as it was.
        _ if shown == Shown::Changeable => String::new(),
        "required" if shown == Shown::Evaluation => String::new(),
        "required" => " (required)".into(),
        text => format!(" (default: {text})"),
    };
    let mut long = field.doc.to_owned();
    if let Kind::Choice(names) = field.kind {
        long += &format!(" [{}]", names.join(", "));
    }
    long += &default;
    if !aliases.is_empty() {
        long += &format!(" [also {}]", aliases.join(" "));
    }
    let arg = Arg::new(field.name).long(field.flag()).help_heading(field.group.title());
    let arg = arg.help(format!("{}{default}", field.doc)).long_help(long);
    // An empty text is a text; an empty number or path is a mistake.
    let arg = if field.kind == Kind::Text { arg } else { arg.value_parser(NonEmptyStringValueParser::new()) };
    match field.kind {
        Kind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
        }
        Kind::OptionalSwitch => arg.value_name("true|false"),
        Kind::Paths => arg.num_args(1..).action(ArgAction::Append).value_name("FILE"),
        Kind::Folders => arg.value_name("DIR,DIR"),
        Kind::Signals => arg.value_name("NAME,NAME"),
        Kind::Counts => arg.num_args(1..).action(ArgAction::Append).value_name("N,N"),
        Kind::Modules | Kind::OptionalModules => {
            arg.num_args(1..).action(ArgAction::Append).value_name("NAMES")
        }
        Kind::Resume => arg.num_args(0..=1).default_missing_value("auto").value_name("auto|STEP|PATH"),
        Kind::Count | Kind::OptionalCount => arg.allow_negative_numbers(true).value_name("N"),
        Kind::Number | Kind::OptionalNumber => arg.allow_negative_numbers(true).value_name("X"),
        Kind::Path => arg.value_name("PATH"),
        Kind::Text => arg.value_name("TEXT"),
        Kind::Choice(_) => arg.value_name("NAME"),
        Kind::Device => arg.value_name("DEVICE"),
        Kind::Json => arg.value_name("JSON"),
        Kind::Pairs(_) => arg.value_name("NAME=KEY,..."),
    }
}

/// The settings given as flags. A list given twice counts once, the last time, with a warning.
///
/// # Errors
/// Usage: a value does not fit its setting.
pub fn given(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<Layer> {
    let mut layer = Layer::default();
    for field in FIELDS {
        let Ok(Some(occurrences)) = matches.try_get_occurrences::<String>(field.name) else { continue };
        if matches.value_source(field.name) != Some(clap::parser::ValueSource::CommandLine) {
            continue;
        }
        let occurrences: Vec<Vec<String>> = occurrences.map(|words| words.cloned().collect()).collect();
        if occurrences.len() > 1 {
            warnings.push(format!(
                "--{} is given {} times: the last one counts",
                field.flag(),
                occurrences.len()
            ));
        }
        if let Some(words) = occurrences.last() {
            layer.set(field, value::from_words(field, words)?);
        }
    }
    Ok(layer)
}

/// A parse error as one or two lines; help and version are no errors and come back as `Ok` text.
///
/// # Errors
/// Usage: what is wrong, with the nearest known name.
pub fn explain(error: &clap::Error) -> Result<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let arg = context(ContextKind::InvalidArg);
    let short = arg.split([' ', '[', '=']).next().unwrap_or_default().to_owned();
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Ok(error.render().to_string()),
        ErrorKind::UnknownArgument => Err(unknown(&arg)),
        ErrorKind::InvalidSubcommand => Err(unknown_command(&context(ContextKind::InvalidSubcommand))),
        ErrorKind::MissingSubcommand => {
            Err(Error::usage("a command is missing").hint("qwentune --help lists them"))
        }
        ErrorKind::MissingRequiredArgument => Err(Error::usage(format!("{arg} is missing"))),
        ErrorKind::InvalidValue | ErrorKind::NoEquals | ErrorKind::WrongNumberOfValues
            if context(ContextKind::InvalidValue).is_empty() =>
        {
            Err(Error::usage(format!("{short} wants a value")))
        }
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(Error::usage(line.trim_start_matches("error: ")))
        }
    }
}

fn unknown(arg: &str) -> Error {
    let Some(name) = arg.strip_prefix("--") else {
        return Error::usage(format!("'{arg}' is one word too many")).hint("flags begin with --");
    };
    if fields::find(name).is_some() {
        return Error::usage(format!("this command does not take --{name}, a setting of `train`"));
    }
    let error = Error::usage(format!("unknown flag --{name}"));
    match nearest(name) {
        Some(known) => error.hint(format!("the nearest known one is --{}", known.replace('_', "-"))),
        None => error.hint("qwentune help train lists them"),
    }
}

fn unknown_command(name: &str) -> Error {
    let program = program();
    let best = program.get_subcommands().map(|c| (edit_distance(name, c.get_name()), c.get_name())).min();
    let error = Error::usage(format!("unknown command '{name}'"));
    match best {
        Some((distance, known)) if distance <= 3 => error.hint(format!("the nearest known one is {known}")),
        _ => error.hint("qwentune --help lists them"),
    }
}
