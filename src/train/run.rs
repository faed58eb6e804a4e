//! A run under way: from the state it begins with to the files it leaves.

use super::event_file::{self, EventFile};
use super::folder::{self, REPORT, RunFolder};
use super::metrics::Metrics;
use super::publish;
use super::saver::Saver;
use super::start::Commands;
use super::trainer::Trainer;
use super::{Control, Summary};
use crate::checkpoint::state::{Best, digest_of};
use crate::config::{Settings, Strategy};
use crate::error::{Error, Kind, Result};
use crate::formats::peft::Adapter;
use crate::formats::publish::MadeFrom;
use crate::report::event::{Event, Observer};
use crate::report::html;
use crate::report::jsonl::Line;
use crate::report::line::{EvalLine, LogLine};
use std::time::{Duration, Instant};

/// How long the forward pass after a stop may take: well inside the 30 seconds a scheduler grants.
const LONGEST_LAST_PASS: Duration = Duration::from_secs(8);

/// A run under way.
pub(super) struct Run<'a> {
    begun: Begun,
    control: &'a Control,
    observer: &'a mut dyn Observer,
    summary: Summary,
}

/// What a run begins with: its folder is its own, its state is in place, nothing has been computed yet.
pub(super) struct Begun {
    pub settings: Settings,
    pub folder: RunFolder,
    pub saver: Saver,
    pub trainer: Trainer,
    /// This process need not repeat what an earlier one computed: it continues inexactly.
    pub inexact: bool,
    pub metrics: Metrics,
    /// For TensorBoard, where it was asked for.
    pub events: Option<EventFile>,
    /// The step it begins at.
    pub first_step: u64,
    /// What adapters are made for: it must not change meanwhile.
    pub base: Box<dyn MadeFrom>,
    /// What messages offer.
    pub commands: Commands,
}

impl<'a> Run<'a> {
    pub(super) fn new(begun: Begun, control: &'a Control, observer: &'a mut dyn Observer) -> Self {
        Run { begun, control, observer, summary: Summary::default() }
    }

    pub(super) fn train(&mut self) -> Result<Summary> {
        let trainer = &self.begun.trainer;
        let (step, total) = (trainer.step(), trainer.total_steps());
        let owed = self.owes_evaluation();
        if step > 0 && self.begun.trainer.finished() && !owed {
            return self.already_finished();
        }
        let logging_steps = self.begun.settings.logging_steps;
        self.control.begin();
        self.observer.on_event(&Event::Started { step, total, logging_steps });
        let ended = self.check_next_loss().and_then(|()| self.train_to_the_end(owed));
        // Whatever ended the run: a save that has begun is ended and told, and the page shows what was logged.
        let (_, engine) = self.begun.trainer.saving();
        let saved = self.begun.saver.finish(engine, self.observer);
        let ended = ended.and(saved);
        self.write_report();
        match ended {
            Ok(()) => self.finish(),
            Err(error) if error.kind == Kind::Diverged => Err(self.after_divergence(error)),
            Err(error) => Err(error),
        }
    }

    fn train_to_the_end(&mut self, owes_evaluation: bool) -> Result<()> {
        if owes_evaluation {
            self.owed_evaluation()?;
        }
        self.steps()
    }

    /// Whether an evaluation is due before the next step: the one before the first step, or one that a stop
    /// cut short after the state had been saved.
    fn owes_evaluation(&mut self) -> bool {
        let trainer = &mut self.begun.trainer;
        let step = trainer.step();
        let log = &trainer.state().log;
        let made = log.iter().rev().any(|l| matches!(l, LogLine::Eval(line) if line.step == step));
        let due = if step == 0 { self.begun.settings.eval_on_start } else { trainer.evaluation_due_now() };
        due && !made
    }

