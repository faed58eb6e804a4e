//! The same walks with the real engine, real processes and real kills. A run's checkpoints, adapter and log must be the
//! bytes of the same history without interruptions, whatever was done to it.

use crate::checkpoint::disk::Rng;
use crate::common::{full, metrics_without_clock, scratch, tiny_model, tiny_rows};
use crate::exchange::QWEN2;
use qwentune::checkpoint::inspect;
use qwentune::checkpoint::shelf::step_of;
use qwentune::cli::train_settings;
use qwentune::config::Settings;
use qwentune::error::Kind;
use qwentune::report::event::Event;
use qwentune::train::run_file::RunFile;
use qwentune::train::{self, Control, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LENGTH: usize = 6;
const RATES: [&str; 2] = ["1e-2", "2e-2"];

/// What is asked for, in folders that are numbered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Train { out: usize, auto: bool, total: u64 },
    Overwrite { out: usize, total: u64 },
    Import { out: usize },
    Resume { run: usize },
    Longer { run: usize, total: u64 },
    Elsewhere { from: usize, to: usize },
    Branch { from: usize, to: usize },
    Export { run: usize },
    Move { from: usize, to: usize },
    Delete { run: usize },
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Whole,
    /// Killed in place of that change to the disk.
    KilledAt {
        at: u64,
        half: bool,
    },
    KilledAfter {
        micros: u64,
    },
    Signal {
        signal: i32,
        micros: u64,
    },
}

type Step = (Verb, End);

/// A run's history: what it is, wherever it was interrupted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum History {
    New { total: u64 },
    Imported,
    Longer(Box<History>, u64, u64),
    Branch(Box<History>, u64),
}

impl History {
    fn total(&self) -> u64 {
        match self {
            History::New { total } | History::Longer(_, _, total) => *total,
            History::Imported => 30,
            History::Branch(parent, _) => parent.total(),
        }
    }

    /// Made longer after `step` steps.
    fn longer(&self, step: u64, total: u64) -> History {
        match self {
            _ if total == self.total() => self.clone(),
            History::New { .. } if step == 0 => History::New { total },
            History::Longer(before, at, _) if *at >= step => before.longer(step, total),
            _ => History::Longer(Box::new(self.clone()), step, total),
        }
    }
}

/// The bytes of a history without interruptions.
#[derive(Clone)]
struct Reference {
    folder: PathBuf,
    states: BTreeMap<u64, Vec<u8>>,
    adapter: Vec<u8>,
    metrics: String,
}

