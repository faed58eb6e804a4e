//! `report.html`, and the page that compares several runs: each one file that needs nothing else, with inline SVG, without
//! scripts, light and dark.

use super::chart::{chart, curve, escape};
use super::jsonl::Line;
use super::line::{EvalLine, LogLine, StepLine};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6778;--grid:#dfe3ea;--back:#fff;\
--c0:#2563eb;--c1:#c2410c;--c2:#15803d;--c3:#9333ea;--c4:#be123c;--c5:#0e7490;--c6:#a16207;--c7:#4b5563}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa4b5;--grid:#2c3442;--back:#12161d;\
--c0:#7aa7ff;--c1:#ff9d5c;--c2:#6fd08c;--c3:#c79bff;--c4:#ff8aa0;--c5:#6cc9dc;--c6:#e0b84c;--c7:#aab3c2}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:900px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1rem;margin:1.8rem 0 .3rem}\
table{border-collapse:collapse}td,th{padding:.1rem 1.2rem .1rem 0;font-variant-numeric:tabular-nums;text-align:left;font-weight:normal}\
td:first-child,th{color:var(--soft)}.wide{overflow-x:auto}\
svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--grid)}\
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}.c7{--c:var(--c7)}\
.curve{stroke:var(--c);fill:none;stroke-width:1.6;stroke-linejoin:round}.span{stroke:none;opacity:.18;fill:var(--c)}\
.dot{stroke:none;fill:transparent;pointer-events:all}.dot:hover{fill:var(--ink)}.mark{fill:var(--c)}\
pre{overflow:auto;font-size:12px}.key{margin-left:1rem;font-weight:normal;color:var(--c)}";

/// The lines of a run, by what they are.
struct Series {
    steps: Vec<StepLine>,
    evals: Vec<EvalLine>,
    /// Scored tokens a second, by step.
    speeds: Vec<(u64, f64)>,
    /// Of the steps whose time is known.
    seconds: f64,
}

impl Series {
    fn of(lines: &[Line]) -> Self {
        let mut series = Series { steps: Vec::new(), evals: Vec::new(), speeds: Vec::new(), seconds: 0.0 };
        for line in lines {
            match line.logged {
                LogLine::Step(step) => {
                    series.steps.push(step);
                    if let Some(seconds) = line.seconds.filter(|seconds| *seconds > 0.0) {
                        series.speeds.push((step.step, step.tokens as f64 / seconds));
                        series.seconds += seconds;
                    }
                }
                LogLine::Eval(eval) => series.evals.push(eval),
            }
        }
        series
    }

    fn best(&self) -> Option<&EvalLine> {
        self.evals.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss))
    }
}

fn head(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    )
}

/// The page for a run. Text is escaped; `run_json` is shown as it is.
#[must_use]
pub fn render(title: &str, lines: &[Line], run_json: &str) -> String {
    let series = Series::of(lines);
    let Series { steps, evals, speeds, .. } = &series;
    let mut page = head(title);
    page += &summary(&series);
    let losses = [
        curve("training loss", 0, steps.iter().map(|l| (l.step, l.loss))),
        curve("evaluation loss", 1, evals.iter().map(|l| (l.step, l.eval_loss))),
    ];
    page += &chart("Loss", "nats per scored token", &losses);
    let rates = steps.iter().map(|l| (l.step, l.lr));
    page += &chart("Learning rate", "of the step", &[curve("learning rate", 0, rates)]);
    let norms = steps.iter().map(|l| (l.step, l.grad_norm));
    page += &chart("Gradient norm", "before clipping", &[curve("gradient norm", 0, norms)]);
    let speeds = curve("scored tokens/s", 0, speeds.iter().copied());
    page += &chart("Throughput", "scored tokens per second", &[speeds]);
    if !run_json.is_empty() {
        let _ =
            writeln!(page, "<details><summary>run.json</summary><pre>{}</pre></details>", escape(run_json));
    }
    page + "</body></html>\n"
}

fn summary(series: &Series) -> String {
    let Series { steps, evals, .. } = series;
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (steps.first(), steps.last()) {
        rows.push(("steps", last.step.to_string()));
        rows.push(("epochs", format!("{:.2}", last.epoch)));
        rows.push((
            "training loss, first and last step",
            format!("{:.4} \u{2192} {:.4}", first.loss, last.loss),
        ));
        rows.push(("scored tokens", steps.iter().map(|l| l.tokens).sum::<u64>().to_string()));
    }
    if let (Some(first), Some(last), Some(best)) = (evals.first(), evals.last(), series.best()) {
        let text =
            format!("{:.4} \u{2192} {:.4}, best {:.4}", first.eval_loss, last.eval_loss, best.eval_loss);
        rows.push(("evaluation loss, first and last", text));
    }
    let cells: String =
        rows.iter().map(|(name, value)| format!("<tr><td>{name}</td><td>{value}</td></tr>")).collect();
    format!("<table>{cells}</table>\n")
}

