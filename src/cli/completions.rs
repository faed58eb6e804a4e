//! Completions for shells, and the manual page: both made from the commands, and so from the table of settings.

use super::{commands, option};
use crate::config::fields::{self, Field, Kind};
use crate::error::{Error, Result};
use crate::report::console::say;
use clap::{Arg, ArgMatches, Command};

/// Shells that completions are made for.
pub const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// `qwentune completions`.
pub fn print(matches: &ArgMatches) -> Result<()> {
    say(completions(&commands::program(), option(matches, "shell").unwrap_or_default())?.trim_end());
    Ok(())
}

/// `qwentune man`.
pub fn print_manual() {
    say(manual(&commands::program()).trim_end());
}

/// The completions of `program` for `shell`.
///
/// # Errors
/// A shell that none are made for.
fn completions(program: &Command, shell: &str) -> Result<String> {
    match shell {
        "bash" => Ok(bash(program)),
        "zsh" => Ok(zsh(program)),
        "fish" => Ok(fish(program)),
        other => Err(Error::usage(format!("completions {other}: one of {}", SHELLS.join(", ")))),
    }
}

/// Commands that are shown, and those below them, each with its words from the program's name on.
fn all_commands(program: &Command) -> Vec<(Vec<String>, &Command)> {
    let mut found = vec![(Vec::new(), program)];
    let mut next = 0;
    while next < found.len() {
        let (words, command) = (found[next].0.clone(), found[next].1);
        for below in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            found.push(([&words[..], &[below.get_name().to_owned()]].concat(), below));
        }
        next += 1;
    }
    found
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional())
}

/// `--name` and `-n` of a flag.
fn spellings(arg: &Arg) -> Vec<String> {
    let long = arg.get_long().map(|long| format!("--{long}"));
    let short = arg.get_short().map(|short| format!("-{short}"));
    long.into_iter().chain(short).collect()
}

/// What a flag may be given, where it is one of a few words.
fn choices(arg: &Arg) -> Vec<String> {
    let named: Vec<String> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
    if !named.is_empty() || !arg.get_action().takes_values() {
        return named;
    }
    let names: &[&str] = match setting(arg).map(|field| field.kind) {
        Some(Kind::Choice(names)) => names,
        Some(Kind::Switch | Kind::OptionalSwitch) => &["true", "false"],
        Some(Kind::Device) => &["auto", "cpu", "cuda"],
        _ => &[],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The setting that a flag gives.
fn setting(arg: &Arg) -> Option<&'static Field> {
    let field = fields::find(arg.get_id().as_str())?;
    arg.get_long_help().is_some().then_some(field)
}

fn takes_file(arg: &Arg) -> bool {
    let value = arg.get_value_names().and_then(|names| names.first().map(ToString::to_string));
    let value = value.unwrap_or_default();
    ["FILE", "DIR", "PATH", "OUT", "BINARY", "CHECKPOINT", "RUN"].iter().any(|kind| value.contains(kind))
}

fn bash(program: &Command) -> String {
    let name = program.get_name();
    let mut cases = String::new();
    let mut values = String::new();
    for (words, command) in all_commands(program) {
        let below = command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned());
        let below = below.chain(command.get_positionals().flat_map(choices));
        let all: Vec<String> = below.chain(flags(command).flat_map(spellings)).collect();
        cases += &format!("            \"{}\") words=\"{}\"; break ;;\n", words.join(" "), all.join(" "));
        for arg in flags(command) {
            let list = choices(arg);
            if !list.is_empty() {
                let places: Vec<String> =
                    spellings(arg).iter().map(|s| format!("\"{} {s}\"", words.join(" "))).collect();
                values += &format!("        {}) value=\"{}\" ;;\n", places.join("|"), list.join(" "));
            }
        }
    }
    format!(
        r#"# Completions of {name} for bash. source <({name} completions bash)
_{name}() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" place="" words="" value word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in -*) break ;; esac
        place="${{place:+$place }}$word"
    done
    while :; do
        case "$place" in
{cases}        esac
        case "$place" in *" "*) place="${{place% *}}" ;; *) place="" ;; esac
    done
    case "$place $before" in
{values}        *) value="" ;;
    esac
    if [ -n "$value" ]; then
        COMPREPLY=($(compgen -W "$value" -- "$current"))
        return
    fi
    case "$current" in
        -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
        *) COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current")) ;;
    esac
}}
complete -o filenames -F _{name} {name}
"#
    )
}

