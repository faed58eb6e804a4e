//! Strict safetensors: the reader refuses what a hostile or torn file may hold; the writer's bytes are a
//! function of the tensors alone.
//!
//! The format (github.com/huggingface/safetensors, README): u64 header length, a JSON object that gives each
//! tensor its dtype, shape and byte range, then the bytes of all tensors without holes.

use super::json::{StringMap, duplicate};
use super::lfs;
use crate::element::Element;
use crate::error::{Error, Result};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::ops::Range;
use std::path::Path;

/// Longest header; those of released Qwen files are below 1 MiB.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Most tensors of a file.
pub const MAX_TENSORS: usize = 100_000;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Longest tensor name, bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub element: Element,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes within the file.
    pub bytes: Range<usize>,
}

/// A tensor whose elements are not an [`Element`]: codes, integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherTensor {
    /// As the header names it.
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes within the file.
    pub bytes: Range<usize>,
}

/// A checked header.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Tensors by name, those whose elements are an [`Element`].
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The other tensors: well-formed, but not elements of their own.
    pub others: BTreeMap<String, OtherTensor>,
    /// `__metadata__`.
    #[cfg_attr(not(feature = "internals"), allow(dead_code))]
    pub metadata: BTreeMap<String, String>,
}

/// Parses and checks the header of a file whose first bytes are `head` (at least 8 + header length, or the
/// whole file) and whose length is `file_len`.
///
/// # Errors
/// Names `path`, the tensor and the rule broken: limits, duplicate keys, overlaps, holes, rank, dtype, length.
pub fn parse_header(path: &Path, head: &[u8], file_len: u64) -> Result<Header> {
    if lfs::is_pointer(head) {
        return Err(lfs::pointer(path));
    }
    parse(head, file_len).map_err(|rule| Error::input(format!("{}: {rule}", path.display())))
}

/// The bytes that [`parse_header`] needs of a file that begins with `prefix`, its first 8 bytes.
///
/// # Errors
/// As [`parse_header`]: the header is longer than permitted or than the file.
pub fn header_end(path: &Path, prefix: [u8; 8], file_len: u64) -> Result<usize> {
    // The first word of a Git LFS pointer; as a length it is beyond any header's.
    if prefix == *b"version " {
        return Err(lfs::pointer(path));
    }
    end_of_header(&prefix, file_len).map_err(|rule| Error::input(format!("{}: {rule}", path.display())))
}

/// A tensor's name as it may be printed: escaped, and cut where it is long.
#[must_use]
pub fn printable(name: &str) -> String {
    let mut short: String = name.chars().take(120).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    short.escape_debug().collect()
}

type Checked<T> = std::result::Result<T, String>;

fn end_of_header(head: &[u8], file_len: u64) -> Checked<usize> {
    let Some(prefix) = head.first_chunk::<8>() else {
        return Err(format!("not a safetensors file: {file_len} bytes, shorter than its header's length"));
    };
    let len = u64::from_le_bytes(*prefix);
    if len > MAX_HEADER_BYTES {
        return Err(format!("header of {len} bytes, at most {MAX_HEADER_BYTES} are read"));
    }
    if len + 8 > file_len {
        return Err(format!("the file has {file_len} bytes, its header alone needs {}", len + 8));
    }
    Ok(len as usize + 8)
}

fn parse(head: &[u8], file_len: u64) -> Checked<Header> {
    let end = end_of_header(head, file_len)?;
    let Some(text) = head.get(8..end) else {
        return Err("the file became shorter while it was read".into());
    };
    if text.first() != Some(&b'{') {
        return Err("the header does not begin with '{'".into());
    }
    let mut raw = RawHeader::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = HeaderSeed(&mut raw).deserialize(&mut reader).and_then(|()| reader.end());
    if let Err(error) = read {
        let place = if raw.current.is_empty() {
            String::new()
        } else {
            format!(", tensor {}", printable(&raw.current))
        };
        return Err(format!("header{place}: {error}"));
    }
    checked(raw, end, file_len)
}

/// Checks sizes and that the tensors cover the rest of the file exactly once.
fn checked(raw: RawHeader, start: usize, file_len: u64) -> Checked<Header> {
    let mut header = Header { metadata: raw.metadata, ..Header::default() };
    let mut ranges = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        check_name(&name)?;
        let fault = |rule: String| format!("tensor {}: {rule}", printable(&name));
        let (shape, size) = shape_and_bytes(&entry).map_err(fault)?;
        let [begin, end] = entry.offsets;
        if end.checked_sub(begin) != Some(size) {
            return Err(fault(format!(
                "shape {shape:?} of {} needs {size} bytes, its range is {begin}..{end}",
                entry.dtype
            )));
        }
        let at = |offset: u64| usize::try_from(offset).ok().and_then(|o| o.checked_add(start));
        let (Some(first), Some(last)) = (at(begin), at(end)) else {
            return Err(fault(format!("range {begin}..{end} is too large")));
        };
        ranges.push((first, last, name.clone()));
        match element(&entry.dtype) {
            Some(element) => {
                header.tensors.insert(name, TensorInfo { element, shape, bytes: first..last });
            }
            None => {
                let dtype = entry.dtype;
                header.others.insert(name, OtherTensor { dtype, shape, bytes: first..last });
            }
        }
    }
    check_cover(ranges, start, file_len)?;
    Ok(header)
}

