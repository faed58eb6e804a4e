//! What chat templates take for granted because they were written for Python: how values are printed, JSON, and
//! the methods of strings. Strings are compared by the characters that are meant (`super::marks`).

use super::chars::is_space;
use super::marks::Marks;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Nesting of lists and objects that are printed.
const MAX_DEPTH: usize = 100;
/// The variable that holds the marks; no template can name it.
pub(super) const MARKS: &str = "\u{DFFFE}marks";

type Made<T> = Result<T, Error>;

fn wrong(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// The marks of the rendering under way.
#[derive(Debug)]
pub(super) struct Marked(pub(super) Arc<Marks>);

impl minijinja::value::Object for Marked {}

fn marks(state: &State) -> Arc<Marks> {
    let value = state.lookup(MARKS);
    value.and_then(|v| v.downcast_object_ref::<Marked>().map(|m| m.0.clone())).unwrap_or_default()
}

// ---- printing ---------------------------------------------------------------------------------------------

/// Writes values as Python's `str` and `repr`, or as `json.dumps`.
struct Printer<'a> {
    state: &'a State<'a, 'a>,
    marks: Arc<Marks>,
    json: Option<&'a Dumps>,
    out: String,
}

/// Arguments of `json.dumps`.
struct Dumps {
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// What Python's `str` makes of a value.
pub(super) fn text_of(state: &State, value: &Value) -> Made<String> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut printer = Printer { state, marks: marks(state), json: None, out: String::new() };
    printer.value(value, 0)?;
    Ok(printer.out)
}

impl Printer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Made<()> {
        if depth > MAX_DEPTH {
            return Err(wrong("a value is nested too deeply to be printed"));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::Undefined if self.json.is_some() => {
                return Err(wrong("an undefined value has no JSON"));
            }
            ValueKind::Undefined => {}
            ValueKind::None => self.out.push_str(if self.json.is_some() { "null" } else { "None" }),
            ValueKind::Bool => self.out.push_str(match (self.json.is_some(), value.is_true()) {
                (true, true) => "true",
                (true, false) => "false",
                (false, true) => "True",
                (false, false) => "False",
            }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => {
                let number = f64::try_from(value.clone())?;
                self.out.push_str(&float(number, self.json.is_some()));
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => self.sequence(value, depth)?,
            ValueKind::Map => self.mapping(value, depth)?,
            other => return Err(wrong(format!("a {other} cannot be printed"))),
        }
        Ok(())
    }

    fn sequence(&mut self, value: &Value, depth: usize) -> Made<()> {
        let tuple = value.is_tuple() && self.json.is_none();
        self.out.push(if tuple { '(' } else { '[' });
        let mut count = 0;
        for item in value.try_iter()? {
            self.separate(count, depth);
            self.value(&item, depth + 1)?;
            count += 1;
        }
        if tuple && count == 1 {
            self.out.push(',');
        }
        self.close(count, depth);
        self.out.push(if tuple { ')' } else { ']' });
        Ok(())
    }

    fn mapping(&mut self, value: &Value, depth: usize) -> Made<()> {
        self.out.push('{');
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.json.is_some_and(|dumps| dumps.sort_keys) {
            keys.sort();
        }
        for (count, key) in keys.iter().enumerate() {
            self.separate(count, depth);
            match (self.json, key.as_str()) {
                (_, Some(text)) => self.string(text)?,
                (Some(_), None) => return Err(wrong("a key of an object is no string")),
                (None, None) => self.value(key, depth + 1)?,
            }
            self.out.push_str(self.json.map_or(": ", |dumps| &dumps.key));
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.close(keys.len(), depth);
        self.out.push('}');
        Ok(())
    }

    /// What stands before the item of that number.
    fn separate(&mut self, count: usize, depth: usize) {
        let Some(dumps) = self.json else {
            self.out.push_str(if count > 0 { ", " } else { "" });
            return;
        };
        if count > 0 {
            self.out.push_str(&dumps.item);
        }
        self.line(dumps, depth + 1);
    }

    fn close(&mut self, count: usize, depth: usize) {
        if let Some(dumps) = self.json.filter(|_| count > 0) {
            self.line(dumps, depth);
        }
    }

    fn line(&mut self, dumps: &Dumps, depth: usize) {
        if let Some(indent) = &dumps.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) -> Made<()> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        let marks = self.marks.clone();
        let seen = |c: char| marks.seen(c);
        let double = self.json.is_some()
            || text.chars().any(|c| seen(c) == '\'') && !text.chars().any(|c| seen(c) == '"');
        let quote = if double { '"' } else { '\'' };
        self.out.push(quote);
        for c in text.chars() {
            let meant = seen(c);
            if meant == '\\' || meant == quote {
                self.out.push('\\');
                self.out.push(c);
            } else {
                match self.escape(meant) {
                    Some(escape) => self.out.push_str(&escape),
                    None => self.out.push(c),
                }
            }
        }
        self.out.push(quote);
        Ok(())
    }

    fn escape(&self, c: char) -> Option<String> {
        let named = match c {
            '\n' => Some("\\n"),
            '\r' => Some("\\r"),
            '\t' => Some("\\t"),
            '\x08' if self.json.is_some() => Some("\\b"),
            '\x0c' if self.json.is_some() => Some("\\f"),
            _ => None,
        };
        if let Some(named) = named {
            return Some(named.to_owned());
        }
        let code = u32::from(c);
        match self.json {
            Some(dumps) if code < 0x20 || (dumps.ensure_ascii && !c.is_ascii()) => {
                let units = |c: char| c.encode_utf16(&mut [0; 2]).to_vec();
                Some(units(c).iter().map(|unit| format!("\\u{unit:04x}")).collect())
            }
            Some(_) => None,
            None if is_printable(c) => None,
            None if code < 0x100 => Some(format!("\\x{code:02x}")),
            None if code < 0x1_0000 => Some(format!("\\u{code:04x}")),
            None => Some(format!("\\U{code:08x}")),
        }
    }
}

/// Python's `str.isprintable`, but for code points that are not assigned.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}');
    c == ' ' || !(c.is_control() || is_space(c) || hidden)
}

