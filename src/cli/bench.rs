//! `bench`: measures a workload, compares reports, and is the process that another `bench` measures against.

use super::option;
use crate::bench::compare::{self, Comparison};
use crate::bench::conditions::{self, Watch};
use crate::bench::format::{self, Format};
use crate::bench::report::{Machine, Program, Report, SCHEMA_VERSION};
use crate::bench::workload::{self, Options, Source};
use crate::bench::{against, sampling};
use crate::config::{self, DeviceChoice};
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::files;
use crate::formats::publish;
use crate::report::console::{complain, say, type_out};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Seconds of one result where nothing is said.
const SECONDS: f64 = 20.0;

/// Largest ledger, and largest program, bytes.
const MAX_LEDGER: u64 = 256 << 20;
const MAX_BINARY: u64 = 1 << 30;

/// Smallest difference that counts where nothing is said, percent.
const THRESHOLD: f64 = 3.0;

/// The command and its flags.
pub fn command() -> Command {
    let list = |name, value, help| flag(name, value, help).value_delimiter(',').action(ArgAction::Append);
    let workloads = workload::NAMES.map(|(name, _)| name);
    let about = workload::NAMES.map(|(name, about)| format!("  {name:<12}{about}")).join("\n");
    let compared = Command::new("compare")
        .about("Compares two reports result by result; ends with 1 on SLOWER or on other numbers")
        .arg(Arg::new("old").value_name("OLD.json").required(true))
        .arg(Arg::new("new").value_name("NEW.json").required(true))
        .arg(threshold())
        .arg(force())
        .arg(flag("json", "", "For a machine: JSON").num_args(0).action(ArgAction::SetTrue));
    Command::new("bench")
        .about("Measures throughput, and compares it; what takes a list is measured in every combination")
        .args_override_self(true)
        .args_conflicts_with_subcommands(true)
        .after_help(format!("Workloads:\n{about}"))
        .subcommand(compared)
        .arg(
            Arg::new("workload")
                .value_name("WORKLOAD")
                .value_parser(workloads)
                .default_value("train")
                .help("What to measure"),
        )
        .arg(
            flag("model", "DIR", "Folder of a model").alias("model-name-or-path").alias("model_name_or_path"),
        )
        .arg(
            list(
                "shape",
                "NAME,…",
                "Released sizes with random weights, no files: qwen2.5-0.5b, qwen3-8b, …",
            )
            .conflicts_with("model"),
        )
        .arg(list("tokens", "N,…", "Tokens of a micro-batch, or of the prompt for generate (default: 512)"))
        .arg(list("lora-r", "N,…", "LoRA ranks (default: 16)").alias("lora_r"))
        .arg(flag("device", "DEVICE", "auto, cpu, cuda or cuda:N (default: auto)"))
        .arg(list("dtype", "TYPE,…", "auto, bf16 or f32, as in train (default: auto)"))
        .arg(list("threads", "N,…", "Threads of the CPU device (default: all)"))
        .arg(list("recompute", "POLICY,…", "auto, none, mlp or full, as in train (default: auto)"))
        .arg(list("graphs", "on,off", "Whether a GPU records work that comes again (default: on)"))
        .arg(flag("layers", "N", "So many layers of the released size alone").conflicts_with("model"))
        .arg(list(
            "operations",
            "NAME,…",
            "The operations of ops, or NAME:NUMBER for one case (default: all)",
        ))
        .arg(flag("folder", "DIR", "Where checkpoint and resume write (default: for temporary files)"))
        .arg(flag("seconds", "S", "Seconds that a result may take (default: 20)"))
        .args(results())
        .arg(flag("serve", "PART", "").value_parser(clap::value_parser!(usize)).hide(true))
}

/// What becomes of the results.
fn results() -> [Arg; 8] {
    [
        Arg::new("format")
            .short('o')
            .value_name("FORMAT")
            .value_parser(Format::NAMES.map(|(name, _)| name))
            .default_value("md")
            .help("How the report is printed"),
        flag("output", "FILE", "Writes the report there, not to standard output"),
        flag("baseline", "FILE", "A report to compare with; ends with 1 on SLOWER or on other numbers"),
        flag("against", "BINARY", "Another build, measured in turn with this one: A B B A")
            .conflicts_with("baseline"),
        threshold(),
        force(),
        flag("ledger", "FILE", "Appends one line for each result"),
        flag(
            "commit",
            "ID",
            "The commit that was built, for the report (default: GITHUB_SHA or CI_COMMIT_SHA)",
        ),
    ]
}

