//! Strict JSON for data rows: duplicate keys and deep nesting are errors; what RFC 8259 leaves out (NaN, numbers
//! that overflow, lone surrogates) is refused by the parser underneath.

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// Nesting beyond this is refused.
pub(super) const MAX_DEPTH: usize = 64;

/// A JSON value without duplicate keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// An integer that fits.
    Integer(i64),
    /// Any other number.
    Float(f64),
    String(String),
    Array(Vec<Json>),
    Object(Fields),
}

/// The fields of an object, in the order in which they are written: a chat template shows tools and arguments so.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields(Vec<(String, Json)>);

impl Fields {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Json> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Whether the key is there.
    pub(super) fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of a key, to be changed.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Json> {
        self.0.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Takes a key out, where it is there.
    pub(super) fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// Puts a key that is not there at the end.
    pub(super) fn insert(&mut self, key: &str, value: Json) {
        debug_assert!(!self.contains_key(key), "{key} twice");
        self.0.push((key.to_owned(), value));
    }

    /// The keys as written.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }

    /// Keys and values as written.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// Why a row is not JSON.
#[derive(Debug)]
pub(super) struct JsonFault {
    /// Column of the fault within the row's bytes, from 1.
    pub(super) column: usize,
    /// Line within the row, from 1.
    pub(super) line: usize,
    /// What is wrong.
    pub(super) what: String,
    /// The row ended too early.
    pub(super) at_end: bool,
}

/// Parses one value that fills `text`.
pub(super) fn parse(text: &str) -> Result<Json, JsonFault> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Depth(0).read(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| {
        let what = error.to_string();
        let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(before, _)| before);
        JsonFault {
            column: error.column().max(1),
            line: error.line().max(1),
            what: what.to_string(),
            at_end: error.is_eof(),
        }
    })
}

impl Json {
    /// What kind of value it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Integer(_) | Json::Float(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }
}

#[derive(Clone, Copy)]
struct Depth(usize);

impl Depth {
    fn read<'de, D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        from.deserialize_any(self)
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.0 == MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Depth(self.0 + 1))
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Depth {
    type Value = Json;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        self.read(from)
    }
}

impl<'de> Visitor<'de> for Depth {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::Float(value as f64), Json::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let deeper = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(deeper)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let deeper = self.deeper()?;
        let (mut fields, mut keys) = (Vec::new(), BTreeSet::new());
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(deeper)?;
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("key {key:?} appears twice")));
            }
            fields.push((key, value));
        }
        Ok(Json::Object(Fields(fields)))
    }
}