fn check_cover(mut ranges: Vec<(usize, usize, String)>, start: usize, file_len: u64) -> Checked<()> {
    ranges.sort();
    let mut at = start;
    for (first, last, name) in &ranges {
        if *first != at {
            let rule = if *first < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor {}: its range {rule}", printable(name)));
        }
        at = *last;
    }
    if at as u64 != file_len {
        let relation =
            if (at as u64) < file_len { "has bytes after its last tensor" } else { "is cut short" };
        return Err(format!("the file {relation}: {file_len} bytes, its header describes {at}"));
    }
    Ok(())
}

fn check_name(name: &str) -> Checked<()> {
    let rule = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 512 bytes"
    } else if name.chars().any(char::is_control) {
        "has control characters"
    } else if name.contains("../") || name.contains("..\\") {
        "looks like a path"
    } else {
        return Ok(());
    };
    Err(format!("tensor name \"{}\" {rule}", printable(name)))
}

fn shape_and_bytes(entry: &Entry) -> Checked<(Vec<usize>, u64)> {
    let Some(width) = dtype_bytes(&entry.dtype) else {
        return Err(format!("dtype {} is not supported; F32, F16 and BF16 are", printable(&entry.dtype)));
    };
    if entry.shape.contains(&0) {
        return Err(format!("shape {:?} has a dimension of 0", entry.shape));
    }
    let size = entry.shape.iter().try_fold(width, |n, &dim| n.checked_mul(dim));
    let shape = entry.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>();
    match (shape, size) {
        (Some(shape), Some(size)) => Ok((shape, size)),
        _ => Err(format!("shape {:?} overflows", entry.shape)),
    }
}

fn element(dtype: &str) -> Option<Element> {
    match dtype {
        "F32" => Some(Element::F32),
        "F16" => Some(Element::F16),
        "BF16" => Some(Element::Bf16),
        _ => None,
    }
}

fn dtype_name(element: Element) -> &'static str {
    match element {
        Element::F32 => "F32",
        Element::F16 => "F16",
        Element::Bf16 => "BF16",
    }
}

/// Bytes of one element of each dtype of the format whose elements are whole bytes.
fn dtype_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" | "C64" => Some(8),
        _ => None,
    }
}

// ---- the header's JSON, with limits applied while it is read ----------------------------------------------

#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    has_metadata: bool,
    /// The key being read, for error messages.
    current: String,
}

struct Entry {
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

struct HeaderSeed<'a>(&'a mut RawHeader);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let raw = self.0;
        while let Some(key) = map.next_key::<String>()? {
            raw.current.clone_from(&key);
            if key == "__metadata__" {
                if raw.has_metadata {
                    return Err(duplicate(&key));
                }
                raw.has_metadata = true;
                raw.metadata = map.next_value::<StringMap>()?.0;
            } else {
                if raw.tensors.contains_key(&key) {
                    return Err(duplicate(&printable(&key)));
                }
                if raw.tensors.len() == MAX_TENSORS {
                    return Err(de::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                }
                let entry = map.next_value::<Entry>()?;
                raw.tensors.insert(key, entry);
            }
            raw.current.clear();
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entry, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let again = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                        "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                        "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                        other => {
                            return Err(de::Error::unknown_field(other, &["dtype", "shape", "data_offsets"]));
                        }
                    };
                    if again {
                        return Err(duplicate(&key));
                    }
                }
                Ok(Entry {
                    dtype: dtype.ok_or_else(|| de::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| de::Error::missing_field("shape"))?,
                    offsets: offsets.ok_or_else(|| de::Error::missing_field("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(dim) = list.next_element::<u64>()? {
                    if shape.len() == MAX_RANK {
                        return Err(de::Error::custom(format_args!("more than {MAX_RANK} dimensions")));
                    }
                    shape.push(dim);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

// ---- the writer -------------------------------------------------------------------------------------------

/// What a header says about one tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct Outline<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub element: Element,
    /// Its dimensions.
    pub shape: &'a [usize],
}

/// The first bytes of a file that holds `tensors` in the order given: length, header with the one metadata key
/// `format: pt`, spaces up to a multiple of 8. The tensors' bytes follow without holes.
#[must_use]
pub fn encode_header(tensors: &[Outline<'_>]) -> Vec<u8> {
    let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.shape.iter().product::<usize>() * tensor.element.bytes();
        let name = serde_json::Value::from(tensor.name);
        let dims: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        let (dtype, dims) = (dtype_name(tensor.element), dims.join(","));
        // Writing to a String cannot fail.
        let _ = write!(text, r#",{name}:{{"dtype":"{dtype}","shape":[{dims}],"data_offsets":[{at},{end}]}}"#);
        at = end;
    }
    text.push('}');
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// One f32 tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct F32Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Its elements.
    pub values: &'a [f32],
}

/// The bytes of a safetensors file with `tensors` as f32, sorted by name, one metadata key `format: pt`.
///
/// # Panics
/// When a name occurs twice or a shape does not fit its values: mistakes of the caller.
#[must_use]
pub fn encode_f32(tensors: &[F32Tensor<'_>]) -> Vec<u8> {
    let mut sorted = tensors.to_vec();
    sorted.sort_by_key(|t| t.name);
    assert!(sorted.windows(2).all(|pair| pair[0].name != pair[1].name), "a tensor name occurs twice");
    let outlines: Vec<Outline<'_>> =
        sorted.iter().map(|t| Outline { name: t.name, element: Element::F32, shape: t.shape }).collect();
    let mut bytes = encode_header(&outlines);
    bytes.reserve_exact(sorted.iter().map(|t| t.values.len() * 4).sum());
    for tensor in sorted {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(elements, tensor.values.len(), "{}: shape and values differ", tensor.name);
        bytes.extend(tensor.values.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes
}