/// Python's `repr` of a float; JSON has its own names for what is no number.
fn float(number: f64, json: bool) -> String {
    if !number.is_finite() {
        let names = if json { ["NaN", "Infinity"] } else { ["nan", "inf"] };
        let sign = if number.is_sign_negative() && !number.is_nan() { "-" } else { "" };
        return format!("{sign}{}", names[usize::from(number.is_infinite())]);
    }
    // The shortest digits that give the number back, as Python has them.
    let text = format!("{number:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// The filter `tojson` of transformers: `json.dumps`, which by default leaves other scripts as they are.
pub(super) fn tojson(state: &State, value: &Value, arguments: Rest<ValueOrKwargs>) -> Made<Value> {
    let mut positional: Vec<Value> = arguments.0.into_iter().map(ValueOrKwargs::into_value).collect();
    let kwargs = match positional.pop_if(|last| last.is_kwargs()) {
        Some(last) => Kwargs::try_from(last)?,
        None => Kwargs::from_iter(Vec::<(String, Value)>::new()),
    };
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |index: usize| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => kwargs.get::<Option<Value>>(names[index]),
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match argument(1)?.filter(|value| !value.is_none()) {
        None => None,
        Some(value) if value.as_str().is_some() => value.as_str().map(str::to_owned),
        Some(value) => {
            let width = value.as_usize().filter(|width| *width <= 64);
            Some(" ".repeat(width.ok_or_else(|| wrong("tojson: indent is no number up to 64"))?))
        }
    };
    let mut dumps = Dumps {
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        indent,
        sort_keys: truth(argument(3)?),
        ensure_ascii: truth(argument(0)?),
    };
    if let Some(pair) = argument(2)?.filter(|value| !value.is_none()) {
        let pair: Vec<Value> = pair.try_iter()?.take(3).collect();
        let [item, key] = pair.as_slice() else { return Err(wrong("tojson: separators are no pair")) };
        (dumps.item, dumps.key) = (item.to_string(), key.to_string());
    }
    kwargs.assert_all_used()?;
    let mut printer = Printer { state, marks: marks(state), json: Some(&dumps), out: String::new() };
    printer.value(value, 0)?;
    Ok(printer.out.into())
}

// ---- strings ----------------------------------------------------------------------------------------------

/// A string that may hold marks, beside the text that is meant.
struct Text<'a> {
    raw: &'a str,
    seen: Cow<'a, str>,
    /// For each byte of `seen` that begins a character, and its end: the byte of `raw`. None: they are the same.
    places: Option<Vec<usize>>,
}

impl<'a> Text<'a> {
    fn new(raw: &'a str, marks: &Marks) -> Self {
        let seen = marks.text(raw);
        let places = matches!(seen, Cow::Owned(_)).then(|| {
            let mut places = vec![0; seen.len() + 1];
            for ((at, _), (place, _)) in seen.char_indices().zip(raw.char_indices()) {
                places[at] = place;
            }
            places[seen.len()] = raw.len();
            places
        });
        Text { raw, seen, places }
    }

    /// The part of the raw string that a part of the seen one stands for.
    fn part(&self, seen: Range<usize>) -> &'a str {
        match &self.places {
            None => &self.raw[seen],
            Some(places) => &self.raw[places[seen.start]..places[seen.end]],
        }
    }

    fn strip(&self, chars: Option<&str>, left: bool, right: bool) -> &'a str {
        let cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
        let all = &*self.seen;
        let start = if left { all.len() - all.trim_start_matches(cut).len() } else { 0 };
        let rest = &all[start..];
        let length = if right { rest.trim_end_matches(cut).len() } else { rest.len() };
        self.part(start..start + length)
    }

    /// The parts between separators, at most `most` of which are used, from the left or from the right.
    fn split(&self, separator: Option<&str>, most: usize, from_right: bool) -> Made<Vec<&'a str>> {
        let all = &*self.seen;
        let Some(separator) = separator else { return Ok(self.words(most, from_right)) };
        if separator.is_empty() {
            return Err(wrong("split: the separator is empty"));
        }
        let mut found: Vec<usize> = if from_right {
            let mut found: Vec<usize> = all.rmatch_indices(separator).take(most).map(|(at, _)| at).collect();
            found.reverse();
            found
        } else {
            all.match_indices(separator).take(most).map(|(at, _)| at).collect()
        };
        found.push(all.len());
        let mut start = 0;
        let part = |end: usize| {
            let range = start..end;
            start = end + separator.len();
            self.part(range)
        };
        Ok(found.into_iter().map(part).collect())
    }

    /// Split at white space, which also falls away at the ends.
    fn words(&self, most: usize, from_right: bool) -> Vec<&'a str> {
        let (mut words, mut rest) = (Vec::new(), 0..self.seen.len());
        loop {
            let text = &self.seen[rest.clone()];
            let trimmed =
                if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
            if trimmed.is_empty() {
                break;
            }
            let inside = if from_right {
                rest.start..rest.start + trimmed.len()
            } else {
                rest.end - trimmed.len()..rest.end
            };
            let border = if from_right {
                trimmed.rfind(is_space).map(|at| at + trimmed[at..].chars().next().map_or(1, char::len_utf8))
            } else {
                trimmed.find(is_space)
            };
            match border.filter(|_| words.len() < most) {
                Some(border) if from_right => {
                    words.push(self.part(inside.start + border..inside.end));
                    rest = inside.start..inside.start + border;
                }
                Some(border) => {
                    words.push(self.part(inside.start..inside.start + border));
                    rest = inside.start + border..inside.end;
                }
                None => {
                    words.push(self.part(inside));
                    break;
                }
            }
        }
        if from_right {
            words.reverse();
        }
        words
    }

    fn replace(&self, state: &State, old: &str, new: &str, most: usize) -> Made<String> {
        let matches = self.seen.match_indices(old).take(most).count() as u64;
        state.consume_fuel(matches.saturating_mul(new.len() as u64) / 64)?;
        let (mut made, mut done) = (String::new(), 0);
        for (at, _) in self.seen.match_indices(old).take(most) {
            made.push_str(self.part(done..at));
            made.push_str(new);
            done = at + old.len();
        }
        made.push_str(self.part(done..self.seen.len()));
        Ok(made)
    }
}

