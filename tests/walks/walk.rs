//! A walk: commands as users give them, each whole, stopped, killed or cut off, and what must be true after each.

use super::disk::SimDisk;
use super::model::{Recipe, SEED, WARMUP};
use super::toy::{self, Toy};
use crate::checkpoint::disk::Rng;
use qwentune::checkpoint::format::{Digest, Reading, read};
use qwentune::checkpoint::shelf::step_of;
use qwentune::checkpoint::state::State;
use qwentune::config::{Layer, fields};
use qwentune::error::{Error, Kind};
use qwentune::report::event::Event;
use qwentune::train::run_file::RunFile;
use qwentune::train::start::{Fault, World, resume_in, train_in};
use qwentune::train::{Control, Request, Summary};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const FOLDERS: [&str; 3] = ["a", "b", "c"];
const RATES: [f64; 2] = [0.5, 0.25];

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    Train {
        out: usize,
        auto: bool,
        rate: usize,
        batch: usize,
        total: u64,
    },
    Overwrite {
        out: usize,
        rate: usize,
        total: u64,
    },
    Resume {
        run: usize,
    },
    Longer {
        run: usize,
        total: u64,
    },
    Evaluate {
        run: usize,
        every: u64,
    },
    Elsewhere {
        from: usize,
        to: usize,
    },
    Branch {
        from: usize,
        to: usize,
        rate: usize,
        batch: usize,
    },
    /// What users do to folders between two commands.
    Move {
        from: usize,
        to: usize,
    },
    Delete {
        run: usize,
    },
    Flip {
        run: usize,
        place: u64,
    },
}

/// How it ends, where it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Whole,
    Stop { steps: u64 },
    Kill { at: u64 },
    PowerLoss { at: u64, dice: u64 },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub verb: Verb,
    pub end: End,
}

/// A run as it must be.
#[derive(Clone, Debug)]
struct Run {
    recipe: Recipe,
    /// The newest step that was said to be saved.
    saved: Option<u64>,
    /// A checkpoint was taken away: the best adapter of an older one may be gone with it.
    robbed: bool,
    /// The state of another run it began with.
    origin: Option<Origin>,
}

/// A state of another run that one began with.
#[derive(Clone, Debug, PartialEq)]
struct Origin {
    branch: bool,
    /// The folder the state lies in.
    folder: String,
    step: u64,
    digest: Digest,
}

/// What is in a folder.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    NoRun,
    /// Checkpoints, none of which is whole.
    Damaged,
    /// It began with a state of another run that is gone.
    OriginGone,
    /// No checkpoint yet.
    Beginning,
    /// The state it goes on with, and where it lies.
    State(Origin),
}

/// What must become of a command.
enum Expect {
    Refused(Kind),
    /// It goes on as this, with the origin it has or now gets.
    Runs(Recipe, Option<Origin>),
}

pub struct Walk {
    disk: SimDisk,
    runs: BTreeMap<String, Run>,
    fault: Option<Fault>,
}

struct Outcome {
    result: Result<Summary, Error>,
    saved: Vec<u64>,
}

/// A walk of `length` commands.
pub fn random(rng: &mut Rng, length: usize) -> Vec<Command> {
    (0..length).map(|_| command(rng)).collect()
}

fn command(rng: &mut Rng) -> Command {
    let folder = |rng: &mut Rng| rng.below(FOLDERS.len());
    let total = |rng: &mut Rng| 3 + rng.below(12) as u64;
    let pair = |rng: &mut Rng| {
        let from = rng.below(3);
        (from, (from + 1 + rng.below(2)) % 3)
    };
    let verb = match rng.below(16) {
        0..=2 => Verb::Train {
            out: folder(rng),
            auto: rng.coin(),
            rate: rng.below(2),
            batch: 1 + rng.below(2),
            total: total(rng),
        },
        3 => Verb::Overwrite { out: folder(rng), rate: rng.below(2), total: total(rng) },
        4..=6 => Verb::Resume { run: folder(rng) },
        7..=8 => Verb::Longer { run: folder(rng), total: total(rng) },
        9 => Verb::Evaluate { run: folder(rng), every: 1 + rng.below(4) as u64 },
        10..=11 => {
            let (from, to) = pair(rng);
            Verb::Elsewhere { from, to }
        }
        12 => {
            let (from, to) = pair(rng);
            Verb::Branch { from, to, rate: rng.below(2), batch: 1 + rng.below(2) }
        }
        13 => {
            let (from, to) = pair(rng);
            Verb::Move { from, to }
        }
        14 => Verb::Delete { run: folder(rng) },
        _ => Verb::Flip { run: folder(rng), place: rng.next() },
    };
    let at = |rng: &mut Rng| {
        let most = if rng.coin() { 60 } else { 500 };
        1 + rng.below(most) as u64
    };
    let end = match rng.below(6) {
        0..=1 => End::Whole,
        2..=3 => End::Stop { steps: rng.below(6) as u64 },
        4 => End::Kill { at: at(rng) },
        _ => End::PowerLoss { at: at(rng), dice: rng.next() },
    };
    Command { verb, end }
}