/// A run among others.
pub struct Compared {
    /// What it is called.
    pub name: String,
    /// Its lines.
    pub lines: Vec<Line>,
    /// Its settings as text, by name.
    pub settings: BTreeMap<String, String>,
}

/// The page that compares runs: final figures, curves over each other, and the settings in which they differ.
#[must_use]
pub fn compare(runs: &[Compared]) -> String {
    let series: Vec<Series> = runs.iter().map(|run| Series::of(&run.lines)).collect();
    let mut page = head(&format!("{} runs compared", runs.len()));
    page += &figures(runs, &series);
    let mut overlay = |title: &str, unit: &str, values: &dyn Fn(&Series) -> Vec<(u64, f64)>| {
        let curves = runs.iter().zip(&series).enumerate();
        let curves: Vec<_> =
            curves.map(|(i, (run, series))| curve(&run.name, i, values(series).into_iter())).collect();
        page += &chart(title, unit, &curves);
    };
    let nats = "nats per scored token";
    overlay("Training loss", nats, &|s| s.steps.iter().map(|l| (l.step, l.loss)).collect());
    overlay("Evaluation loss", nats, &|s| s.evals.iter().map(|l| (l.step, l.eval_loss)).collect());
    overlay("Learning rate", "of the step", &|s| s.steps.iter().map(|l| (l.step, l.lr)).collect());
    overlay("Gradient norm", "before clipping", &|s| s.steps.iter().map(|l| (l.step, l.grad_norm)).collect());
    overlay("Throughput", "scored tokens per second", &|s| s.speeds.clone());
    page += &differences(runs);
    page + "</body></html>\n"
}

/// A column for each run, its name above.
fn table(title: &str, runs: &[Compared], rows: &[(String, Vec<String>)]) -> String {
    let names = runs.iter().enumerate();
    let names: String = names
        .map(|(i, run)| {
            format!("<th class=\"key c{}\">{}</th>", i % super::chart::COLOURS, escape(&run.name))
        })
        .collect();
    let row = |(name, values): &(String, Vec<String>)| {
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", escape(value))).collect();
        format!("<tr><td>{}</td>{cells}</tr>", escape(name))
    };
    let rows: String = rows.iter().map(row).collect();
    format!("<h2>{title}</h2>\n<div class=\"wide\"><table><tr><th></th>{names}</tr>{rows}</table></div>\n")
}

fn figures(runs: &[Compared], series: &[Series]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |name: &str, value: &dyn Fn(&Series) -> Option<String>| {
        let values = series.iter().map(|s| value(s).unwrap_or_else(|| "\u{2013}".into())).collect();
        rows.push((name.to_owned(), values));
    };
    add("steps", &|s| s.steps.last().map(|l| l.step.to_string()));
    add("epochs", &|s| s.steps.last().map(|l| format!("{:.2}", l.epoch)));
    add("training loss, last step", &|s| s.steps.last().map(|l| format!("{:.4}", l.loss)));
    add("evaluation loss, last", &|s| s.evals.last().map(|l| format!("{:.4}", l.eval_loss)));
    add("evaluation loss, best", &|s| s.best().map(|l| format!("{:.4} at step {}", l.eval_loss, l.step)));
    add("scored tokens", &|s| Some(s.steps.iter().map(|l| l.tokens).sum::<u64>().to_string()));
    add("time of the steps", &|s| (s.seconds > 0.0).then(|| super::console::duration(s.seconds)));
    table("Final figures", runs, &rows)
}

fn differences(runs: &[Compared]) -> String {
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    let values = |name: &String| -> Vec<String> {
        runs.iter().map(|run| run.settings.get(name).cloned().unwrap_or_default()).collect()
    };
    let rows: Vec<(String, Vec<String>)> = names
        .into_iter()
        .map(|name| (name.clone(), values(name)))
        .filter(|(_, values)| values.iter().any(|value| *value != values[0]))
        .collect();
    if rows.is_empty() {
        return "<h2>Settings</h2>\n<p>The same in all of them.</p>\n".into();
    }
    table("Settings that differ", runs, &rows)
}
