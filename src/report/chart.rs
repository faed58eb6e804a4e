//! Curves as inline SVG: what the pages of reports are made of.

use std::fmt::Write;

/// Colours of curves; a page's style has one for each, `c0` and on.
pub(super) const COLOURS: usize = 8;
/// Points drawn for a curve at most; more steps are drawn as averages with the span of their values behind.
const POINTS: usize = 400;
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// One drawn point: a step, or the average of several.
struct Point {
    x: f64,
    y: f64,
    low: f64,
    high: f64,
    steps: (u64, u64),
}

/// Values by step.
pub(super) struct Curve {
    name: String,
    /// Number of its colour.
    colour: usize,
    points: Vec<Point>,
    /// Few, separate values are marked by dots.
    marked: bool,
}

/// Text as HTML shows it.
pub(super) fn escape(text: &str) -> String {
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

/// Groups neighbouring steps until there are few enough to draw. `name` is plain text.
pub(super) fn curve(name: &str, colour: usize, values: impl Iterator<Item = (u64, f64)>) -> Curve {
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
    Curve { name: escape(name), colour: colour % COLOURS, points, marked: values.len() <= 40 }
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

/// A picture of the curves with a title; empty when there is nothing to draw.
pub(super) fn chart(title: &str, unit: &str, curves: &[Curve]) -> String {
    let Some(frame) = Frame::around(curves) else { return String::new() };
    let mut svg = String::new();
    let drawn: Vec<&Curve> = curves.iter().filter(|c| !c.points.is_empty()).collect();
    let keys = if drawn.len() > 1 {
        drawn.iter().map(|c| format!("<span class=\"key c{}\">{}</span>", c.colour, c.name)).collect()
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
        let _ = write!(svg, "<path class=\"span c{colour}\" d=\"M{}Z\"/>", path(&mut upper.chain(lower)));
    }
    let line = path(&mut curve.points.iter().map(|p| (p.x, p.y)));
    let _ = write!(svg, "<path class=\"curve c{colour}\" d=\"M{line}\"/>");
    for point in &curve.points {
        let (x, y) = frame.place(point.x, point.y);
        if curve.marked {
            let _ = write!(svg, "<circle class=\"mark c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>");
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
