//! A run under way: from the state it begins with to the files it leaves.

use super::folder::{self, RunFolder};
use super::metrics::Metrics;
use super::trainer::Trainer;
use super::{Control, Request, Summary};
use crate::checkpoint::store::{Outcome, Store, Wait};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::formats::{peft, weight_map::WeightMap};
use crate::identity::Identity;
use crate::report::event::{Event, Observer};
use crate::report::html;
use crate::report::jsonl::Line;
use crate::report::line::{EvalLine, LogLine};
use std::time::{Duration, Instant};

/// How long the forward pass after a stop may take: well inside the 30 seconds a scheduler grants.
const LONGEST_LAST_PASS: Duration = Duration::from_secs(8);

/// A run under way.
pub(super) struct Run<'a> {
    settings: Settings,
    folder: RunFolder,
    store: Store,
    trainer: Trainer,
    identity: Identity,
    /// The run was imported, or continued inexactly at some time.
    tainted: bool,
    /// It is now: this process need not repeat what an earlier one computed.
    inexact: bool,
    log: Vec<LogLine>,
    metrics: Metrics,
    control: &'a Control,
    observer: &'a mut dyn Observer,
    weights: WeightMap,
    summary: Summary,
    /// The newest step whose checkpoint is durable.
    last_saved: Option<u64>,
    request: Request,
}

/// What a run begins with: its folder is its own, its state is in place, nothing has been computed yet.
pub(super) struct Begun {
    pub request: Request,
    pub settings: Settings,
    pub folder: RunFolder,
    pub store: Store,
    pub trainer: Trainer,
    pub identity: Identity,
    /// The run was imported, or continued inexactly at some time.
    pub tainted: bool,
    /// It is now: this process need not repeat what an earlier one computed.
    pub inexact: bool,
    pub log: Vec<LogLine>,
    pub metrics: Metrics,
    pub weights: WeightMap,
}

impl<'a> Run<'a> {
    pub(super) fn new(begun: Begun, control: &'a Control, observer: &'a mut dyn Observer) -> Self {
        let Begun {
            request,
            settings,
            folder,
            store,
            trainer,
            identity,
            tainted,
            inexact,
            log,
            metrics,
            weights,
        } = begun;
        Run {
            settings,
            folder,
            store,
            trainer,
            identity,
            tainted,
            inexact,
            log,
            metrics,
            control,
            observer,
            weights,
            summary: Summary::default(),
            last_saved: None,
            request,
        }
    }

    pub(super) fn train(&mut self) -> Result<Summary> {
        let (step, total) = (self.trainer.step(), self.trainer.total_steps());
        let owed = self.owes_evaluation();
        if step > 0 && self.trainer.finished() && !owed {
            return self.already_finished();
        }
        self.observer.on_event(&Event::Started { step, total });
        self.check_next_loss()?;
        let ended = if owed { self.owed_evaluation() } else { Ok(()) }.and_then(|()| self.steps());
        // Whatever ended the run: a save that has begun is ended, waited for and reported.
        let written = self.write_snapshot(Wait::Block);
        self.store.flush();
        self.report_saves();
        ended?;
        written?;
        self.finish()
    }

    /// Whether an evaluation is due before the next step: the one before the first step, or one that a stop
    /// cut short after the state had been saved.
    fn owes_evaluation(&mut self) -> bool {
        let step = self.trainer.step();
        let made = self.log.iter().rev().any(|l| matches!(l, LogLine::Eval(line) if line.step == step));
        let due = if step == 0 { self.settings.eval_on_start } else { self.trainer.evaluation_due_now() };
        due && !made
    }

    /// Makes it, and saves again where the step's checkpoint should have held it.
    fn owed_evaluation(&mut self) -> Result<()> {
        if !self.evaluate()? {
            return self.stop();
        }
        self.last_saved = None;
        if self.trainer.step() > 0 && self.trainer.save_due_now() {
            self.save(Wait::Block)?;
        }
        Ok(())
    }

