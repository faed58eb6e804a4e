//! Reading the format. The file is untrusted: every length is compared with what the file holds before
//! anything is allocated, and the arrays grow as they are read.

use super::buffer::{Buffer, CHUNK};
use super::encode::{header_block, trailer_block};
use super::format::{
    BLOCK, CUR_MAX, DIGEST_AT, Digest, ENTRY_LEN, FLAG_TAINTED, Fault, Header, IDX_MAX, MAGIC, META_MAX,
    Reading, SECTIONS, Section, TABLE_AT, VERSION, padded,
};
use super::state::{Best, Cursor, Meta, NAME_MAX, State, TensorEntry, first_bad};
use crate::report::line::LogLine;
use std::io;

/// Where the bytes of a file come from.
pub trait Source {
    /// Its length, bytes.
    ///
    /// # Errors
    /// The storage's own.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The storage's own; `UnexpectedEof` beyond the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

type Read<T> = Result<T, Fault>;

fn damaged<T>(what: impl Into<String>) -> Read<T> {
    Err(Fault::Damaged(what.into()))
}

fn bytes_text(len: u64) -> String {
    if len < 10_000_000 { format!("{len} bytes") } else { format!("{} MB", len / 1_000_000) }
}

/// Reads and checks everything; see [`Reading`].
pub(super) fn read(source: &dyn Source, reading: Reading) -> Read<(Header, State)> {
    let header = read_header(source)?;
    let chunk = CHUNK.min(usize::try_from(header.file_len).unwrap_or(CHUNK));
    let mut reader = Reader { source, header: &header, reading, buffer: Buffer::new(chunk) };
    let mut state = State { step: header.step, tainted: header.tainted, ..State::default() };
    let meta = Meta::decode(&reader.small("META", META_MAX)?);
    let meta = meta.map_err(|e| Fault::Damaged(format!("section META: {e}")))?;
    (state.identity, state.history) = (meta.identity, meta.history);
    state.tensors = parse_idx(&reader.small("IDX", IDX_MAX)?)?;
    state.cursor = parse_cur(&reader.small("CUR", CUR_MAX)?)?;
    state.log = parse_log(&reader.small("LOG", u64::MAX)?)?;
    if state.cursor.samples != header.samples {
        let (here, there) = (state.cursor.samples, header.samples);
        return damaged(format!("section CUR: {here} samples, the header says {there}"));
    }
    let arrays = [reader.floats("W")?, reader.floats("M")?, reader.floats("V")?];
    for (name, array) in ["W", "M", "V"].into_iter().zip(&arrays) {
        if let Some(at) = array.first_bad {
            return damaged(state.bad_value(name, at).to_string());
        }
    }
    let lengths = [arrays[0].length, arrays[1].length, arrays[2].length];
    [state.weights, state.m, state.v] = arrays.map(|array| array.values);
    reader.trailer()?;
    state.check_structure(lengths).map_err(|flaw| Fault::Damaged(flaw.to_string()))?;
    Ok((header, state))
}

/// Reads and checks the header alone, and that the file has the length it names.
pub(super) fn read_header(source: &dyn Source) -> Read<Header> {
    let len = source.size()?;
    if len < 2 * BLOCK {
        return damaged(format!("not a checkpoint, or cut off: {} long", bytes_text(len)));
    }
    let mut buffer = Buffer::new(BLOCK as usize);
    let block = buffer.bytes();
    source.read_at(0, block)?;
    if block[..8] != MAGIC {
        return damaged("not a checkpoint: wrong magic number at byte 0");
    }
    if blake3::hash(&block[..DIGEST_AT]).as_bytes() != &block[DIGEST_AT..] {
        return damaged("header damaged: digest differs (file bytes 0x0..0x1000)");
    }
    let header = parse_header(block)?;
    if header.file_len != len {
        return damaged(format!(
            "length {}, the header says {}",
            bytes_text(len),
            bytes_text(header.file_len)
        ));
    }
    Ok(header)
}

/// The header's fields, from a block whose digest holds.
fn parse_header(block: &[u8]) -> Read<Header> {
    let mut fields = Fields { section: "header", base: 8, bytes: &block[8..TABLE_AT] };
    let (major, minor) = (fields.u16()?, fields.u16()?);
    if (major, minor) != VERSION {
        let (ours, ours_minor) = VERSION;
        return Err(Fault::OtherVersion(format!(
            "format {major}.{minor}, this build reads {ours}.{ours_minor}"
        )));
    }
    let header_len = fields.u32()?;
    let (file_len, step, samples) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (flags, count, entry) = (fields.u32()?, fields.u32()?, fields.u32()?);
    if header_len as u64 != BLOCK || count as usize != SECTIONS.len() || entry as usize != ENTRY_LEN {
        return damaged("header: lengths are not those of this version");
    }
    let mut sections = Vec::with_capacity(SECTIONS.len());
    let mut next = BLOCK;
    for (i, name) in SECTIONS.into_iter().enumerate() {
        let at = TABLE_AT + i * ENTRY_LEN;
        let section = parse_entry(name, at, &block[at..at + ENTRY_LEN])?;
        if section.offset != next {
            return damaged(format!("section {name}: begins at {:#x}, expected {next:#x}", section.offset));
        }
        next = padded(section.len)
            .and_then(|len| next.checked_add(len))
            .filter(|end| *end < file_len)
            .ok_or_else(|| Fault::Damaged(format!("section {name}: longer than the file")))?;
        sections.push(section);
    }
    if next.checked_add(BLOCK) != Some(file_len) {
        return damaged("header: sections do not fill the file");
    }
    let digest: Digest = block[DIGEST_AT..].try_into().unwrap_or_default();
    let header = Header { file_len, step, samples, tainted: flags & FLAG_TAINTED != 0, sections, digest };
    // What the fields above do not say must be zero: unknown flags, reserved bytes.
    if header_block(&header) != block { damaged("header: reserved bytes are not zero") } else { Ok(header) }
}

fn parse_entry(name: &'static str, base: usize, entry: &[u8]) -> Read<Section> {
    let mut wanted = [0; 8];
    wanted[..name.len()].copy_from_slice(name.as_bytes());
    if entry[..8] != wanted {
        let found = entry[..8].escape_ascii();
        return damaged(format!("header: section \"{found}\" where {name} belongs (byte {base:#x})"));
    }
    let mut fields = Fields { section: "header", base: base + 8, bytes: &entry[8..] };
    let codec = fields.u16()?;
    if codec != 0 {
        return damaged(format!("section {name}: codec {codec}, this build reads codec 0 (none)"));
    }
    fields.take(6)?;
    let (offset, stored, raw) = (fields.u64()?, fields.u64()?, fields.u64()?);
    if stored != raw {
        return damaged(format!("section {name}: stored length {stored}, raw length {raw}, without a codec"));
    }
    let digest = fields.digest()?;
    Ok(Section { name, offset, len: stored, digest })
}

/// An array as it was read. A bad value is told only after the digest was compared: it names the cause.
#[derive(Default)]
struct Floats {
    values: Vec<f32>,
    length: usize,
    first_bad: Option<usize>,
}

struct Reader<'a> {
    source: &'a dyn Source,
    header: &'a Header,
    reading: Reading,
    buffer: Buffer,
}

