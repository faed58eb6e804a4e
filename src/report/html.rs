//! `report.html`: a run's curves as one page that needs nothing else: inline SVG, no script, light and dark.

use super::jsonl::Line;
use super::line::{EvalLine, LogLine, StepLine};
use std::fmt::Write;

/// Points drawn for a curve at most; more steps are drawn as averages with the span of their values behind.
const POINTS: usize = 400;
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6778;--grid:#dfe3ea;--back:#fff;--a:#2563eb;--b:#c2410c}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa4b5;--grid:#2c3442;--back:#12161d;--a:#7aa7ff;--b:#ff9d5c}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:900px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1rem;margin:1.8rem 0 .3rem}\
table{border-collapse:collapse}td{padding:.1rem 1.2rem .1rem 0;font-variant-numeric:tabular-nums}td:first-child{color:var(--soft)}\
svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}\
.grid{stroke:var(--grid)}.a{stroke:var(--a)}.b{stroke:var(--b)}.curve{fill:none;stroke-width:1.6;stroke-linejoin:round}\
.span{stroke:none;opacity:.18}.span.a{fill:var(--a)}.span.b{fill:var(--b)}\
.dot{stroke:none;fill:transparent;pointer-events:all}.dot:hover{fill:var(--ink)}.mark.a{fill:var(--a)}.mark.b{fill:var(--b)}\
pre{overflow:auto;font-size:12px}.key{margin-left:1rem;font-weight:normal}.key.a{color:var(--a)}.key.b{color:var(--b)}";

/// One drawn point: a step, or the average of several.
struct Point {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
    steps: (u64, u64),
}

struct Curve {
    name: &'static str,
    /// Colour class, `a` or `b`.
    colour: &'static str,
    points: Vec<Point>,
    /// Few, separate values are marked by dots.
    marked: bool,
}

/// The page for a run. Text is escaped; `run_json` is shown as it is.
#[must_use]
pub fn render(title: &str, lines: &[Line], run_json: &str) -> String {
    let (mut steps, mut evals, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        match (line.logged, line.seconds) {
            (LogLine::Step(step), seconds) => {
                steps.push(step);
                let measured = seconds.filter(|seconds| *seconds > 0.0);
                speeds.extend(measured.map(|seconds| (step.step, step.tokens as f64 / seconds)));
            }
            (LogLine::Eval(eval), _) => evals.push(eval),
        }
    }
    let mut page = String::new();
    let title = escape(title);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    page += &summary(&steps, &evals);
    let losses = [
        curve("training loss", "a", steps.iter().map(|l| (l.step, l.loss))),
        curve("evaluation loss", "b", evals.iter().map(|l| (l.step, l.eval_loss))),
    ];
    page += &chart("Loss", "nats per scored token", &losses);
    let rates = steps.iter().map(|l| (l.step, l.lr));
    page += &chart("Learning rate", "of the step", &[curve("learning rate", "a", rates)]);
    let norms = steps.iter().map(|l| (l.step, l.grad_norm));
    page += &chart("Gradient norm", "before clipping", &[curve("gradient norm", "a", norms)]);
    page += &chart(
        "Throughput",
        "scored tokens per second",
        &[curve("scored tokens/s", "a", speeds.into_iter())],
    );
    if !run_json.is_empty() {
        let _ =
            writeln!(page, "<details><summary>run.json</summary><pre>{}</pre></details>", escape(run_json));
    }
    page + "</body></html>\n"
}

/// Text as HTML shows it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

fn summary(steps: &[StepLine], evals: &[EvalLine]) -> String {
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
    if let (Some(first), Some(last)) = (evals.first(), evals.last()) {
        let best = evals.iter().map(|l| l.eval_loss).fold(f64::INFINITY, f64::min);
        let text = format!("{:.4} \u{2192} {:.4}, best {best:.4}", first.eval_loss, last.eval_loss);
        rows.push(("evaluation loss, first and last", text));
    }
    let cells: String =
        rows.iter().map(|(name, value)| format!("<tr><td>{name}</td><td>{value}</td></tr>")).collect();
    format!("<table>{cells}</table>\n")
}

/// Groups neighbouring steps until there are few enough to draw.
fn curve(name: &'static str, colour: &'static str, values: impl Iterator<Item = (u64, f64)>) -> Curve {
    let values: Vec<(u64, f64)> = values.filter(|(_, y)| y.is_finite()).collect();
    let size = values.len().div_ceil(POINTS).max(1);
    let points = values
        .chunks(size)
        .map(|group| {
            let mean = |f: fn(&(u64, f64)) -> f64| group.iter().map(f).sum::<f64>() / group.len() as f64;
            Point {
                x: mean(|(x, _)| *x as f64),
                y: mean(|(_, y)| *y),
                low: group.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min),
                high: group.iter().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max),
                steps: (group[0].0, group[group.len() - 1].0),
            }
        })
        .collect();
    Curve { name, colour, points, marked: values.len() <= 40 }
}