    /// Makes it, and saves again where the step's checkpoint should have held it.
    fn owed_evaluation(&mut self) -> Result<()> {
        if !self.evaluate()? {
            return self.stop();
        }
        self.begun.saver.forget();
        if self.begun.trainer.step() > 0 && self.begun.trainer.save_due_now() {
            self.save_and_wait()?;
        }
        Ok(())
    }

    fn steps(&mut self) -> Result<()> {
        while !self.begun.trainer.finished() {
            if self.control.stop_requested() {
                return self.stop();
            }
            let begin = Instant::now();
            let control = self.control;
            let Some(step) = self.begun.trainer.begin_step(&|| control.stop_requested())? else {
                return self.stop();
            };
            // While the device is at work.
            self.advance_save()?;
            let done = self.begun.trainer.end_step(step)?;
            self.record(LogLine::Step(done.line), begin, done.real_tokens)?;
            if self.begun.trainer.evaluation_due(done.last_in_epoch) && !self.evaluate()? {
                return self.stop();
            }
            if self.control.take_save_request() {
                self.save_and_wait()?;
            } else if self.begun.trainer.save_due(done.last_in_epoch) {
                if self.begun.trainer.finished() { self.save_and_wait()? } else { self.begin_save()? }
            }
        }
        Ok(())
    }

    /// Logs a line, or compares it with the one an interrupted run had logged.
    fn record(&mut self, logged: LogLine, begin: Instant, real_tokens: u64) -> Result<()> {
        let seconds = begin.elapsed().as_secs_f64();
        let before = self.begun.metrics.lines().len();
        let repeated = self.begun.metrics.push(Line { logged, seconds: Some(seconds) })?;
        self.append_events(before);
        self.begun.trainer.state_mut().log.push(logged);
        match logged {
            LogLine::Step(line) => {
                self.summary.trained += 1;
                self.observer.on_event(&Event::Step { line, seconds, real_tokens });
            }
            LogLine::Eval(line) => self.observer.on_event(&Event::Eval { line, seconds }),
        }
        if let Some((first, last)) = repeated {
            self.observer.on_event(&Event::Repeated { first, last });
        }
        Ok(())
    }

    /// Gives TensorBoard the lines from number `first` on. The run does not depend on it: a failure is said once.
    fn append_events(&mut self, first: usize) {
        let Begun { events, metrics, folder, .. } = &mut self.begun;
        let Some(Err(e)) = events.as_mut().map(|events| events.append(&metrics.lines()[first..])) else {
            return;
        };
        *events = None;
        let path = folder.shown(event_file::NAME);
        let text = format!("{} is not written any more: {e}; a resume mends it", path.display());
        self.observer.on_event(&Event::Warning(text));
    }

    /// Evaluates, logs, keeps the best. False when a stop was asked for meanwhile.
    fn evaluate(&mut self) -> Result<bool> {
        let (begin, control) = (Instant::now(), self.control);
        let trainer = &mut self.begun.trainer;
        let Some(eval_loss) = trainer.evaluate(&|| control.stop_requested())? else {
            return Ok(!control.stop_requested());
        };
        let (step, before) = (trainer.step(), trainer.state().cursor.best);
        // Step 0 is no candidate: there is nothing to publish yet.
        if step > 0
            && let Some(values) = trainer.note_evaluation(eval_loss)?
        {
            self.keep_saved_best(before)?;
            let Begun { settings, folder, trainer, base, .. } = &mut self.begun;
            let adapter = publish::adapter(trainer, &values, settings)?;
            folder.write_adapter(folder::BEST, &adapter, &**base)?;
        }
        let trainer = &self.begun.trainer;
        let epoch = trainer.state().log.last().map_or(0.0, LogLine::epoch);
        self.record(LogLine::Eval(EvalLine { step, epoch, eval_loss }), begin, 0)?;
        Ok(true)
    }