impl Reader<'_> {
    fn section(&self, name: &str) -> Read<Section> {
        let found = self.header.sections.iter().find(|s| s.name == name);
        found.copied().ok_or_else(|| Fault::Damaged(format!("section {name} is missing")))
    }

    /// Hands the section's bytes to `each` in chunks, all but the last of [`CHUNK`] bytes; then compares the
    /// digest, and the padding (read with the last chunk, so that only whole blocks are read) with zero.
    fn chunks(&mut self, section: &Section, mut each: impl FnMut(&[u8]) -> Read<()>) -> Read<()> {
        let Section { name, offset, len, .. } = *section;
        let (end, padded_end) = (offset + len, (offset + len).next_multiple_of(BLOCK));
        let mut hasher = blake3::Hasher::new();
        let mut surplus = None;
        let mut at = offset;
        while at < padded_end {
            let take = CHUNK.min(usize::try_from(padded_end - at).unwrap_or(CHUNK));
            let bytes = &mut self.buffer.bytes()[..take];
            self.source.read_at(at, bytes)?;
            let (content, padding) = bytes.split_at(take.min(usize::try_from(end - at).unwrap_or(take)));
            hasher.update(content);
            each(content)?;
            surplus = padding.iter().position(|byte| *byte != 0);
            at += take as u64;
        }
        if hasher.finalize().as_bytes() != &section.digest && self.reading != Reading::DigestsIgnored {
            return damaged(format!(
                "section {name} damaged: digest differs (file bytes {offset:#x}..{end:#x})"
            ));
        }
        match surplus.map(|i| end + i as u64) {
            Some(at) => damaged(format!("padding after section {name} is not zero (file byte {at:#x})")),
            None => Ok(()),
        }
    }

    fn small(&mut self, name: &str, limit: u64) -> Read<Vec<u8>> {
        let section = self.section(name)?;
        if section.len > limit {
            return damaged(format!("section {name}: {}, at most {limit} allowed", bytes_text(section.len)));
        }
        let mut bytes = Vec::new();
        self.chunks(&section, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn floats(&mut self, name: &'static str) -> Read<Floats> {
        let section = self.section(name)?;
        if section.len % 4 != 0 {
            return damaged(format!("section {name}: {} bytes are not f32 values", section.len));
        }
        let keep = self.reading != Reading::Verify;
        let count = usize::try_from(section.len / 4).unwrap_or(usize::MAX);
        let mut found = Floats::default();
        if keep && found.values.try_reserve_exact(count).is_err() {
            return Err(Fault::Io(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("section {name} needs {} of memory", bytes_text(section.len)),
            )));
        }
        self.chunks(&section, |chunk| {
            let from = if keep { found.values.len() } else { 0 };
            found.values.truncate(from);
            found.values.extend(chunk.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            let bad = first_bad(name, &found.values[from..]);
            found.first_bad = found.first_bad.or(bad.map(|at| found.length + at));
            found.length += chunk.len() / 4;
            Ok(())
        })?;
        if !keep {
            found.values = Vec::new();
        }
        Ok(found)
    }

    fn trailer(&mut self) -> Read<()> {
        let at = self.header.file_len - BLOCK;
        let block = &mut self.buffer.bytes()[..BLOCK as usize];
        self.source.read_at(at, block)?;
        match trailer_block(self.header).iter().zip(&*block).position(|(want, is)| want != is) {
            Some(i) => damaged(format!("trailer damaged (file byte {:#x})", at + i as u64)),
            None => Ok(()),
        }
    }
}

fn parse_idx(bytes: &[u8]) -> Read<Vec<TensorEntry>> {
    let mut fields = Fields { section: "IDX", base: 0, bytes };
    let count = fields.u64()?;
    let mut tensors = Vec::new();
    for _ in 0..count {
        let offset = fields.size()?;
        let shape = [fields.size()?, fields.size()?];
        let name_len = fields.size()?;
        if name_len > NAME_MAX {
            return damaged(format!(
                "section IDX: a tensor name of {name_len} bytes (offset {:#x})",
                fields.base
            ));
        }
        let name = fields.take(name_len)?.to_vec();
        let Ok(name) = String::from_utf8(name) else {
            return damaged(format!("section IDX: a tensor name is not UTF-8 (offset {:#x})", fields.base));
        };
        let padding = fields.take(name_len.next_multiple_of(8) - name_len)?;
        if padding.iter().any(|b| *b != 0) {
            return damaged(format!("section IDX: padding of {} is not zero", name.escape_debug()));
        }
        tensors.push(TensorEntry { name, shape, offset });
    }
    fields.end()?;
    Ok(tensors)
}

fn parse_cur(bytes: &[u8]) -> Read<Cursor> {
    let mut fields = Fields { section: "CUR", base: 0, bytes };
    let (samples, tokens) = (fields.u64()?, fields.u64()?);
    let (updates_behind, stale_evaluations) = (fields.u64()?, fields.u64()?);
    let best = match fields.u64()? {
        0 => None,
        1 => Some(Best { loss: fields.f64()?, step: fields.u64()?, adapter: fields.digest()? }),
        _ => return damaged("section CUR: the best evaluation is neither there nor absent (offset 0x20)"),
    };
    fields.end()?;
    Ok(Cursor { samples, tokens, updates_behind, best, stale_evaluations })
}

fn parse_log(bytes: &[u8]) -> Read<Vec<LogLine>> {
    let mut fields = Fields { section: "LOG", base: 0, bytes };
    let mut log = Vec::new();
    while !fields.bytes.is_empty() {
        let (at, kind, len) = (fields.base, fields.u32()?, fields.u32()? as usize);
        let words: Vec<u64> =
            fields.take(len)?.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        match LogLine::from_words(kind, &words).filter(|_| len % 8 == 0) {
            Some(line) => log.push(line),
            None => {
                return damaged(format!(
                    "section LOG: record of unknown kind {kind} or length {len} (offset {at:#x})"
                ));
            }
        }
    }
    Ok(log)
}

/// Little-endian fields, one after the other; every read is bounds-checked.
struct Fields<'a> {
    section: &'static str,
    /// Offset of `bytes` in the section.
    base: usize,
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Read<&'a [u8]> {
        let Some((head, tail)) = self.bytes.split_at_checked(len) else {
            return damaged(format!(
                "section {}: ends inside a field (offset {:#x})",
                self.section, self.base
            ));
        };
        (self.bytes, self.base) = (tail, self.base + len);
        Ok(head)
    }

    fn u16(&mut self) -> Read<u16> {
        self.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Read<u32> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Read<u64> {
        self.take(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    fn f64(&mut self) -> Read<f64> {
        self.u64().map(f64::from_bits)
    }

    fn digest(&mut self) -> Read<Digest> {
        self.take(32).map(|bytes| bytes.try_into().unwrap_or_default())
    }

    fn size(&mut self) -> Read<usize> {
        let at = self.base;
        usize::try_from(self.u64()?).map_err(|_| {
            Fault::Damaged(format!("section {}: number too large (offset {at:#x})", self.section))
        })
    }

    fn end(&self) -> Read<()> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            damaged(format!("section {}: surplus bytes (offset {:#x})", self.section, self.base))
        }
    }
}