    fn steps(&mut self) -> Result<()> {
        while !self.trainer.finished() {
            if self.control.stop_requested() {
                return self.stop();
            }
            let begin = Instant::now();
            let control = self.control;
            let Some(done) = self.trainer.train_step(&|| control.stop_requested())? else {
                return self.stop();
            };
            self.record(LogLine::Step(done.line), begin, done.real_tokens)?;
            self.write_snapshot(Wait::Skip)?;
            if self.trainer.evaluation_due(done.last_in_epoch) && !self.evaluate()? {
                return self.stop();
            }
            let asked = self.control.take_save_request();
            if asked || self.trainer.save_due(done.last_in_epoch) {
                let last = self.trainer.finished();
                self.save(if asked || last { Wait::Block } else { Wait::Skip })?;
            }
            self.report_saves();
        }
        Ok(())
    }

    /// Logs a line, or compares it with the one an interrupted run had logged.
    fn record(&mut self, logged: LogLine, begin: Instant, real_tokens: u64) -> Result<()> {
        let seconds = begin.elapsed().as_secs_f64();
        let repeated = self.metrics.push(&Line { logged, seconds: Some(seconds) })?;
        self.log.push(logged);
        match logged {
            LogLine::Step(line) => {
                let first = self.summary.loss.map_or(line.loss, |(first, _)| first);
                self.summary.loss = Some((first, line.loss));
                self.observer.on_event(&Event::Step { line, seconds, real_tokens });
            }
            LogLine::Eval(line) => self.observer.on_event(&Event::Eval { line, seconds }),
        }
        if let Some((first, last)) = repeated {
            self.observer.on_event(&Event::Repeated { first, last });
        }
        Ok(())
    }

    /// Evaluates, logs, keeps the best. False when a stop was asked for meanwhile.
    fn evaluate(&mut self) -> Result<bool> {
        let begin = Instant::now();
        let control = self.control;
        let Some(eval_loss) = self.trainer.evaluate(&|| control.stop_requested())? else {
            return Ok(!control.stop_requested());
        };
        // Step 0 is no candidate: there is nothing to publish yet.
        if self.trainer.step() > 0
            && let Some(values) = self.trainer.note_evaluation(eval_loss)?
        {
            let adapter = self.to_peft(&values)?;
            self.folder.write_adapter("best", &adapter)?;
            self.store.protect(Some(self.trainer.step()));
        }
        let epoch = self.log.last().map_or(0.0, LogLine::epoch);
        let line = EvalLine { step: self.trainer.step(), epoch, eval_loss };
        self.record(LogLine::Eval(line), begin, 0)?;
        Ok(true)
    }

    fn save(&mut self, wait: Wait) -> Result<()> {
        if self.last_saved == Some(self.trainer.step()) {
            return Ok(());
        }
        self.weights.check_unchanged().map_err(|e| self.name_last_checkpoint(e))?;
        self.metrics.sync();
        let spare = self.store.take_buffer();
        self.trainer.begin_snapshot(spare, &self.identity, self.tainted, &self.log)?;
        self.write_snapshot(wait)
    }

    /// Hands the state that was copied out to the writer, once it is whole.
    fn write_snapshot(&mut self, wait: Wait) -> Result<()> {
        match self.trainer.take_snapshot(wait == Wait::Block)? {
            Some(state) => self.store.save(state, wait),
            None => Ok(()),
        }
    }

    fn name_last_checkpoint(&self, error: Error) -> Error {
        match self.last_saved {
            Some(step) => {
                error.hint(format!("the checkpoint of step {step} is good; restore the file and resume"))
            }
            None => error,
        }
    }

    fn report_saves(&mut self) {
        for outcome in self.store.outcomes() {
            let event = match outcome {
                Outcome::Saved { step, path } => {
                    self.last_saved = Some(step);
                    Event::Saved { step, path }
                }
                Outcome::Skipped { why, .. } => Event::Warning(why),
            };
            self.observer.on_event(&event);
        }
        for text in self.store.warnings() {
            self.observer.on_event(&Event::Warning(text));
        }
    }

    /// Saves the last finished step and ends with [`Kind::Stopped`].
    fn stop(&mut self) -> Result<()> {
        self.save(Wait::Block)?;
        self.report_saves();
        self.leave_next_loss();
        Err(Error::new(
            Kind::Stopped,
            format!("stopped at step {} of {}, saved", self.trainer.step(), self.trainer.total_steps()),
        )
        .hint(format!("to continue: {}", self.request.continuation(None))))
    }