    /// The best adapter that the newest saved state names stays, until a state is saved that names another.
    fn keep_saved_best(&mut self, before: Option<Best>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        if self.begun.saver.newest().is_some_and(|saved| saved < before.step) {
            let (_, engine) = self.begun.trainer.saving();
            self.begun.saver.finish(engine, self.observer)?;
        }
        let Begun { folder, saver, trainer, base, first_step, .. } = &mut self.begun;
        if saver.newest().unwrap_or(*first_step) < before.step {
            return Ok(());
        }
        let found = folder.read_adapter(folder::BEST).ok().flatten();
        let is_it = |found: &Adapter| {
            trainer.engine().values_of(found).is_some_and(|values| digest_of(&values) == before.adapter)
        };
        match found.filter(is_it) {
            Some(found) => folder.write_adapter(folder::SAVED_BEST, &found, &**base).map(drop),
            None => Ok(()),
        }
    }

    // ---- saves --------------------------------------------------------------------------------------------

    /// Begins a save that nobody waits for.
    fn begin_save(&mut self) -> Result<()> {
        self.check_base()?;
        self.begun.metrics.sync();
        self.with_saver(|saver, trainer, observer| {
            let (state, engine) = trainer.saving();
            saver.begin(state, engine, observer)
        })
    }

    fn save_and_wait(&mut self) -> Result<()> {
        self.check_base()?;
        self.begun.metrics.sync();
        self.with_saver(|saver, trainer, observer| {
            let (state, engine) = trainer.saving();
            saver.save(state, engine, observer)
        })
    }

    fn advance_save(&mut self) -> Result<()> {
        self.with_saver(|saver, trainer, observer| saver.advance(trainer.engine(), observer))
    }

    /// Does `work`; when a checkpoint was saved meanwhile, the page shows the run up to now.
    fn with_saver(
        &mut self,
        work: impl FnOnce(&mut Saver, &mut Trainer, &mut dyn Observer) -> Result<()>,
    ) -> Result<()> {
        let Begun { saver, trainer, .. } = &mut self.begun;
        let before = saver.newest();
        work(saver, trainer, self.observer)?;
        if saver.newest() != before {
            self.write_report();
        }
        Ok(())
    }

    /// A base that is edited in place while it is mapped would change the run silently.
    fn check_base(&self) -> Result<()> {
        self.begun.base.check_unchanged().map_err(|error| match self.begun.saver.newest() {
            Some(step) => {
                error.hint(format!("the checkpoint of step {step} is good; restore the file and resume"))
            }
            None => error,
        })
    }

    /// Saves the last finished step and ends with [`Kind::Stopped`].
    fn stop(&mut self) -> Result<()> {
        self.save_and_wait()?;
        self.leave_next_loss();
        let trainer = &self.begun.trainer;
        Err(Error::new(
            Kind::Stopped,
            format!("stopped at step {} of {}, saved", trainer.step(), trainer.total_steps()),
        )
        .hint(format!("to continue: {}", self.begun.commands.resume())))
    }

    /// What stands after a divergence, and how to go on from the newest state whose next step was finite: the very last
    /// state diverges again, whatever the rate.
    fn after_divergence(&self, error: Error) -> Error {
        let Begun { trainer, saver, commands, .. } = &self.begun;
        let stands = match saver.newest() {
            Some(step) => format!("the checkpoint of step {step} stands"),
            None => "no checkpoint was saved".into(),
        };
        let good = saver.store().whole_before(trainer.step());
        error.hint(format!("{stands}; {}", commands.after_divergence(good)))
    }

    /// One forward pass beyond the last step, for a continuation to compare with. The state is safe already:
    /// what goes wrong here is said and changes nothing, and whoever asked for a stop does not wait long.
    fn leave_next_loss(&mut self) {
        let Begun { trainer, saver, .. } = &mut self.begun;
        let (step, begin) = (trainer.step(), Instant::now());
        let given_up = || begin.elapsed() > LONGEST_LAST_PASS;
        let left = trainer.next_loss(&given_up).and_then(|loss| match loss {
            Some(loss) => saver.store().write_next_loss(step, &[loss]),
            None => Ok(()),
        });
        if let Err(e) = left {
            self.observer.on_event(&Event::Warning(e.what));
        }
    }

