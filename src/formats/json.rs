//! Strict JSON of untrusted files: bounded size and depth, no key twice.

use super::lfs;
use crate::error::{Error, Result};
use crate::files;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// Deepest nesting of lists and objects.
const MAX_DEPTH: usize = 32;

/// A JSON object; its keys are sorted.
pub type Object = Map<String, Value>;

/// Reads the JSON object in the file `path`, which has at most `max_bytes`.
///
/// # Errors
/// Names the file, line and column: larger, not UTF-8, not JSON, a key twice, nested too deeply, not an object.
pub fn read_object(path: &Path, max_bytes: u64) -> Result<Object> {
    object_of(path, &files::read(path, max_bytes)?)
}

/// The numbers, texts and switches of a JSON object that Python's `json` wrote: NaN and Infinity, which it writes and
/// JSON does not have, are null, and so are lists and objects, which are passed over.
///
/// # Errors
/// As [`read_object`].
pub fn read_python_scalars(path: &Path, max_bytes: u64) -> Result<Object> {
    let text = without_nan(files::read(path, max_bytes)?);
    object_in(path, parse_as(Strict { depth: 0, shallow: true }, &text))
}

/// The object that `text`, the content of `path`, holds.
///
/// # Errors
/// As [`read_object`].
pub fn object_of(path: &Path, text: &[u8]) -> Result<Object> {
    if lfs::is_pointer(text) {
        return Err(lfs::pointer(path));
    }
    object_in(path, parse(text))
}

fn object_in(path: &Path, parsed: std::result::Result<Value, serde_json::Error>) -> Result<Object> {
    match parsed {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::input(format!("{}: not a JSON object", path.display()))),
        Err(error) => Err(Error::input(format!("{}: {error}", path.display())).caused_by(error)),
    }
}

fn without_nan(text: Vec<u8>) -> Vec<u8> {
    if !text.windows(3).any(|three| three == b"NaN" || three == b"Inf") {
        return text;
    }
    let text = text.as_slice();
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    let mut within_text = false;
    while let Some(&byte) = rest.first() {
        let word = [b"-Infinity".as_slice(), b"Infinity", b"NaN"].into_iter().find(|w| rest.starts_with(w));
        let length = match (within_text, word) {
            (false, Some(word)) => {
                out.extend(b"null");
                rest = &rest[word.len()..];
                continue;
            }
            (true, _) if byte == b'\\' => rest.len().min(2),
            _ => 1,
        };
        within_text ^= byte == b'"';
        out.extend(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// Parses `text` as one JSON value.
///
/// # Errors
/// What is wrong, with line and column.
pub fn parse(text: &[u8]) -> std::result::Result<Value, serde_json::Error> {
    parse_as(Strict { depth: 0, shallow: false }, text)
}

fn parse_as(strict: Strict, text: &[u8]) -> std::result::Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = strict.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// The error of a key that occurs twice in one object.
pub(super) fn duplicate<E: de::Error>(key: &str) -> E {
    E::custom(format_args!("the key {key:?} occurs twice"))
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
    /// Lists and objects in the outermost one are passed over.
    shallow: bool,
}

impl Strict {
    fn is_passed_over(self) -> bool {
        self.shallow && self.depth > 0
    }

    fn deeper<E: de::Error>(self) -> std::result::Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested more than {MAX_DEPTH} deep")));
        }
        Ok(Strict { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Value, A::Error> {
        let inner = self.deeper()?;
        if self.is_passed_over() {
            while list.next_element::<de::IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let inner = self.deeper()?;
        if self.is_passed_over() {
            while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        let mut object = Object::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(duplicate(&key));
            }
            let value = map.next_value_seed(inner)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// A string-to-string object without duplicate keys.
pub(super) struct StringMap(pub(super) std::collections::BTreeMap<String, String>);

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = StringMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<StringMap, A::Error> {
                let mut strings = std::collections::BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if strings.contains_key(&key) {
                        return Err(duplicate(&key));
                    }
                    strings.insert(key, value);
                }
                Ok(StringMap(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}