/// A count as Python has it: none or a negative one is no bound.
fn bound(count: Option<i64>) -> usize {
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX)
}

/// The filter `trim`.
pub(super) fn trim(state: &State, value: &Value, chars: Option<String>) -> Made<Value> {
    let marks = marks(state);
    let text = text_of(state, value)?;
    let chars = chars.map(|chars| marks.text(&chars).into_owned());
    Ok(Text::new(&text, &marks).strip(chars.as_deref(), true, true).into())
}

/// The filter `replace`.
pub(super) fn replace(state: &State, value: &Value, old: &str, new: &str, count: Option<i64>) -> Made<Value> {
    let marks = marks(state);
    let text = text_of(state, value)?;
    Text::new(&text, &marks).replace(state, &marks.text(old), new, bound(count)).map(Value::from)
}

/// The filter `string`.
pub(super) fn string(state: &State, value: &Value) -> Made<Value> {
    if value.as_str().is_some() { Ok(value.clone()) } else { text_of(state, value).map(Value::from) }
}

/// The filter `join`; what is no string is printed as Python prints it.
pub(super) fn join(state: &State, value: &Value, joiner: Option<&str>, named: Kwargs) -> Made<String> {
    let joiner = joiner.or(named.get("d")?).unwrap_or_default();
    let attribute: Option<&str> = named.get("attribute")?;
    named.assert_all_used()?;
    let items: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None if value.is_undefined() || value.is_none() => Vec::new(),
        None => value.try_iter()?.collect(),
    };
    let mut joined = String::new();
    for (index, item) in items.iter().enumerate() {
        let item = attribute.map_or_else(|| Ok(item.clone()), |name| item.get_attr(name))?;
        let text = text_of(state, &item)?;
        state.consume_fuel(1 + (text.len() + joiner.len()) as u64 / 64)?;
        joined.push_str(if index > 0 { joiner } else { "" });
        joined.push_str(&text);
    }
    Ok(joined)
}