fn flag(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn threshold() -> Arg {
    let help = "Smallest difference that counts, percent (default: 3)";
    Arg::new("threshold").long("threshold").value_name("PERCENT").help(help)
}

fn force() -> Arg {
    let help = "Compares reports of different machines or workloads all the same";
    Arg::new("force").long("force").action(ArgAction::SetTrue).help(help)
}

/// `qwentune bench`.
pub fn bench(matches: &ArgMatches) -> Result<()> {
    if let Some(("compare", matches)) = matches.subcommand() {
        return compare_files(matches);
    }
    let options = options(matches)?;
    let seconds = positive(matches, "seconds")?.unwrap_or(SECONDS);
    let watch = Watch { gpu: workload::gpu(&options) };
    if let Some(part) = matches.get_one::<usize>("serve") {
        return serve(&options, *part, watch, seconds);
    }
    // What is asked for besides measuring is looked at first: a wrong file is told before the time was spent.
    let baseline = option(matches, "baseline").map(|file| Report::read(Path::new(file))).transpose()?;
    let (report, comparisons) = match option(matches, "against") {
        Some(binary) => measure_against(Path::new(binary), matches, &options, seconds)?,
        None => (measure(matches, &options, watch, seconds)?, Vec::new()),
    };
    let kind = option(matches, "format").and_then(Format::parse).unwrap_or(Format::Markdown);
    let text = kind.render(&report)?;
    match option(matches, "output") {
        Some(file) => publish::replace_file(Path::new(file), text.as_bytes())?,
        None if type_out(&text) => {}
        None => return Err(unwritten()),
    }
    if let Some(file) = option(matches, "ledger") {
        append(Path::new(file), &format::json_lines(&report))?;
    }
    let comparisons = match baseline {
        Some(old) => compare::reports(&old, &report, fraction(matches)?, matches.get_flag("force"))?,
        None => comparisons,
    };
    verdict(&comparisons, false)
}

fn unwritten() -> Error {
    Error::new(crate::error::Kind::Io, "standard output could not be written")
}

/// Puts lines behind those that a ledger holds; the whole file takes the old one's place.
fn append(file: &Path, lines: &str) -> Result<()> {
    let before = if files::exists(file)? { files::read_text(file, MAX_LEDGER)? } else { String::new() };
    publish::replace_file(file, (before + lines).as_bytes())
}

fn measure(matches: &ArgMatches, options: &Options, watch: Watch, seconds: f64) -> Result<Report> {
    let (mut results, mut peaks) = (Vec::new(), BTreeMap::new());
    for case in workload::cases(options)? {
        complain(&format!("measuring {case}"));
        // Before the case takes its memory.
        let peak = match peaks.entry(case.peak_key()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(unknown) => *unknown.insert(case.matmul_peak()?),
        };
        for mut one in case.build()? {
            let result = sampling::measure(one.as_mut(), seconds, watch)?;
            results.push(match peak {
                Some(peak) => result.beside_peak(peak),
                None => result,
            });
        }
    }
    report(matches, options, results)
}

fn report(
    matches: &ArgMatches,
    options: &Options,
    results: Vec<crate::bench::report::Measurement>,
) -> Result<Report> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let commit = option(matches, "commit").map(str::to_owned);
    let commit = commit.or_else(|| environment("GITHUB_SHA")).or_else(|| environment("CI_COMMIT_SHA"));
    let binary = own_binary()?;
    let bytes = files::read(&binary, MAX_BINARY)?;
    let facts = workload::device_facts(options)?;
    Ok(Report {
        schema_version: SCHEMA_VERSION,
        program: Program {
            version: env!("CARGO_PKG_VERSION").into(),
            commit,
            binary: blake3::hash(&bytes).to_hex().to_string(),
            kernels: facts.kernels,
        },
        machine: Machine {
            device: facts.device,
            driver: facts.driver,
            power_limit_w: workload::gpu(options).and_then(conditions::power_limit),
            threads: workload::threads(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        },
        results,
    })
}

fn own_binary() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::reading(Path::new("the program's own file"), e))
}

/// Both programs in turn, for every workload.
fn measure_against(
    other: &Path,
    matches: &ArgMatches,
    options: &Options,
    seconds: f64,
) -> Result<(Report, Vec<Comparison>)> {
    let (own, threshold) = (own_binary()?, fraction(matches)?);
    let (mut results, mut comparisons) = (Vec::new(), Vec::new());
    for case in workload::cases(options)? {
        complain(&format!("measuring {case} in turn with {}", other.display()));
        for part in 0..case.parts()? {
            let mut arguments = case.arguments();
            arguments.extend(["--serve".into(), part.to_string(), "--seconds".into(), seconds.to_string()]);
            let outcome = against::run(other, &own, &arguments, seconds, threshold)?;
            results.push(outcome.new);
            comparisons.push(outcome.comparison);
        }
    }
    Ok((report(matches, options, results)?, comparisons))
}