    /// One forward pass beyond the last step, for a continuation to compare with. The state is safe already:
    /// what goes wrong here is said and changes nothing, and whoever asked for a stop does not wait long.
    fn leave_next_loss(&mut self) {
        let (step, begin) = (self.trainer.step(), Instant::now());
        let given_up = || begin.elapsed() > LONGEST_LAST_PASS;
        let left = self.trainer.next_loss(&given_up).and_then(|loss| match loss {
            Some(loss) => self.store.write_next_loss(step, &[loss]),
            None => Ok(()),
        });
        if let Err(e) = left {
            self.observer.on_event(&Event::Warning(e.what));
        }
    }

    /// Compares the forward pass that was left beside the checkpoint, when no logged step does it better.
    fn check_next_loss(&mut self) -> Result<()> {
        let step = self.trainer.step();
        if self.inexact || self.metrics.is_ahead() {
            return Ok(());
        }
        let Some(&[before]) = self.store.read_next_loss(step)?.as_deref() else { return Ok(()) };
        let Some(now) = self.trainer.next_loss(&|| false)? else { return Ok(()) };
        if before.to_bits() == now.to_bits() {
            let note = format!("forward pass after step {step} repeated: identical");
            self.observer.on_event(&Event::Note(note));
            return Ok(());
        }
        Err(Error::check(format!(
            "the forward pass after step {step} gave {before} when it was saved and {now} now"
        ))
        .hint("this machine does not repeat itself, or the program changed; nothing was overwritten"))
    }

    /// The current adapter, in PEFT's form.
    fn adapter(&mut self) -> Result<peft::Adapter> {
        let values = self.trainer.parameters()?;
        self.to_peft(&values)
    }

    fn to_peft(&self, values: &[f32]) -> Result<peft::Adapter> {
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::diverged(format!("step {}: a parameter is not finite", self.trainer.step())));
        }
        let base = folder::base_name(&self.settings);
        Ok(self.trainer.layout().to_peft(self.trainer.adapter(), &base, values))
    }

    /// Final adapter, report, and what the run leaves behind.
    fn finish(&mut self) -> Result<Summary> {
        if self.settings.save_strategy != crate::config::Strategy::No {
            self.leave_next_loss();
        }
        self.publish()
    }

    fn publish(&mut self) -> Result<Summary> {
        self.metrics.finish(&self.log)?;
        let best = self.trainer.cursor().best.map(|best| best.step);
        let adapter = match best {
            Some(step) if self.settings.load_best_model_at_end && step != self.trainer.step() => {
                let folder = self.folder.join("best");
                peft::read(&folder).map_err(|e| e.hint("--load-best-model-at-end publishes the best evaluation's adapter, which is kept there"))?
            }
            _ => self.adapter()?,
        };
        self.summary.adapter = self.folder.write_adapter("adapter", &adapter)?;
        let lines = self.metrics.lines()?;
        let page = self.report(&lines);
        crate::formats::atomic_file::write(&self.folder.join("report.html"), page.as_bytes())?;
        let evals: Vec<f64> = lines
            .iter()
            .filter_map(|l| if let LogLine::Eval(e) = l.logged { Some(e.eval_loss) } else { None })
            .collect();
        self.summary.eval_loss = evals.first().zip(evals.last()).map(|(a, b)| (*a, *b));
        self.summary.step = self.trainer.step();
        self.summary.total_steps = self.trainer.total_steps();
        self.summary.tainted = self.tainted;
        self.observer.on_event(&Event::Finished { step: self.summary.step });
        Ok(self.summary.clone())
    }

    /// `report.html`.
    fn report(&self, lines: &[Line]) -> String {
        let title = self.folder.path.display().to_string();
        let run_json = std::fs::read_to_string(self.folder.join("run.json")).unwrap_or_default();
        html::render(&title, lines, &run_json)
    }

    fn already_finished(&mut self) -> Result<Summary> {
        let step = self.trainer.step();
        let note = format!(
            "training complete at step {step}; adapter written again; to train on: {}",
            self.request.continuation(Some(step + step.max(1)))
        );
        self.observer.on_event(&Event::Note(note));
        self.publish()
    }
}