/// Settings by their keys.
pub fn given(pairs: &[(&str, Value)]) -> Layer {
    let mut layer = Layer::default();
    for (key, value) in pairs {
        layer.set(fields::find(key).unwrap_or_else(|| panic!("{key}")), value.clone());
    }
    layer
}

/// Everything a new run is told.
fn whole_request(recipe: &Recipe, out: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("output_dir", json!(out)),
        ("learning_rate", json!(recipe.lr)),
        ("per_device_train_batch_size", json!(recipe.batch)),
        ("max_steps", json!(recipe.total())),
        ("warmup_steps", json!(WARMUP as f64)),
        ("seed", json!(SEED)),
        ("save_steps", json!(1000.0)),
        ("save_total_limit", json!(2)),
        ("eval_strategy", json!("steps")),
        ("eval_steps", json!(recipe.every() as f64)),
        ("load_best_model_at_end", json!(true)),
    ]
}

impl Walk {
    pub fn new(fault: Option<Fault>) -> Self {
        Walk { disk: SimDisk::new(), runs: BTreeMap::new(), fault }
    }

    /// Does one command, and checks all that must be true.
    ///
    /// # Errors
    /// What is wrong.
    pub fn step(&mut self, command: &Command) -> Result<(), String> {
        match command.verb {
            Verb::Move { from, to } => self.move_folder(FOLDERS[from], FOLDERS[to]),
            Verb::Delete { run } => self.lose_newest(FOLDERS[run], None),
            Verb::Flip { run, place } => self.lose_newest(FOLDERS[run], Some(place)),
            _ => self.run(command)?,
        }
        self.check()
    }

    fn run(&mut self, command: &Command) -> Result<(), String> {
        let (out, pairs) = self.request(&command.verb);
        let overwrites = matches!(command.verb, Verb::Overwrite { .. }) && self.runs.contains_key(out);
        let expect = self.expect(&command.verb, out);
        let before = self.disk.files("");
        let outcome = self.execute(out, &pairs, command);
        if self.disk.has_ended() {
            self.disk = match command.end {
                End::PowerLoss { dice, .. } => self.disk.after_power_loss(&mut Rng(dice)),
                _ => self.disk.after_kill(),
            };
            if matches!(command.end, End::Kill { .. }) {
                // The system goes on, and writes what it has to the disk.
                self.disk.settle();
            }
            return self.settle(out, &expect, overwrites, &before, &outcome.saved);
        }
        match (&expect, &outcome.result) {
            (Expect::Refused(kind), Err(error)) if error.kind == *kind || is_damage(*kind, error) => {
                let unlocked = |files: BTreeMap<String, Vec<u8>>| -> BTreeMap<String, Vec<u8>> {
                    files.into_iter().filter(|(name, _)| !name.ends_with(".lock")).collect()
                };
                let same = unlocked(before) == unlocked(self.disk.files(""));
                if same { Ok(()) } else { Err(format!("refused ({error}), and yet something was changed")) }
            }
            (Expect::Runs(recipe, origin), Ok(summary)) => {
                self.began(out, (recipe, origin), overwrites, &before, &outcome.saved)?;
                self.check_end(out, recipe, summary)
            }
            (Expect::Runs(recipe, origin), Err(error)) if error.kind == Kind::Stopped => {
                self.began(out, (recipe, origin), overwrites, &before, &outcome.saved)
            }
            (Expect::Refused(kind), Ok(_)) => Err(format!("was to be refused with {kind:?}, and ran")),
            (Expect::Refused(kind), Err(error)) => {
                Err(format!("expected {kind:?}: {:?} {error}", error.kind))
            }
            (Expect::Runs(..), Err(error)) if self.may_lack_best(&command.verb, error) => Ok(()),
            (Expect::Runs(..), Err(error)) => Err(format!("was to run: {:?} {error}", error.kind)),
        }
    }