fn serve(options: &Options, part: usize, watch: Watch, seconds: f64) -> Result<()> {
    let [case] = <[_; 1]>::try_from(workload::cases(options)?)
        .map_err(|_| Error::usage("--serve measures one value of each parameter"))?;
    let built = case.build()?.into_iter().nth(part);
    let mut built = built.ok_or_else(|| Error::usage(format!("{case} has no part {part}")))?;
    let mut answer = |line: &str| if type_out(&format!("{line}\n")) { Ok(()) } else { Err(unwritten()) };
    against::serve(built.as_mut(), watch, seconds, &mut std::io::stdin().lock(), &mut answer)
}

fn compare_files(matches: &ArgMatches) -> Result<()> {
    let read = |name| Report::read(Path::new(option(matches, name).unwrap_or_default()));
    let (old, new) = (read("old")?, read("new")?);
    let comparisons = compare::reports(&old, &new, fraction(matches)?, matches.get_flag("force"))?;
    verdict(&comparisons, matches.get_flag("json"))
}

/// Prints the comparisons, and ends as a gate does.
fn verdict(comparisons: &[Comparison], json: bool) -> Result<()> {
    if comparisons.is_empty() {
        return Ok(());
    }
    if json {
        say(&serde_json::to_string_pretty(comparisons).expect("comparisons always print"));
    } else {
        say(format::comparison_table(comparisons).trim_end());
    }
    let failed: Vec<&str> = comparisons.iter().filter(|c| c.fails()).map(|c| c.label.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::check(format!("slower, or other numbers: {}", failed.join(", "))))
}

fn fraction(matches: &ArgMatches) -> Result<f64> {
    Ok(positive(matches, "threshold")?.unwrap_or(THRESHOLD) / 100.0)
}

fn positive(matches: &ArgMatches, name: &str) -> Result<Option<f64>> {
    let Some(word) = option(matches, name) else { return Ok(None) };
    let number = word.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    number.map(Some).ok_or_else(|| Error::usage(format!("--{name} {word}: a number above 0 is wanted")))
}

/// The values of a flag that takes a list.
fn numbers(matches: &ArgMatches, name: &str, default: usize) -> Result<Vec<usize>> {
    let Some(words) = matches.get_many::<String>(name) else { return Ok(vec![default]) };
    words
        .map(|word| {
            let number = word.trim().parse().ok().filter(|n| *n > 0);
            number.ok_or_else(|| {
                Error::usage(format!("--{name} {word}: whole numbers above 0, separated by commas"))
            })
        })
        .collect()
}

/// The words of a flag that takes a list.
fn words(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).into_iter().flatten().map(|word| word.trim().to_owned()).collect()
}

/// The values of a flag that takes names of a setting.
fn choices<T: serde::de::DeserializeOwned>(matches: &ArgMatches, name: &str, default: T) -> Result<Vec<T>> {
    let words = words(matches, name);
    if words.is_empty() {
        return Ok(vec![default]);
    }
    let field = config::fields::find(name).expect("a setting of that name");
    let choice = |word: String| {
        let value = config::value::from_words(field, std::slice::from_ref(&word))?;
        serde_json::from_value(value).map_err(|e| Error::usage(format!("--{name} {word}: {e}")))
    };
    words.into_iter().map(choice).collect()
}

fn on_or_off(matches: &ArgMatches, name: &str) -> Result<Vec<bool>> {
    let choice = |word: String| match word.as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Error::usage(format!("--{name} {word}: on or off"))),
    };
    let words = words(matches, name);
    if words.is_empty() { Ok(vec![true]) } else { words.into_iter().map(choice).collect() }
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let word = option(matches, "device").unwrap_or("auto");
    let device = DeviceChoice::parse(word)
        .ok_or_else(|| Error::usage(format!("--device {word}: auto, cpu, cuda or cuda:N")))?;
    let folder = option(matches, "model").map(|folder| Source::Folder(folder.into()));
    let models: Vec<Source> =
        folder.into_iter().chain(words(matches, "shape").into_iter().map(Source::Shape)).collect();
    if models.is_empty() {
        return Err(Error::usage("bench needs a model").hint("give --model DIR, or --shape qwen2.5-0.5b"));
    }
    let threads = match words(matches, "threads").is_empty() {
        true => vec![None],
        false => numbers(matches, "threads", 0)?.into_iter().map(Some).collect(),
    };
    Ok(Options {
        workload: option(matches, "workload").unwrap_or("train").to_owned(),
        models,
        tokens: numbers(matches, "tokens", 512)?,
        ranks: numbers(matches, "lora-r", 16)?,
        dtypes: choices(matches, "dtype", config::Dtype::Auto)?,
        recomputes: choices(matches, "recompute", config::Recompute::Auto)?,
        threads,
        graphs: on_or_off(matches, "graphs")?,
        layers: match option(matches, "layers") {
            Some(_) => numbers(matches, "layers", 0)?.first().copied(),
            None => None,
        },
        operations: words(matches, "operations"),
        device,
        devices: Devices::default(),
        folder: option(matches, "folder").map(PathBuf::from),
    })
}