/// A help text within single quotes, its first sentence.
fn quoted(text: &str, also: &[char]) -> String {
    let mut out = String::new();
    for c in text.lines().next().unwrap_or_default().chars() {
        match c {
            '\'' => out += "'\\''",
            c if also.contains(&c) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

fn help(arg: &Arg) -> String {
    arg.get_help().map(ToString::to_string).unwrap_or_default()
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn zsh(program: &Command) -> String {
    let name = program.get_name();
    let mut text = format!(
        "#compdef {name}\n# Completions of {name} for zsh: put them into a folder of $fpath as _{name}\n"
    );
    for (words, command) in all_commands(program) {
        let function =
            std::iter::once(name).chain(words.iter().map(String::as_str)).collect::<Vec<_>>().join("_");
        text += &format!("\n_{}() {{\n    local -a commands\n", function.replace('-', "_"));
        let below: Vec<&Command> =
            command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help").collect();
        for c in &below {
            text += &format!("    commands+=('{}:{}')\n", c.get_name(), quoted(&about(c), &[':']));
        }
        text += "    _arguments -C \\\n";
        for arg in flags(command) {
            let list = choices(arg);
            let value = match (arg.get_action().takes_values(), list.is_empty()) {
                (false, _) => String::new(),
                (true, false) => format!(":value:({})", list.join(" ")),
                (true, true) if takes_file(arg) => ":file:_files".into(),
                (true, true) => ":value: ".into(),
            };
            for spelling in spellings(arg) {
                text +=
                    &format!("        '{spelling}[{}]{value}' \\\n", quoted(&help(arg), &['[', ']', ':']));
            }
        }
        if below.is_empty() {
            let list: Vec<String> = command.get_positionals().flat_map(choices).collect();
            text += &match list.is_empty() {
                true => "        '*:file:_files'\n}\n".to_owned(),
                false => format!("        '1:value:({})'\n}}\n", list.join(" ")),
            };
            continue;
        }
        text += "        '1:command:->command' '*::argument:->argument'\n    case \"$state\" in\n";
        text += "        command) _describe command commands ;;\n        argument) case \"${words[1]}\" in\n";
        for c in &below {
            let called = format!("{function}_{}", c.get_name()).replace('-', "_");
            text += &format!("            {}) _{called} ;;\n", c.get_name());
        }
        text += "        esac ;;\n    esac\n}\n";
    }
    text + &format!("\ncompdef _{name} {name}\n")
}

fn fish(program: &Command) -> String {
    let name = program.get_name();
    let mut text = format!("# Completions of {name} for fish: {name} completions fish | source\n");
    for (words, command) in all_commands(program) {
        let below: Vec<&str> =
            command.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name).collect();
        let seen: Vec<String> =
            words.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        let mut condition =
            if seen.is_empty() { "__fish_use_subcommand".to_owned() } else { seen.join("; and ") };
        for c in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            text += &format!(
                "complete -c {name} -n '{condition}' -f -a {} -d '{}'\n",
                c.get_name(),
                quoted(&about(c), &[])
            );
        }
        let list: Vec<String> = command.get_positionals().flat_map(choices).collect();
        if !list.is_empty() {
            text += &format!("complete -c {name} -n '{condition}' -f -a '{}'\n", list.join(" "));
        }
        if !words.is_empty() && !below.is_empty() {
            condition += &format!("; and not __fish_seen_subcommand_from {}", below.join(" "));
        }
        for arg in flags(command) {
            let long = arg.get_long().map_or(String::new(), |long| format!(" -l {long}"));
            let short = arg.get_short().map_or(String::new(), |short| format!(" -s {short}"));
            let list = choices(arg);
            let value = match (arg.get_action().takes_values(), list.is_empty()) {
                (false, _) => String::new(),
                (true, false) => format!(" -x -a '{}'", list.join(" ")),
                (true, true) if takes_file(arg) => " -r -F".into(),
                (true, true) => " -x".into(),
            };
            text += &format!(
                "complete -c {name} -n '{condition}'{long}{short}{value} -d '{}'\n",
                quoted(&help(arg), &[])
            );
        }
    }
    text
}

/// Text as roff shows it: no line of it is a request, and dashes are dashes.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = escaped
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.into() });
    lines.collect::<Vec<String>>().join("\n")
}