/// What all walks share: model, rows, references.
struct Ground {
    folder: PathBuf,
    references: Mutex<BTreeMap<History, Reference>>,
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl Ground {
    fn new(name: &str) -> Self {
        let folder = scratch(name);
        tiny_model(&folder.join("model"));
        tiny_rows(&folder.join("train.jsonl"), 11, 1);
        tiny_rows(&folder.join("dev.jsonl"), 4, 2);
        Ground { folder, references: Mutex::default() }
    }

    /// The flags of a new run, its folder left out.
    fn flags(&self, total: u64) -> Vec<String> {
        let at = self.folder.display();
        words(&format!(
            "--model {at}/model --train-file {at}/train.jsonl --valid-file {at}/dev.jsonl --cache-dir {at}/cache --lora-r 2 \
             --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --max-steps {total} --save-steps 1 \
             --save-total-limit 2 --eval-strategy steps --eval-steps 2 --load-best-model-at-end --learning-rate {} \
             --threads 1",
            RATES[0]
        ))
    }

    fn import(&self, out: &Path, keep: usize) -> Vec<String> {
        let mut all =
            vec!["import".into(), QWEN2.checkpoint().display().to_string(), out.display().to_string()];
        all.extend(QWEN2.words(&self.folder));
        all.extend(words(&format!("--save-steps 1 --save-total-limit {keep}")));
        all
    }

    fn reference(&self, history: &History) -> Reference {
        if let Some(known) = self.references.lock().unwrap().get(history) {
            return known.clone();
        }
        let made = self.make(history);
        let mut all = self.references.lock().unwrap();
        all.entry(history.clone()).or_insert(made).clone()
    }

    fn make(&self, history: &History) -> Reference {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = self.folder.join(format!("reference-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let mut earlier = BTreeMap::new();
        // Only what changes is given: the rest is the earlier run's.
        let mut from = |parent: &History, step: u64, mut changes: Vec<(&'static str, Value)>| {
            let Reference { folder: of_parent, states, .. } = self.reference(parent);
            earlier = states.into_iter().filter(|(at, _)| *at <= step).collect();
            let state = self.holder(parent, step, of_parent);
            changes.push(("resume_from_checkpoint", json!({ "path": state })));
            changes.extend([("output_dir", json!(folder)), ("save_total_limit", json!(0))]);
            Request { given: super::walk::given(&changes), ..Request::default() }
        };
        let request = match history {
            History::New { total } => {
                let flags = self.flags(*total);
                let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
                let settings = train_settings(&flags).unwrap().0;
                Request::new(&Settings { output_dir: folder.clone(), save_total_limit: 0, ..settings })
            }
            History::Imported => {
                run(&self.folder, &self.import(&folder, 0));
                Request::default()
            }
            History::Longer(parent, step, total) => from(parent, *step, vec![("max_steps", json!(total))]),
            History::Branch(parent, step) => {
                let rate: f64 = RATES[1].parse().unwrap();
                from(parent, *step, vec![("branch", json!(true)), ("learning_rate", json!(rate))])
            }
        };
        let control = Control::default();
        let asker = control.clone();
        let mut observer = |event: &Event| {
            if matches!(event, Event::Step { .. }) {
                asker.request_save();
            }
        };
        if matches!(history, History::New { .. }) {
            // Stopped before its first step, for the state of step 0; saved after each of the others.
            let stop = Control::default();
            let stopper = stop.clone();
            let mut at_once = |event: &Event| {
                if matches!(event, Event::Started { .. }) {
                    stopper.request_stop();
                }
            };
            let stopped = train::train(request.clone(), &stop, &mut at_once).unwrap_err();
            assert_eq!(stopped.kind, Kind::Stopped, "{stopped}");
        }
        let ended = match history {
            History::New { .. } => train::resume(&folder, Request::default(), &control, &mut observer),
            History::Imported => train::resume(&folder, request, &control, &mut observer),
            _ => train::train(request, &control, &mut observer),
        };
        ended.unwrap_or_else(|e| panic!("{history:?}: {e}"));
        let mut states = states(&folder);
        states.extend(earlier);
        let adapter = std::fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap();
        Reference { states, adapter, metrics: metrics_without_clock(&folder), folder }
    }

    /// The checkpoint file of a step, in the reference that made it.
    fn holder(&self, history: &History, step: u64, folder: PathBuf) -> PathBuf {
        let path = inspect::path_of_step(&folder, step);
        match history {
            History::Longer(parent, ..) | History::Branch(parent, _) if !path.exists() => {
                self.holder(parent, step, self.reference(parent).folder)
            }
            _ => path,
        }
    }
}

impl History {
    fn branched(&self) -> bool {
        match self {
            History::New { .. } | History::Imported => false,
            History::Longer(parent, ..) => parent.branched(),
            History::Branch(..) => true,
        }
    }
}

fn run(folder: &Path, words: &[String]) -> Output {
    let output = program(folder, words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn program(folder: &Path, words: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwentune"));
    command.args(words).current_dir(folder).env("RAYON_NUM_THREADS", "1");
    command
}

/// The whole checkpoints of a run, by step.
fn states(run: &Path) -> BTreeMap<u64, Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return BTreeMap::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let of_step = |path: PathBuf| Some((step_of(path.file_name()?.to_str()?)?, std::fs::read(path).unwrap()));
    paths.filter_map(of_step).collect()
}

/// A run as it must be.
#[derive(Clone)]
struct Run {
    history: History,
    /// The newest step that was said to be saved.
    saved: Option<u64>,
    /// The state of another run it began with: where it lies, and its bytes.
    origin: Option<(PathBuf, Vec<u8>)>,
    /// Its newest checkpoint was taken away: the best adapter of an older one may be gone.
    robbed: bool,
}

struct Walk<'a> {
    ground: &'a Ground,
    folder: PathBuf,
    runs: BTreeMap<String, Run>,
}

/// What a command must do.
enum Expect {
    /// The exit status of the refusal.
    Refused(i32),
    /// It goes on as this.
    Runs(Run),
    Exports,
}

fn name(folder: usize) -> String {
    ["a", "b", "c"][folder].to_owned()
}

impl Walk<'_> {
    fn step(&mut self, (verb, end): Step) -> Result<(), String> {
        match verb {
            Verb::Move { from, to } => self.move_run(&name(from), &name(to)),
            Verb::Delete { run } => self.lose_newest(&name(run)),
            // What a branch without a state of its own is, made longer, has no reference.
            Verb::Longer { run, .. } if self.is_fresh_branch(&name(run)) => {}
            _ => self.command(verb, end)?,
        }
        self.check()
    }

    fn is_fresh_branch(&self, run: &str) -> bool {
        let own = !states(&self.path(run)).is_empty();
        self.runs.get(run).is_some_and(|run| matches!(run.history, History::Branch(..))) && !own
    }

    fn path(&self, run: &str) -> PathBuf {
        self.folder.join(run)
    }

    fn words(&self, verb: Verb) -> (String, Vec<String>) {
        let flags = |total| self.ground.flags(total).join(" ");
        let (out, line) = match verb {
            Verb::Train { out, auto, total } => {
                let auto = if auto { "--resume-from-checkpoint auto" } else { "" };
                let own = self.runs.get(&name(out)).map_or(total, |run| run.history.total());
                let total = if auto.is_empty() { total } else { own };
                (out, format!("train {} {auto} --output-dir {}", flags(total), name(out)))
            }
            Verb::Overwrite { out, total } => {
                (out, format!("train {} --overwrite-output-dir --output-dir {}", flags(total), name(out)))
            }
            Verb::Import { out } => return (name(out), self.ground.import(Path::new(&name(out)), 2)),
            Verb::Resume { run } => (run, format!("resume {}", name(run))),
            Verb::Longer { run, total } => (run, format!("resume {} --max-steps {total}", name(run))),
            Verb::Elsewhere { from, to } => {
                (to, format!("train --resume-from-checkpoint {} --output-dir {}", name(from), name(to)))
            }
            Verb::Branch { from, to } => {
                let (from, out) = (name(from), name(to));
                let rate = RATES[1];
                let line = format!(
                    "train --branch --resume-from-checkpoint {from} --output-dir {out} --learning-rate {rate}"
                );
                (to, line)
            }
            Verb::Export { run } => (run, format!("export {0} {0}-exported --format hf-trainer", name(run))),
            Verb::Move { .. } | Verb::Delete { .. } => unreachable!("no command"),
        };
        (name(out), words(&line))
    }

    fn command(&mut self, verb: Verb, end: End) -> Result<(), String> {
        let (out, line) = self.words(verb);
        let expect = self.expect(verb, &out);
        let before = (self.runs.get(&out).cloned(), self.replaced(&out));
        let output = self.execute(&line, end);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = |what: &str| Err(format!("{what}: {:?} {stderr}", output.status));
        if stderr.contains("internal error") || stderr.contains("panicked") {
            return told("a panic");
        }
        let saved = saved_step(&String::from_utf8_lossy(&output.stdout));
        match (expect, output.status.code()) {
            (Expect::Refused(_), None) | (Expect::Exports, None) => Ok(()),
            (Expect::Refused(code), Some(found)) if code == found => Ok(()),
            // It ended before it was known whether it was to be refused.
            (Expect::Refused(_), Some(75)) if matches!(end, End::Signal { .. }) => Ok(()),
            (Expect::Refused(code), _) => told(&format!("was to be refused with {code}")),
            (Expect::Exports, Some(0)) => self.check_export(&out),
            (Expect::Exports, _) => told("was to export"),
            (Expect::Runs(run), Some(0)) => {
                self.moved_aside(&out, &before.1)?;
                self.began(&out, run, saved);
                self.check_end(&out)
            }
            (Expect::Runs(run), Some(75)) if matches!(end, End::Signal { .. }) => {
                self.settle(&out, run, before, saved)
            }
            (Expect::Runs(run), None) if end != End::Whole => self.settle(&out, run, before, saved),
            (Expect::Runs(run), Some(65)) if run.robbed && stderr.contains("best adapter") => Ok(()),
            (Expect::Runs(_), _) => told("was to run"),
        }
    }

    fn execute(&self, line: &[String], end: End) -> Output {
        let mut command = program(&self.folder, line);
        if let End::KilledAt { at, half } = end {
            command.env("QWENTUNE_CRASH_AT", format!("{at}{}", if half { "/2" } else { "" }));
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let End::KilledAfter { micros } | End::Signal { micros, .. } = end {
            let signal = if let End::Signal { signal, .. } = end { signal } else { libc::SIGKILL };
            std::thread::sleep(Duration::from_micros(micros));
            let process = rustix::process::Pid::from_child(&child);
            let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
            let _ = rustix::process::kill_process(process, signal);
        }
        child.wait_with_output().unwrap()
    }

    // ---- what must come of it -----------------------------------------------------------------------------

    /// The step a run goes on from, with where its state lies; what refuses it.
    fn found(&self, run: &str) -> Result<Option<(u64, PathBuf, Vec<u8>)>, i32> {
        let Some(known) = self.runs.get(run) else { return Err(65) };
        if let Some((step, bytes)) = states(&self.path(run)).pop_last() {
            return Ok(Some((step, self.path(run), bytes)));
        }
        match &known.origin {
            Some((folder, bytes)) => {
                let there = states(folder).into_iter().find(|(_, found)| found == bytes);
                there.map(|(step, bytes)| Some((step, folder.clone(), bytes))).ok_or(76)
            }
            None if matches!(known.history.root(), History::Imported) || known.history.branched() => Err(76),
            None => Ok(None),
        }
    }

    fn expect(&self, verb: Verb, out: &str) -> Expect {
        let new = |total| {
            Expect::Runs(Run { history: History::New { total }, saved: None, origin: None, robbed: false })
        };
        let known = self.runs.get(out);
        let stray = known.is_none() && !states(&self.path(out)).is_empty();
        match verb {
            Verb::Train { auto: true, .. } if known.is_some() => self.goes_on(out, None),
            Verb::Train { .. } if known.is_some() || stray => Expect::Refused(73),
            Verb::Train { total, .. } | Verb::Overwrite { total, .. } => new(total),
            Verb::Import { .. } if known.is_some() => Expect::Refused(73),
            Verb::Import { .. } => {
                Expect::Runs(Run { history: History::Imported, saved: None, origin: None, robbed: false })
            }
            Verb::Resume { .. } => self.goes_on(out, None),
            Verb::Longer { total, .. } => self.goes_on(out, Some(total)),
            Verb::Elsewhere { from, .. } => self.elsewhere(&name(from), out, stray, false),
            Verb::Branch { from, .. } => self.elsewhere(&name(from), out, stray, true),
            Verb::Export { .. } if states(&self.path(out)).is_empty() => Expect::Refused(65),
            Verb::Export { .. } if self.path(&format!("{out}-exported")).exists() => Expect::Refused(73),
            _ => Expect::Exports,
        }
    }

    fn goes_on(&self, run: &str, total: Option<u64>) -> Expect {
        let step = match self.found(run) {
            Err(code) => return Expect::Refused(code),
            Ok(found) => found.map_or(0, |(step, ..)| step),
        };
        let known = &self.runs[run];
        let total = total.unwrap_or(known.history.total());
        if total < step {
            return Expect::Refused(76);
        }
        Expect::Runs(Run { history: known.history.longer(step, total), ..known.clone() })
    }

    fn elsewhere(&self, from: &str, to: &str, stray: bool, branch: bool) -> Expect {
        let theirs = match self.found(from) {
            Err(code) => Err(code),
            Ok(None) => Err(65),
            Ok(Some(found)) => Ok(found),
        };
        if let (Some(there), Some(run)) = (self.runs.get(to), self.runs.get(from))
            && let Some((folder, bytes)) = &there.origin
            && there.history.branched_at_last() == branch
            && (*folder == self.path(from) || run.origin.as_ref().is_some_and(|(_, theirs)| theirs == bytes))
        {
            return self.goes_on(to, None);
        }
        let (step, folder, bytes) = match theirs {
            Err(code) => return Expect::Refused(code),
            Ok(_) if stray || self.runs.contains_key(to) => return Expect::Refused(73),
            Ok(found) => found,
        };
        let parent = &self.runs[from];
        let own = folder == self.path(from);
        let origin = Some((folder, bytes));
        let history = match branch {
            true if parent.history.total() <= step => return Expect::Refused(76),
            // A branch that has saved nothing yet, and nothing else is changed.
            true if !own && parent.history.branched_at_last() => parent.history.clone(),
            true => History::Branch(Box::new(parent.history.clone()), step),
            false => parent.history.clone(),
        };
        Expect::Runs(Run { history, saved: None, origin, robbed: parent.robbed })
    }

    // ---- afterwards ---------------------------------------------------------------------------------------

    fn began(&mut self, out: &str, run: Run, saved: Option<u64>) {
        let saved = saved.or(run.saved);
        self.runs.insert(out.to_owned(), Run { saved, ..run });
    }

    /// The runs that were moved aside in a folder.
    fn replaced(&self, out: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(out)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("replaced-run-")).map(|name| format!("{out}/{name}")).collect()
    }

    /// An earlier run that was moved aside is there as the same run.
    fn moved_aside(&mut self, out: &str, before: &[String]) -> Result<bool, String> {
        let Some(new) = self.replaced(out).into_iter().find(|name| !before.contains(name)) else {
            return Ok(false);
        };
        if let Some(old) = self.runs.remove(out) {
            self.runs.insert(new, old);
        }
        Ok(true)
    }

    /// A command was ended: what it was to do is done, or not.
    fn settle(
        &mut self,
        out: &str,
        after: Run,
        (old, replaced): (Option<Run>, Vec<String>),
        saved: Option<u64>,
    ) -> Result<(), String> {
        if self.path(out).join(".replaced-run.tmp").exists() {
            // Whoever looks at the folder next ends the moving aside.
            let _ = program(&self.folder, &words(&format!("resume {out}"))).output().unwrap();
        }
        let moved = self.moved_aside(out, &replaced)?;
        let path = self.path(out).join("run.json");
        let Ok(bytes) = std::fs::read(&path) else {
            return if self.runs.contains_key(out) {
                Err(format!("{out}: run.json is gone"))
            } else {
                Ok(())
            };
        };
        let file = RunFile::parse(&path, &bytes).map_err(|e| e.to_string())?;
        let total = file.history.length().map_or(0, |length| length.total_steps);
        let is_new = moved || old.is_none() || total == after.history.total();
        let run = if is_new { after } else { old.expect("there was one") };
        if total != run.history.total() {
            return Err(format!("{out}: run.json says {total} steps, expected {:?}", run.history));
        }
        self.began(out, run, saved);
        Ok(())
    }

    fn move_run(&mut self, from: &str, to: &str) {
        let (old, new) = (self.path(from), self.path(to));
        if !self.runs.contains_key(from) || new.exists() {
            return;
        }
        std::fs::rename(old, new).unwrap();
        let below = |name: &String| name == from || name.starts_with(&format!("{from}/"));
        let moved: Vec<String> = self.runs.keys().filter(|name| below(name)).cloned().collect();
        for name in moved {
            let run = self.runs.remove(&name).expect("listed");
            self.runs.insert(format!("{to}{}", &name[from.len()..]), run);
        }
    }

    fn lose_newest(&mut self, run: &str) {
        let all = states(&self.path(run));
        let (Some((step, _)), Some(known)) = (all.last_key_value(), self.runs.get_mut(run)) else { return };
        std::fs::remove_file(inspect::path_of_step(&self.folder.join(run), *step)).unwrap();
        known.saved = all.keys().rev().nth(1).copied();
        known.robbed = true;
    }

    // ---- what must always be true -------------------------------------------------------------------------

    fn check(&self) -> Result<(), String> {
        for (name, run) in &self.runs {
            let states = states(&self.path(name));
            let reference = self.ground.reference(&run.history);
            for (step, bytes) in &states {
                if reference.states.get(step) != Some(bytes) {
                    return Err(format!(
                        "{name}: step {step} has other bytes than {:?} uninterrupted",
                        run.history
                    ));
                }
            }
            let newest = states.keys().next_back().copied();
            if newest < run.saved {
                return Err(format!("{name}: step {:?} was saved, the newest is {newest:?}", run.saved));
            }
        }
        Ok(())
    }

    fn check_end(&self, out: &str) -> Result<(), String> {
        let Some(run) = self.runs.get(out) else { return Ok(()) };
        let path = self.path(out);
        if run.history == History::Imported && !path.join("adapter").exists() {
            return Ok(());
        }
        let reference = self.ground.reference(&run.history);
        let adapter = std::fs::read(path.join("adapter/adapter_model.safetensors")).unwrap_or_default();
        if adapter != reference.adapter {
            return Err(format!("{out}: another adapter than {:?} uninterrupted", run.history));
        }
        if metrics_without_clock(&path) != reference.metrics {
            return Err(format!("{out}: another log than {:?} uninterrupted", run.history));
        }
        let page = std::fs::read(path.join("report.html")).unwrap_or_default();
        if page.is_empty() { Err(format!("{out}: no report.html")) } else { Ok(()) }
    }

    /// The export is that of the same state of the run without interruptions.
    fn check_export(&self, run: &str) -> Result<(), String> {
        let out = self.path(&format!("{run}-exported"));
        let Some((step, _)) = states(&self.path(run)).pop_last() else {
            return Err("nothing to export".into());
        };
        let history = &self.runs.get(run).ok_or("no run, and yet exported")?.history;
        let reference = self.ground.reference(history).folder;
        let from = self.ground.holder(history, step, reference);
        let wanted = self.path("wanted");
        let line = format!("export {} {} --format hf-trainer", from.display(), wanted.display());
        crate::walks::real::run(&self.folder, &words(&line));
        for entry in std::fs::read_dir(&wanted).unwrap() {
            let name = entry.unwrap().file_name();
            if std::fs::read(wanted.join(&name)).ok() != std::fs::read(out.join(&name)).ok() {
                return Err(format!("{run}: another {name:?} was exported"));
            }
        }
        std::fs::remove_dir_all(wanted).unwrap();
        std::fs::remove_dir_all(out).unwrap();
        Ok(())
    }
}

impl History {
    fn root(&self) -> &History {
        match self {
            History::New { .. } | History::Imported => self,
            History::Longer(parent, ..) | History::Branch(parent, _) => parent.root(),
        }
    }

    /// Whether the run began as a branch.
    fn branched_at_last(&self) -> bool {
        match self {
            History::New { .. } | History::Imported => false,
            History::Longer(parent, ..) => parent.branched_at_last(),
            History::Branch(..) => true,
        }
    }
}

/// The newest step that a run said it saved.
fn saved_step(stdout: &str) -> Option<u64> {
    let saved = stdout.lines().filter_map(|line| line.strip_prefix("saved "));
    saved.filter_map(|path| step_of(Path::new(path).file_name()?.to_str()?)).max()
}

// ---- walks ------------------------------------------------------------------------------------------------

fn random(seed: u64) -> Vec<Step> {
    let mut rng = Rng(seed);
    (0..LENGTH).map(|_| (verb(&mut rng), end(&mut rng))).collect()
}

fn verb(rng: &mut Rng) -> Verb {
    let (from, total) = (rng.below(3), [3, 4, 5, 6, 31][rng.below(5)]);
    let to = (from + 1 + rng.below(2)) % 3;
    match rng.below(16) {
        0..=2 => Verb::Train { out: from, auto: rng.coin(), total },
        3 => Verb::Overwrite { out: from, total },
        4 => Verb::Import { out: from },
        5..=7 => Verb::Resume { run: from },
        8..=9 => Verb::Longer { run: from, total },
        10 => Verb::Elsewhere { from, to },
        11..=12 => Verb::Branch { from, to },
        13 => Verb::Export { run: from },
        14 => Verb::Move { from, to },
        _ => Verb::Delete { run: from },
    }
}

fn end(rng: &mut Rng) -> End {
    let micros = rng.below(60_000) as u64;
    let signals = [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR2, libc::SIGINT];
    match rng.below(8) {
        0..=2 => End::Whole,
        3..=4 => End::KilledAt { at: 1 + rng.below(90) as u64, half: rng.coin() },
        5 => End::KilledAfter { micros },
        _ => End::Signal { signal: signals[rng.below(4)], micros },
    }
}

fn fault_of(ground: &Ground, seed: u64, steps: &[Step]) -> Option<(usize, String)> {
    let folder = ground.folder.join(format!("walk-{seed}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let mut walk = Walk { ground, folder, runs: BTreeMap::new() };
    let found = steps.iter().enumerate().find_map(|(at, step)| Some((at, walk.step(*step).err()?)));
    if found.is_none() {
        let _ = std::fs::remove_dir_all(&walk.folder);
    }
    found
}

/// The shortest walk with a fault that leaving out commands, one after the other, finds.
fn shrunk(ground: &Ground, seed: u64, mut steps: Vec<Step>) -> Vec<Step> {
    let mut at = 0;
    while at < steps.len() {
        let mut without = steps.clone();
        without.remove(at);
        // What a clock decides is not the same each time.
        if (0..3).any(|_| fault_of(ground, seed, &without).is_some()) { steps = without } else { at += 1 }
    }
    steps
}

#[test]
fn real_runs_keep_their_promises_on_random_walks() {
    let ground = Ground::new("walks-real");
    let walks = super::number("QWENTUNE_REAL_WALKS").unwrap_or(if full() { 300 } else { 12 });
    let first = super::number("QWENTUNE_WALK_SEED").unwrap_or(1);
    let (next, begin) = (AtomicU64::new(first), Instant::now());
    let failed = Mutex::new(None);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + walks || failed.lock().unwrap().is_some() {
                return;
            }
            if let Some((at, text)) = fault_of(&ground, seed, &random(seed)) {
                failed.lock().unwrap().get_or_insert((seed, at, text));
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| _ = scope.spawn(work)));
    if let Some((seed, at, text)) = failed.into_inner().unwrap() {
        let steps = random(seed);
        let short = shrunk(&ground, seed, steps[..=at].to_vec());
        panic!("seed {seed}: {text}\n{short:#?}");
    }
    println!("{walks} walks of {LENGTH} commands from seed {first}, {:.1} s", begin.elapsed().as_secs_f64());
}
