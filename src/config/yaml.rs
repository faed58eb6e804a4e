//! YAML as plain data: mappings, sequences and scalars of the core schema (YAML 1.2.2, section 10.3), and `yes`, `no`,
//! `on`, `off` as PyYAML reads them. Anchors, aliases and tags are refused: a file can neither grow while it is read
//! nor say what it does not show.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use serde_json::{Map, Number, Value};

/// Nesting beyond this is refused.
const MAX_DEPTH: usize = 16;

/// What is wrong, and the line, counted from 1.
type Fault = (usize, String);

/// Reads the one document of `text`, a mapping.
///
/// # Errors
/// The line and what is wrong in it.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, Fault> {
    let mut reader = Reader { events: Parser::new_from_str(text), line: 1 };
    let mut document = None;
    loop {
        match reader.next()? {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            first if document.is_none() => document = Some(reader.value(first, 0)?),
            _ => return Err((reader.line, "a second document; one is read".into())),
        }
    }
    match document {
        Some(Value::Object(map)) => Ok(map),
        None | Some(Value::Null) => Ok(Map::new()),
        Some(_) => Err((1, "not a mapping of settings".into())),
    }
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, Fault> {
        let at_end = || (self.line, "the file ends too early".to_owned());
        let (event, span) = self
            .events
            .next()
            .ok_or_else(at_end)?
            .map_err(|fault: ScanError| (fault.marker().line().max(1), fault.info().to_owned()))?;
        self.line = span.start.line().max(1);
        Ok(event)
    }

    fn fault<T>(&self, what: impl Into<String>) -> Result<T, Fault> {
        Err((self.line, what.into()))
    }

    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, Fault> {
        if depth > MAX_DEPTH {
            return self.fault(format!("nested deeper than {MAX_DEPTH}"));
        }
        match event {
            Event::Scalar(text, style, 0, None) => match style {
                ScalarStyle::Plain => self.plain(&text),
                _ => Ok(Value::String(text.into_owned())),
            },
            Event::SequenceStart(0, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::Array(items)),
                        item => items.push(self.value(item, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(0, None) => self.mapping(depth),
            Event::Alias(_) => self.fault("an alias (*name): write the value itself"),
            _ => self.fault("an anchor (&name) or a tag (!name): write the value itself"),
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut map = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(map)),
                Event::Scalar(key, _, 0, None) => key.into_owned(),
                _ => return self.fault("a key that is no plain text"),
            };
            if map.contains_key(&key) {
                return self.fault(format!("{key} is set twice"));
            }
            let value = self.next()?;
            let value = self.value(value, depth + 1)?;
            map.insert(key, value);
        }
    }

    /// A scalar without quotes.
    fn plain(&self, text: &str) -> Result<Value, Fault> {
        match text.to_ascii_lowercase().as_str() {
            "" | "~" | "null" => return Ok(Value::Null),
            "true" | "yes" | "on" => return Ok(Value::Bool(true)),
            "false" | "no" | "off" => return Ok(Value::Bool(false)),
            _ => {}
        }
        if let Ok(whole) = text.parse::<i64>() {
            return Ok(Value::from(whole));
        }
        let begins_as_number =
            text.trim_start_matches(['-', '+', '.']).starts_with(|c: char| c.is_ascii_digit());
        match text.parse::<f64>() {
            Ok(number) if begins_as_number => match Number::from_f64(number) {
                Some(number) => Ok(Value::Number(number)),
                None => self.fault(format!("{text} is too large")),
            },
            _ => Ok(Value::String(text.to_owned())),
        }
    }
}