    /// Compares the forward pass that was left beside the checkpoint, when no logged step does it better.
    fn check_next_loss(&mut self) -> Result<()> {
        let Begun { trainer, saver, inexact, metrics, .. } = &mut self.begun;
        let step = trainer.step();
        if *inexact || metrics.is_ahead() {
            return Ok(());
        }
        let left = saver.store().read_next_loss(step)?;
        let Some(&[before]) = left.as_deref() else { return Ok(()) };
        let Some(now) = trainer.next_loss(&|| false)? else { return Ok(()) };
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

    // ---- the end ------------------------------------------------------------------------------------------

    /// Final adapter, report, and what the run leaves behind.
    fn finish(&mut self) -> Result<Summary> {
        if self.begun.settings.save_strategy != Strategy::No {
            self.leave_next_loss();
        }
        self.publish()
    }

    fn publish(&mut self) -> Result<Summary> {
        let (adapter, note) = publish::final_adapter(&mut self.begun)?;
        let Begun { commands, settings, folder, trainer, metrics, base, .. } = &mut self.begun;
        metrics.finish(folder)?;
        if let Some(text) = note {
            self.observer.on_event(&Event::Warning(text));
        }
        let best = trainer.state().cursor.best;
        let of_best = best.filter(|_| settings.load_best_model_at_end).map(|best| best.step);
        let (step, total_steps) = (trainer.step(), trainer.total_steps());
        let patience = trainer.patience().filter(|_| trainer.out_of_patience() && step < total_steps);
        let log = &trainer.state().log;
        self.summary = Summary {
            step,
            total_steps,
            trained: self.summary.trained,
            loss: first_and_last(log.iter().filter_map(|line| match line {
                LogLine::Step(line) => Some(line.loss),
                LogLine::Eval(_) => None,
            })),
            eval_loss: first_and_last(log.iter().filter_map(|line| match line {
                LogLine::Eval(line) => Some(line.eval_loss),
                LogLine::Step(_) => None,
            })),
            best: best.map(|best| (best.step, best.loss)),
            patience,
            adapter: folder.write_adapter("adapter", &adapter, &**base)?,
            published: of_best.unwrap_or(step),
            report: folder.shown(REPORT),
            tainted: trainer.state().tainted,
            look_in: commands.look_in(),
            train_on: match patience {
                Some(patience) => commands.more_patience(2 * patience),
                None => commands.longer(2 * step.max(1)),
            },
        };
        self.write_report();
        self.observer.on_event(&Event::Finished { step });
        Ok(self.summary.clone())
    }

    /// `report.html`, as far as the run is. The run does not depend on it: a failure is said.
    fn write_report(&mut self) {
        let Begun { folder, metrics, .. } = &self.begun;
        let title = folder.path().display().to_string();
        let page = folder.run_json().and_then(|run_json| {
            let page = html::render(&title, metrics.lines(), &run_json);
            folder.put(REPORT, page.as_bytes())
        });
        if let Err(error) = page {
            self.observer.on_event(&Event::Warning(error.what));
        }
    }

    /// Publishes again. A folder that goes on with the last state of another is complete by itself only with a
    /// checkpoint of its own.
    fn already_finished(&mut self) -> Result<Summary> {
        if self.begun.saver.newest().is_none() && self.begun.settings.save_strategy != Strategy::No {
            self.save_and_wait()?;
        }
        let step = self.begun.trainer.step();
        self.observer
            .on_event(&Event::Note(format!("training complete at step {step}; adapter written again")));
        self.publish()
    }
}

fn first_and_last(mut values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let first = values.next()?;
    Some((first, values.last().unwrap_or(first)))
}
