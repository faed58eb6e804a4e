//! The console: lines that stay, on a terminal above a bar; nothing but warnings when quiet.

use super::event::{EvalLine, Event, Observer, StepLine};
use crate::error::printable;
use crate::sys::resident_memory;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Writes a line to standard output. What goes wrong is kept for [`lost_output`]: it is no reason to stop a run.
pub fn say(line: &str) {
    type_out(&format!("{}\n", printable(line)));
}

/// As [`say`], for a line with colours of our own, in which everything else has gone through [`printable`].
pub fn say_styled(line: &str) {
    type_out(&format!("{line}\n"));
}

/// Writes text to standard output at once, as it is. False when it did not arrive.
pub fn type_out(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(e) => {
            LOST.get_or_init(|| e);
            false
        }
    }
}

static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Why something that was written to standard output did not arrive, the first time: a full disk, a failing one. A
/// reader that went away (`| head`) has what it wanted.
#[must_use]
pub fn lost_output() -> Option<&'static std::io::Error> {
    LOST.get().filter(|e| e.kind() != std::io::ErrorKind::BrokenPipe)
}

/// Writes a line to standard error.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(line));
}

/// Whether colours are wanted on standard output: a terminal, and `NO_COLOR` not set.
#[must_use]
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Seconds from which on the time that tokenising took is told.
const WORTH_TELLING: f64 = 1.0;

/// Shows a run's events to a person.
pub struct Console {
    quiet: bool,
    logging_steps: u64,
    /// Drawn on standard error; none when that is no terminal.
    bar: Option<ProgressBar>,
    total: u64,
    window: Window,
    progress: Option<(&'static str, Instant)>,
    /// Since when the rows of a file are tokenised.
    tokenising: Option<Instant>,
}

/// What happened since the last line.
#[derive(Default)]
struct Window {
    steps: u64,
    seconds: f64,
    real: u64,
    scored: u64,
}

impl Console {
    /// A console for one command.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let drawn = !quiet && std::io::stderr().is_terminal();
        let bar = drawn.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            bar.set_style(ProgressStyle::default_spinner());
            bar
        });
        Console {
            quiet,
            logging_steps: 1,
            bar,
            total: 0,
            window: Window::default(),
            progress: None,
            tokenising: None,
        }
    }

    /// A line of text, above the bar when there is one.
    fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn warning(&self, text: &str) {
        let text = format!("warning: {text}");
        match &self.bar {
            Some(bar) => bar.suspend(|| complain(&text)),
            None => complain(&text),
        }
    }

    fn progress(&mut self, what: &'static str, done: u64, total: u64) {
        let finished = total > 0 && done >= total;
        if let Some(bar) = &self.bar {
            if bar.is_finished() {
                bar.reset();
            }
            bar.set_length(total);
            bar.set_position(done);
            let template = if total > 0 { "{msg} {wide_bar} {percent}%" } else { "{msg} {pos}" };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what);
            if finished {
                bar.finish_and_clear();
            }
            return;
        }
        // In a log: only of what takes long, every ten seconds.
        let now = Instant::now();
        match self.progress {
            Some((last, since)) if last == what => {
                if now - since >= Duration::from_secs(10) && total > 0 {
                    self.progress = Some((what, now));
                    self.line(&format!("{what}: {} %", done.saturating_mul(100) / total));
                }
            }
            _ => self.progress = Some((what, now)),
        }
    }

    /// How fast a file was tokenised, where it took long enough to be worth a line.
    fn tokenised(&mut self, path: &Path, rows: u64) {
        let seconds = self.tokenising.take().map_or(0.0, |since| since.elapsed().as_secs_f64());
        if seconds >= WORTH_TELLING {
            let rate = rows as f64 / seconds;
            self.line(&format!(
                "{}: {rows} rows tokenised in {seconds:.1} s ({rate:.0} rows/s)",
                path.display()
            ));
        }
    }

    fn started(&mut self, step: u64, total: u64) {
        self.total = total;
        self.window = Window::default();
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(total);
            bar.set_position(step);
            bar.reset_eta();
            let template = "{pos}/{len} {wide_bar} {msg}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
        }
    }

    fn step(&mut self, line: &StepLine, seconds: f64, real_tokens: u64) {
        self.window.add(line, seconds, real_tokens);
        let rates = self.window.rates();
        if let Some(bar) = &self.bar {
            bar.set_position(line.step);
            let memory = resident_memory() as f64 / f64::from(1 << 30);
            bar.set_message(format!("loss {:.4}  {rates}  {memory:.1} GiB", line.loss));
        }
        let due = line.step.is_multiple_of(self.logging_steps) || line.step == self.total;
        if !due {
            return;
        }
        let left = self.window.left(self.total.saturating_sub(line.step));
        self.line(&format!(
            "step {}/{}  epoch {:.2}  loss {:.4}  grad_norm {:.3}  lr {:.3e}  {rates}  {left} left",
            line.step, self.total, line.epoch, line.loss, line.grad_norm, line.lr
        ));
        self.window = Window::default();
    }

    fn eval(&self, line: &EvalLine, seconds: f64) {
        self.line(&format!("step {}  eval_loss {:.4}  ({seconds:.1} s)", line.step, line.eval_loss));
    }
}

impl Window {
    fn add(&mut self, line: &StepLine, seconds: f64, real: u64) {
        self.steps += 1;
        self.seconds += seconds;
        self.real += real;
        self.scored += line.tokens;
    }

    /// Both over the same steps: all tokens without padding, and those that are scored.
    fn rates(&self) -> String {
        if self.seconds <= 0.0 {
            return String::new();
        }
        let rate = |tokens: u64| tokens as f64 / self.seconds;
        format!("{:.0} tokens/s ({:.0} scored/s)", rate(self.real), rate(self.scored))
    }

    fn left(&self, steps: u64) -> String {
        if self.steps == 0 {
            return "?".to_owned();
        }
        duration(self.seconds / self.steps as f64 * steps as f64)
    }
}

/// Seconds as `3h 05m`, `2m 10s` or `8s`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

impl Observer for Console {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Note(text) => self.line(text),
            Event::Warning(text) => self.warning(text),
            Event::Tokenised { path, rows } => self.tokenised(path, *rows),
            Event::Progress { what, done, total } => {
                if *done == 0 {
                    self.tokenising = Some(Instant::now());
                }
                if !self.quiet {
                    self.progress(what, *done, *total);
                }
            }
            Event::Started { step, total, logging_steps } => {
                self.logging_steps = (*logging_steps).max(1);
                self.started(*step, *total);
            }
            Event::Step { line, seconds, real_tokens } => self.step(line, *seconds, *real_tokens),
            Event::Eval { line, seconds } => self.eval(line, *seconds),
            Event::Saved { path, .. } => self.line(&format!("saved {}", path.display())),
            Event::Repeated { first, last } if first == last => {
                self.line(&format!("step {first} repeated: identical"));
            }
            Event::Repeated { first, last } => {
                self.line(&format!("steps {first}-{last} repeated: identical"))
            }
            Event::Finished { .. } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