/// The entry of a flag or a word.
fn entry(arg: &Arg) -> String {
    let named = arg.get_value_names().filter(|_| arg.get_action().takes_values() || arg.is_positional());
    let value: Vec<String> = named.into_iter().flatten().map(|v| format!("\\fI{}\\fR", roff(v))).collect();
    let flags: Vec<String> = spellings(arg).iter().map(|s| format!("\\fB{}\\fR", roff(s))).collect();
    let said = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let head = [flags.join(", "), value.join(" ")].into_iter().filter(|part| !part.is_empty());
    format!(".TP\n{}\n{}\n", head.collect::<Vec<_>>().join(" "), roff(&said))
}

/// The manual page of `program`, section 1, in the macros of man(7).
fn manual(program: &Command) -> String {
    let name = program.get_name();
    let version = program.get_version().unwrap_or_default();
    let mut text = format!(".TH {} 1 \"\" \"{name} {version}\" \"User commands\"\n", name.to_uppercase());
    text += &format!(".SH NAME\n{name} \\- {}\n", roff(&about(program)));
    text += &format!(".SH SYNOPSIS\n.B {name}\n.I COMMAND\n[\\fIARGUMENTS\\fR]\n.SH COMMANDS\n");
    for (words, command) in all_commands(program).into_iter().skip(1) {
        text += &format!(".SS {name} {}\n{}\n", words.join(" "), roff(&about(command)));
        let described = |arg: &&Arg| words[0] == "train" || setting(arg).is_none();
        let (described, named): (Vec<&Arg>, Vec<&Arg>) =
            command.get_arguments().filter(|arg| !arg.is_hide_set()).partition(described);
        text.extend(described.into_iter().map(entry));
        let named: Vec<String> = named.into_iter().flat_map(spellings).map(|flag| roff(&flag)).collect();
        if !named.is_empty() {
            text += &format!(".PP\nSettings, as \\fB{name} train\\fR takes them: {}.\n", named.join(", "));
        }
    }
    text += ".SH EXIT STATUS\n";
    for (code, meaning) in EXIT_STATUS {
        text += &format!(".TP\n.B {code}\n{}\n", roff(meaning));
    }
    text
}

/// Exit statuses and what they mean.
const EXIT_STATUS: [(u8, &str); 10] = [
    (0, "Done."),
    (1, "A check that the command makes did not hold, or an internal error."),
    (2, "The command line or the configuration is wrong."),
    (65, "An input file is wrong: model, tokenizer, data, adapter, checkpoint."),
    (69, "The device is not there, or has too little memory."),
    (73, "The output folder cannot be used: locked, not writable, or it holds another run."),
    (74, "Reading or writing failed."),
    (75, "Stopped on request after saving a checkpoint; resume continues."),
    (76, "Resume refused: something that decides the result differs."),
    (79, "Training diverged; nothing that is not finite was published."),
];

/// The exit statuses as `--help` lists them.
#[must_use]
pub fn exit_statuses() -> String {
    let lines = EXIT_STATUS.iter().map(|(code, meaning)| format!("  {code:<4}{meaning}\n"));
    format!("Exit status:\n{}", lines.collect::<String>())
}