/// Maps values to places in the picture.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn around(curves: &[Curve]) -> Option<Self> {
        let points = || curves.iter().flat_map(|c| &c.points);
        let least = |f: fn(&Point) -> f64| points().map(f).fold(f64::INFINITY, f64::min);
        let most = |f: fn(&Point) -> f64| points().map(f).fold(f64::NEG_INFINITY, f64::max);
        let x = (least(|p| p.x), most(|p| p.x));
        let (low, high) = (least(|p| p.low), most(|p| p.high));
        if !(x.0.is_finite() && low.is_finite()) {
            return None;
        }
        // A curve of non-negative values that comes near zero stands on zero.
        let low = if low >= 0.0 && low < 0.5 * high { 0.0 } else { low };
        let room = if high > low { 0.04 * (high - low) } else { 0.5 * high.abs().max(1e-12) };
        let bottom = if low == 0.0 { 0.0 } else { low - room };
        Some(Frame { x: (x.0, x.1.max(x.0 + 1.0)), y: (bottom, high + room) })
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let share = |v: f64, (from, to): (f64, f64)| (v - from) / (to - from);
        let across = LEFT + share(x, self.x) * (WIDTH - LEFT - RIGHT);
        let down = HEIGHT - BOTTOM - share(y, self.y) * (HEIGHT - TOP - BOTTOM);
        (across, down)
    }
}

fn chart(title: &str, unit: &str, curves: &[Curve]) -> String {
    let Some(frame) = Frame::around(curves) else { return String::new() };
    let mut svg = String::new();
    let drawn: Vec<&Curve> = curves.iter().filter(|c| !c.points.is_empty()).collect();
    let keys = if drawn.len() > 1 {
        drawn.iter().map(|c| format!("<span class=\"key {}\">{}</span>", c.colour, c.name)).collect()
    } else {
        String::new()
    };
    let _ = write!(
        svg,
        "<h2>{title}{keys}</h2>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    );
    axes(&mut svg, &frame, unit);
    for curve in &drawn {
        draw(&mut svg, &frame, curve);
    }
    svg + "</svg>\n"
}

fn axes(svg: &mut String, frame: &Frame, unit: &str) {
    let base = HEIGHT - BOTTOM;
    for tick in ticks(frame.y.0, frame.y.1, 5.0) {
        let y = frame.place(frame.x.0, tick).1;
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            number(tick)
        );
    }
    for tick in ticks(frame.x.0, frame.x.1, 8.0).into_iter().filter(|t| t.fract() == 0.0) {
        let x = frame.place(tick, frame.y.0).0;
        let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>", base + 16.0);
    }
    let middle = TOP + (base - TOP) / 2.0;
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\
         <text transform=\"translate(12 {middle}) rotate(-90)\" text-anchor=\"middle\">{unit}</text>",
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        HEIGHT - 6.0
    );
}

fn draw(svg: &mut String, frame: &Frame, curve: &Curve) {
    let colour = curve.colour;
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        let places = points.map(|(x, y)| frame.place(x, y)).map(|(x, y)| format!("{x:.1} {y:.1}"));
        places.collect::<Vec<_>>().join("L")
    };
    if curve.points.iter().any(|p| p.steps.0 != p.steps.1) {
        let upper = curve.points.iter().map(|p| (p.x, p.high));
        let lower = curve.points.iter().rev().map(|p| (p.x, p.low));
        let _ = write!(svg, "<path class=\"span {colour}\" d=\"M{}Z\"/>", path(&mut upper.chain(lower)));
    }
    let line = path(&mut curve.points.iter().map(|p| (p.x, p.y)));
    let _ = write!(svg, "<path class=\"curve {colour}\" d=\"M{line}\"/>");
    for point in &curve.points {
        let (x, y) = frame.place(point.x, point.y);
        if curve.marked {
            let _ = write!(svg, "<circle class=\"mark {colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>");
        }
        let steps = match point.steps {
            (first, last) if first == last => format!("step {first}"),
            (first, last) => format!("steps {first}-{last}, mean"),
        };
        let _ = write!(
            svg,
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{steps}: {} {}</title></circle>",
            curve.name,
            number(point.y)
        );
    }
}

/// About `count` round values inside a range: multiples of 1, 2 or 5 times a power of ten.
fn ticks(from: f64, to: f64, count: f64) -> Vec<f64> {
    let rough = (to - from) / count;
    if !(rough.is_finite() && rough > 0.0) {
        return Vec::new();
    }
    let (mut power, mut digits) = (1.0f64, rough);
    while digits >= 10.0 {
        (power, digits) = (power * 10.0, digits / 10.0);
    }
    while digits < 1.0 {
        (power, digits) = (power / 10.0, digits * 10.0);
    }
    let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| *s >= digits).unwrap_or(10.0);
    let first = (from / step).ceil();
    (0..64).map(|i| (first + f64::from(i)) * step).take_while(|t| *t <= to).collect()
}

/// A number in few digits.
fn number(value: f64) -> String {
    let text = match value.abs() {
        0.0 => return "0".into(),
        a if !(1e-3..1e6).contains(&a) => return short_exponent(value),
        a if a >= 1000.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `1e-4`, `2.5e-5`.
fn short_exponent(value: f64) -> String {
    let text = format!("{value:.3e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if mantissa.contains('.') => {
            format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}