/// Methods of Python's values.
pub(super) fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Made<Value> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments);
    };
    let marks = marks(state);
    state.consume_fuel(text.len() as u64 / 64)?;
    let text = Text::new(text, &marks);
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(arguments)?;
            let chars = chars.map(|chars| marks.text(chars));
            Ok(text.strip(chars.as_deref(), name != "rstrip", name != "lstrip").into())
        }
        "split" | "rsplit" => {
            let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
            let separator = match separator {
                Some(value) => Some(value),
                None => kwargs.get::<Option<Value>>("sep")?,
            };
            let most = match most {
                Some(most) => Some(most),
                None => kwargs.get::<Option<i64>>("maxsplit")?,
            };
            kwargs.assert_all_used()?;
            let separator = separator.as_ref().and_then(Value::as_str).map(|text| marks.text(text));
            let parts = text.split(separator.as_deref(), bound(most), name == "rsplit")?;
            Ok(parts.into_iter().map(Value::from).collect())
        }
        "startswith" | "endswith" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let matches = |wanted: &Value| {
                let Some(wanted) = wanted.as_str() else { return Err(wrong(format!("{name} of no string"))) };
                let wanted = marks.text(wanted);
                let seen = &text.seen;
                Ok(if name == "startswith" { seen.starts_with(&*wanted) } else { seen.ends_with(&*wanted) })
            };
            if wanted.as_str().is_some() {
                return matches(wanted).map(Value::from);
            }
            for one in wanted.try_iter()? {
                if matches(&one)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(arguments)?;
            text.replace(state, &marks.text(old), new, bound(count)).map(Value::from)
        }
        // It allocates before it pays for it.
        "format" => Err(Error::new(ErrorKind::UnknownMethod, "string has no method named format")),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}