    /// The folder a command is about, and its settings.
    fn request(&self, verb: &Verb) -> (&'static str, Vec<(&'static str, Value)>) {
        match *verb {
            Verb::Train { out, auto, rate, batch, total } => {
                let out = FOLDERS[out];
                let mut recipe = Recipe::new(RATES[rate], batch, total, 3);
                if auto && let Some(run) = self.runs.get(out) {
                    // The same line as before, as a requeue loop gives it.
                    recipe = run.recipe.clone();
                }
                let mut pairs = whole_request(&recipe, out);
                if auto {
                    pairs.push(("resume_from_checkpoint", json!("auto")));
                }
                (out, pairs)
            }
            Verb::Overwrite { out, rate, total } => {
                let mut pairs = whole_request(&Recipe::new(RATES[rate], 1, total, 3), FOLDERS[out]);
                pairs.push(("overwrite_output_dir", json!(true)));
                (FOLDERS[out], pairs)
            }
            Verb::Resume { run } => (FOLDERS[run], Vec::new()),
            Verb::Longer { run, total } => (FOLDERS[run], vec![("max_steps", json!(total))]),
            Verb::Evaluate { run, every } => (FOLDERS[run], vec![("eval_steps", json!(every as f64))]),
            Verb::Elsewhere { from, to } => {
                let from = json!({ "path": FOLDERS[from] });
                (FOLDERS[to], vec![("resume_from_checkpoint", from), ("output_dir", json!(FOLDERS[to]))])
            }
            Verb::Branch { from, to, rate, batch } => (
                FOLDERS[to],
                vec![
                    ("branch", json!(true)),
                    ("resume_from_checkpoint", json!({ "path": FOLDERS[from] })),
                    ("output_dir", json!(FOLDERS[to])),
                    ("learning_rate", json!(RATES[rate])),
                    ("per_device_train_batch_size", json!(batch)),
                ],
            ),
            Verb::Move { .. } | Verb::Delete { .. } | Verb::Flip { .. } => ("", Vec::new()),
        }
    }

    fn execute(&self, out: &str, pairs: &[(&'static str, Value)], command: &Command) -> Outcome {
        match command.end {
            End::Kill { at } | End::PowerLoss { at, .. } => self.disk.end_at(at),
            End::Whole | End::Stop { .. } => self.disk.never_end(),
        }
        let control = Control::default();
        let (asker, mut steps, mut saved) = (control.clone(), 0, Vec::new());
        let mut observer = |event: &Event| match event {
            Event::Started { .. } if command.end == (End::Stop { steps: 0 }) => asker.request_stop(),
            Event::Step { line, .. } => {
                // Saves that are waited for, so that a walk is the same each time.
                if line.step.is_multiple_of(2) {
                    asker.request_save();
                }
                steps += 1;
                if command.end == (End::Stop { steps }) {
                    asker.request_stop();
                }
            }
            Event::Saved { step, .. } => saved.push(*step),
            _ => {}
        };
        let request = Request { given: given(pairs), rows: Some(toy::rows()), ..Request::default() };
        let world = World { disk: &self.disk, prepare: &Toy, fault: self.fault };
        let resumes =
            matches!(command.verb, Verb::Resume { .. } | Verb::Longer { .. } | Verb::Evaluate { .. });
        let result = if resumes {
            resume_in(&world, Path::new(out), request, &control, &mut observer)
        } else {
            train_in(&world, request, &control, &mut observer)
        };
        Outcome { result, saved }
    }

    /// Of a run that a checkpoint was taken away from, the best adapter that an older one names may be gone.
    fn may_lack_best(&self, verb: &Verb, error: &Error) -> bool {
        let of = match *verb {
            Verb::Elsewhere { from, .. } | Verb::Branch { from, .. } => from,
            Verb::Longer { run, .. } | Verb::Evaluate { run, .. } => run,
            _ => return false,
        };
        let robbed = self.runs.get(FOLDERS[of]).is_some_and(|run| run.robbed);
        robbed && error.kind == Kind::Input && error.what.contains("best adapter so far")
    }

    // ---- what must come of it -----------------------------------------------------------------------------

    fn expect(&self, verb: &Verb, out: &str) -> Expect {
        let (total, every) = match verb {
            Verb::Longer { total, .. } => (Some(*total), None),
            Verb::Evaluate { every, .. } => (None, Some(*every)),
            _ => (None, None),
        };
        match *verb {
            Verb::Train { auto: false, .. } if self.runs.contains_key(out) => Expect::Refused(Kind::Output),
            Verb::Train { auto: true, .. } if self.runs.contains_key(out) => self.goes_on(out, None, None),
            Verb::Train { rate, batch, total, .. } => {
                Expect::Runs(Recipe::new(RATES[rate], batch, total, 3), None)
            }
            Verb::Overwrite { rate, total, .. } => Expect::Runs(Recipe::new(RATES[rate], 1, total, 3), None),
            Verb::Elsewhere { from, to } => self.elsewhere(FOLDERS[from], FOLDERS[to], None),
            Verb::Branch { from, to, rate, batch } => {
                self.elsewhere(FOLDERS[from], FOLDERS[to], Some((RATES[rate], batch)))
            }
            _ => self.goes_on(out, total, every),
        }
    }

    fn goes_on(&self, folder: &str, total: Option<u64>, every: Option<u64>) -> Expect {
        let step = match self.found(folder) {
            Found::NoRun | Found::Damaged => return Expect::Refused(Kind::Input),
            Found::OriginGone => return Expect::Refused(Kind::Refused),
            Found::Beginning => 0,
            Found::State(origin) => origin.step,
        };
        let run = &self.runs[folder];
        let recipe = run.recipe.changed(step, total, every);
        if recipe.total() < step {
            Expect::Refused(Kind::Refused)
        } else {
            Expect::Runs(recipe, run.origin.clone())
        }
    }

    fn elsewhere(&self, from: &str, to: &str, branch: Option<(f64, usize)>) -> Expect {
        if !self.runs.contains_key(from) {
            return Expect::Refused(Kind::Input);
        }
        let there = self.runs.get(to);
        if there.is_some() && self.began_from(to, from, branch.is_some()) {
            let same =
                |run: &Run| branch.is_none_or(|(lr, batch)| run.recipe.lr == lr && run.recipe.batch == batch);
            return match self.goes_on(to, None, None) {
                Expect::Runs(..) if !there.is_some_and(same) => Expect::Refused(Kind::Refused),
                other => other,
            };
        }
        let state = match self.found(from) {
            Found::NoRun | Found::Damaged | Found::Beginning => return Expect::Refused(Kind::Input),
            Found::OriginGone => return Expect::Refused(Kind::Refused),
            Found::State(state) => state,
        };
        if there.is_some() {
            return Expect::Refused(Kind::Output);
        }
        let recipe = &self.runs[from].recipe;
        let own = state.folder == from;
        let origin = Some(Origin { branch: branch.is_some() || state.branch, ..state.clone() });
        match branch {
            None => Expect::Runs(recipe.clone(), origin),
            Some(_) if recipe.total() <= state.step => Expect::Refused(Kind::Refused),
            Some((lr, batch)) => Expect::Runs(recipe.branch(state.step, own, lr, batch), origin),
        }
    }

    /// Whether the run in `to` began with a state of the run in `from`.
    fn began_from(&self, to: &str, from: &str, branch: bool) -> bool {
        let Some(origin) = &self.runs[to].origin else { return false };
        let as_theirs =
            |theirs: &Origin| theirs.digest == origin.digest && origin.branch == (branch || theirs.branch);
        let theirs = self.runs[from].origin.as_ref();
        theirs.is_some_and(as_theirs) || origin.branch == branch && origin.folder == from
    }

    fn run_file(&self, folder: &str) -> Option<RunFile> {
        let files = self.disk.files(folder);
        let bytes = files.get("run.json")?;
        RunFile::parse(Path::new(folder), bytes).ok()
    }

    /// The whole checkpoints of a folder, by step, with their digests.
    fn states(&self, folder: &str) -> BTreeMap<u64, (Digest, State)> {
        let files = self.disk.files(&format!("{folder}/checkpoints"));
        let whole = files.iter().filter(|(name, _)| step_of(name).is_some());
        let parsed = whole.filter_map(|(_, bytes)| read(&&bytes[..], Reading::Load).ok());
        parsed.map(|(header, state)| (state.step, (header.digest, state))).collect()
    }

    fn found(&self, folder: &str) -> Found {
        let Some(run) = self.runs.get(folder) else { return Found::NoRun };
        if let Some((step, (digest, _))) = self.states(folder).pop_last() {
            return Found::State(Origin { branch: false, folder: folder.to_owned(), step, digest });
        }
        let files = self.disk.files(&format!("{folder}/checkpoints"));
        if files.keys().any(|name| step_of(name.trim_end_matches(".bad")).is_some()) {
            return Found::Damaged;
        }
        let Some(origin) = &run.origin else { return Found::Beginning };
        let there = self.states(&origin.folder).into_values().any(|(digest, _)| digest == origin.digest);
        if there { Found::State(origin.clone()) } else { Found::OriginGone }
    }

    // ---- afterwards ---------------------------------------------------------------------------------------

    /// A command began its run.
    fn began(
        &mut self,
        out: &str,
        (recipe, origin): (&Recipe, &Option<Origin>),
        overwrites: bool,
        before: &BTreeMap<String, Vec<u8>>,
        saved: &[u64],
    ) -> Result<(), String> {
        if overwrites {
            self.moved_aside(out, before, true)?;
        }
        let old = self.runs.get(out).and_then(|run| run.saved);
        let robbed = self.runs.get(out).is_some_and(|run| run.robbed);
        let (recipe, origin) = (recipe.clone(), origin.clone());
        self.runs
            .insert(out.to_owned(), Run { recipe, saved: saved.last().copied().or(old), robbed, origin });
        Ok(())
    }

    /// The old run must lie in `replaced-run-N`, as it was.
    fn moved_aside(
        &mut self,
        out: &str,
        before: &BTreeMap<String, Vec<u8>>,
        all: bool,
    ) -> Result<(), String> {
        let old = self.runs.remove(out).expect("there was one");
        let now = self.disk.files(out);
        let is_new = |n: &u32| {
            let name = format!("replaced-run-{n}/run.json");
            now.contains_key(&name) && !before.contains_key(&format!("{out}/{name}"))
        };
        let number = (1..9).find(is_new).ok_or("the old run is in no replaced-run-N")?;
        let kept = format!("replaced-run-{number}");
        for (name, bytes) in before {
            let Some(name) = name.strip_prefix(&format!("{out}/")) else { continue };
            let durable = name == "run.json" || name.ends_with(".qckpt");
            if name.starts_with("replaced-run-") || name.starts_with('.') || !(all || durable) {
                continue;
            }
            if name.contains(".tmp") || now.get(&format!("{kept}/{name}")) == Some(bytes) {
                continue;
            }
            return Err(format!("{name} of the old run is not in {out}/{kept} as it was"));
        }
        self.runs.insert(format!("{out}/{kept}"), old);
        Ok(())
    }

    /// A command was killed: what it was to do is done, or not.
    fn settle(
        &mut self,
        out: &str,
        expect: &Expect,
        overwrites: bool,
        before: &BTreeMap<String, Vec<u8>>,
        saved: &[u64],
    ) -> Result<(), String> {
        let interrupted =
            |disk: &SimDisk| disk.files(out).keys().any(|name| name.starts_with(".replaced-run.tmp/"));
        if interrupted(&self.disk) {
            let command = Command { verb: Verb::Resume { run: 0 }, end: End::Stop { steps: 1 } };
            let _ = self.execute(out, &[], &command);
            if interrupted(&self.disk) {
                return Err("a moving aside that was interrupted is not ended".into());
            }
        }
        let moved = overwrites && {
            let new = |name: &String| name.starts_with("replaced-run-") && name.ends_with("/run.json");
            let count = |files: BTreeMap<String, Vec<u8>>| files.keys().filter(|name| new(name)).count();
            let here = |(name, bytes): (&String, &Vec<u8>)| {
                Some((name.strip_prefix(&format!("{out}/"))?.to_owned(), bytes.clone()))
            };
            count(self.disk.files(out)) > count(before.iter().filter_map(here).collect())
        };
        if moved {
            self.moved_aside(out, before, false)?;
        }
        let Some(run) = self.run_file(out) else {
            return if self.runs.contains_key(out) { Err("run.json is gone".into()) } else { Ok(()) };
        };
        let after = match expect {
            Expect::Runs(recipe, origin) if recipe.is_that_of(&run) => Some((recipe.clone(), origin.clone())),
            _ => None,
        };
        match (after, self.runs.get_mut(out)) {
            (Some((recipe, origin)), None) => {
                let saved = saved.last().copied();
                self.runs.insert(out.to_owned(), Run { recipe, saved, robbed: false, origin });
            }
            (Some((recipe, _)), Some(old)) => {
                old.recipe = recipe;
                old.saved = saved.last().copied().or(old.saved);
            }
            (None, Some(old)) if old.recipe.is_that_of(&run) => {}
            (None, _) => {
                return Err(format!("run.json is neither of before nor of after: {:?}", run.history));
            }
        }
        Ok(())
    }

    fn move_folder(&mut self, from: &str, to: &str) {
        let there = |name: &str| !self.disk.files(name).is_empty();
        if !there(from) || there(to) {
            return;
        }
        self.disk.rename_path(from, to);
        self.disk.settle();
        let moved: Vec<String> = self
            .runs
            .keys()
            .filter(|name| *name == from || name.starts_with(&format!("{from}/")))
            .cloned()
            .collect();
        for name in moved {
            let run = self.runs.remove(&name).expect("listed");
            self.runs.insert(format!("{to}{}", &name[from.len()..]), run);
        }
    }

    /// The newest checkpoint is deleted, or a bit of it flips.
    fn lose_newest(&mut self, folder: &str, flip: Option<u64>) {
        let states = self.states(folder);
        let (Some((step, _)), Some(run)) = (states.last_key_value(), self.runs.get_mut(folder)) else {
            return;
        };
        let path = format!("{folder}/checkpoints/step-{step:08}.qckpt");
        match flip {
            None => self.disk.remove(&path),
            Some(place) => self.disk.tamper(&path, |bytes| {
                let at = place as usize % bytes.len();
                bytes[at] ^= 1 << (place >> 60 & 7);
            }),
        }
        self.disk.settle();
        run.saved = states.keys().rev().nth(1).copied();
        run.robbed = true;
    }

    // ---- what must always be true -------------------------------------------------------------------------

    fn check(&self) -> Result<(), String> {
        for (folder, run) in &self.runs {
            let file = self.run_file(folder).ok_or_else(|| format!("{folder}: no run.json"))?;
            if !run.recipe.is_that_of(&file) {
                return Err(format!(
                    "{folder}: run.json says {:?}, asked for was {:?}",
                    file.history, run.recipe
                ));
            }
            let states = self.states(folder);
            if let Some(fault) = states.values().find_map(|(_, state)| run.recipe.fault_of(state)) {
                return Err(format!("{folder}: {fault}"));
            }
            let newest = states.keys().next_back().copied();
            if newest < run.saved {
                return Err(format!("{folder}: step {:?} was saved, the newest is {newest:?}", run.saved));
            }
        }
        Ok(())
    }

    /// What a run that ended must have left.
    fn check_end(&self, folder: &str, recipe: &Recipe, summary: &Summary) -> Result<(), String> {
        let files = self.disk.files(folder);
        let expected = recipe.expected(recipe.total());
        if summary.step != recipe.total() {
            return Err(format!("{folder}: ended at step {} of {}", summary.step, recipe.total()));
        }
        let lines =
            qwentune::report::jsonl::read(files.get("metrics.jsonl").ok_or("no metrics.jsonl")?).lines;
        if lines.iter().map(|line| line.logged).ne(expected.log.iter().copied()) {
            return Err(format!("{folder}: metrics.jsonl is another"));
        }
        let (_, best) = expected.best.ok_or("no evaluation")?;
        let weights = recipe.expected(best).numbers.weights;
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let adapter = files.get("adapter/adapter_model.safetensors").ok_or("no adapter")?;
        if !adapter.ends_with(&bytes) {
            return Err(format!("{folder}: the adapter is not that of the best step {best}"));
        }
        match files.keys().find(|name| name.ends_with(".tmp") && !name.starts_with("replaced-run-")) {
            Some(left) => Err(format!("{folder}: {left} is left")),
            None => Ok(()),
        }
    }
}

/// A state that a run began with is refused when it is gone, and named as wrong input when it is damaged.
fn is_damage(expected: Kind, error: &Error) -> bool {
    expected == Kind::Refused && error.kind == Kind::Input && error.what.contains("/checkpoints/step-")
}
