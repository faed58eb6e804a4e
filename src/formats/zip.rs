//! Zip archives as `torch.save` makes them: stored entries, one after the other. Nothing is ever unpacked to
//! a folder, nothing compressed or encrypted is read (APPNOTE.TXT 6.3 names the records).

use crate::error::{Error, Result};
use crate::files;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Most entries of an archive.
pub const MAX_ENTRIES: u64 = 100_000;
/// Longest directory, bytes.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Longest entry name, bytes.
const MAX_NAME_BYTES: usize = 512;
/// Longest data descriptor between two entries (with zip64 sizes), bytes.
const MAX_DESCRIPTOR_BYTES: u64 = 24;

const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";

type Checked<T> = std::result::Result<T, String>;

/// An open archive whose directory was checked.
#[derive(Debug)]
pub struct Archive {
    file: File,
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// The local header's offset.
    header: u64,
    data: Range<u64>,
    crc: u32,
}

impl Archive {
    /// Opens the file and checks every record of it: what is not described by exactly one entry, what overlaps,
    /// what is compressed, encrypted, a link or named like a path is refused.
    ///
    /// # Errors
    /// Names the file, the entry and the rule.
    pub fn open(path: &Path) -> Result<Self> {
        let file = files::open(path)?;
        let length = file.metadata().map_err(|e| Error::reading(path, e))?.len();
        let mut archive = Archive { file, path: path.to_owned(), entries: BTreeMap::new() };
        let read = archive.read_directory(length);
        archive.entries = read.map_err(|rule| archive.fault(&rule))?;
        Ok(archive)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Bytes of an entry, if it is there.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|e| e.data.end - e.data.start)
    }

    /// Content of an entry of at most `most` bytes, its checksum compared.
    ///
    /// # Errors
    /// Missing, longer, damaged.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let entry =
            self.entries.get(name).ok_or_else(|| self.fault(&format!("it has no entry {}", shown(name))))?;
        let size = entry.data.end - entry.data.start;
        if size > most {
            return Err(
                self.fault(&format!("entry {} has {size} bytes, at most {most} are read", shown(name)))
            );
        }
        let bytes = self.bytes(entry.data.start, size).map_err(|rule| self.fault(&rule))?;
        if crc32(&bytes) != entry.crc {
            return Err(self.fault(&format!("entry {} is damaged: its checksum differs", shown(name))));
        }
        Ok(bytes)
    }

    fn fault(&self, rule: &str) -> Error {
        Error::input(format!("{}: {rule}", self.path.display()))
    }

    fn bytes(&self, at: u64, count: u64) -> Checked<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| "too large for this machine")?];
        self.file.read_exact_at(&mut bytes, at).map_err(|e| format!("reading {count} bytes at {at}: {e}"))?;
        Ok(bytes)
    }

    fn read_directory(&self, length: u64) -> Checked<BTreeMap<String, Entry>> {
        let (count, range) = self.find_directory(length)?;
        let bytes = self.bytes(range.start, range.end - range.start)?;
        let mut rest = Fields(&bytes);
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let (name, entry) = self.entry(&mut rest)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(format!("entry {} occurs twice", shown(&name)));
            }
        }
        if !rest.0.is_empty() {
            return Err(format!("its directory has {} bytes after the last entry", rest.0.len()));
        }
        check_cover(&entries, range.start)?;
        Ok(entries)
    }

    /// Number of entries, and where the directory lies: it ends where the end records begin.
    fn find_directory(&self, length: u64) -> Checked<(u64, Range<u64>)> {
        let not_zip = || "not a zip archive, which is what torch.save writes since version 1.6".to_owned();
        let end_at = length.checked_sub(22).ok_or_else(not_zip)?;
        let tail = self.bytes(end_at, 22)?;
        let mut end = Fields(&tail);
        if end.take::<4>()? != END {
            return Err(not_zip());
        }
        let disks = (end.u16()?, end.u16()?);
        let (here, count) = (u64::from(end.u16()?), u64::from(end.u16()?));
        let (mut size, mut start) = (u64::from(end.u32()?), u64::from(end.u32()?));
        if disks != (0, 0) || here != count || end.u16()? != 0 {
            return Err("an archive of several parts, or with a comment".into());
        }
        let (mut count, mut directory_end) = (count, end_at);
        if let Some(at) = end_at.checked_sub(20 + 56)
            && self.bytes(end_at - 20, 4)? == LOCATOR64
        {
            let wide = self.wide_end(at)?;
            let agree = |narrow: u64, wide: u64, all: u64| narrow == wide || narrow == all;
            if !agree(count, wide[0], 0xffff)
                || !agree(size, wide[1], 0xffff_ffff)
                || !agree(start, wide[2], 0xffff_ffff)
            {
                return Err("its two end records contradict each other".into());
            }
            [count, size, start] = wide;
            directory_end = at;
        }
        if count > MAX_ENTRIES || size > MAX_DIRECTORY_BYTES {
            return Err(format!("{count} entries, {size} bytes of directory: more than are read"));
        }
        if start.checked_add(size) != Some(directory_end) {
            return Err("its directory is not where its end record says".into());
        }
        Ok((count, start..directory_end))
    }

    /// Entries, size and start of the directory by the zip64 end record at `at`.
    fn wide_end(&self, at: u64) -> Checked<[u64; 3]> {
        let bytes = self.bytes(at, 56 + 20)?;
        let mut f = Fields(&bytes);
        let good = f.take::<4>()? == END64 && f.u64()? == 44;
        f.skip(4)?;
        let disks = (f.u32()?, f.u32()?);
        let (here, count) = (f.u64()?, f.u64()?);
        let (size, start) = (f.u64()?, f.u64()?);
        let located = f.take::<4>()? == LOCATOR64 && f.u32()? == 0 && f.u64()? == at && f.u32()? == 1;
        if !good || !located || disks != (0, 0) || here != count {
            return Err("its zip64 end record is not well-formed".into());
        }
        Ok([count, size, start])
    }

    fn entry(&self, f: &mut Fields<'_>) -> Checked<(String, Entry)> {
        if f.take::<4>()? != CENTRAL {
            return Err("its directory is not well-formed".into());
        }
        let maker = f.u16()? >> 8;
        f.skip(2)?;
        let (flags, method) = (f.u16()?, f.u16()?);
        f.skip(4)?;
        let crc = f.u32()?;
        let (packed, plain) = (f.u32()?, f.u32()?);
        let (name, extra, comment) = (f.u16()?, f.u16()?, f.u16()?);
        let disk = f.u16()?;
        f.skip(2)?;
        let attributes = f.u32()?;
        let header = f.u32()?;
        let name = entry_name(f.slice(usize::from(name))?)?;
        let fault = |rule: &str| format!("entry {}: {rule}", shown(&name));
        let [plain, packed, header] = wide_sizes(f.slice(usize::from(extra))?, [plain, packed, header])
            .ok_or_else(|| fault("its sizes are not well-formed"))?;
        if method != 0 || plain != packed {
            return Err(fault("it is compressed; torch.save stores"));
        }
        // Permitted: a data descriptor (bit 3), UTF-8 (bit 11).
        if flags & !0x0808 != 0 || comment != 0 || disk != 0 {
            return Err(fault("it is encrypted, commented, or of another part"));
        }
        let kind = attributes >> 28;
        if maker == 3 && kind != 0 && kind != 8 {
            return Err(fault("it is a link or no file"));
        }
        let start = self.data_start(header, &name, flags & 8 != 0, plain).map_err(|rule| fault(&rule))?;
        let end = start.checked_add(plain).ok_or_else(|| fault("its size overflows"))?;
        Ok((name, Entry { header, data: start..end, crc }))
    }

    /// Where an entry's data begins: after its local header, which must say what the directory says.
    fn data_start(&self, header: u64, name: &str, described_later: bool, size: u64) -> Checked<u64> {
        let bytes = self.bytes(header, 30)?;
        let mut f = Fields(&bytes);
        if f.take::<4>()? != LOCAL {
            return Err("its local header is not there".into());
        }
        f.skip(4)?;
        let method = f.u16()?;
        f.skip(8)?;
        let (packed, plain) = (f.u32()?, f.u32()?);
        let (name_bytes, extra) = (u64::from(f.u16()?), u64::from(f.u16()?));
        let same = |found: u32| u64::from(found) == size || found == u32::MAX;
        let sizes = described_later || (same(packed) && same(plain));
        if method != 0 || !sizes || self.bytes(header + 30, name_bytes)? != name.as_bytes() {
            return Err("its local header says something else than the directory".into());
        }
        Ok(header + 30 + name_bytes + extra)
    }
}

/// The 64-bit values of the zip64 extra field (id 1), in its order, for those that are all ones.
fn wide_sizes(extra: &[u8], narrow: [u32; 3]) -> Option<[u64; 3]> {
    let mut wide = Fields(&[]);
    let mut fields = Fields(extra);
    while fields.0.len() >= 4 {
        let (id, size) = (fields.u16().ok()?, fields.u16().ok()?);
        let body = fields.slice(usize::from(size)).ok()?;
        if id == 1 {
            wide = Fields(body);
        }
    }
    let mut out = [0; 3];
    for (value, narrow) in out.iter_mut().zip(narrow) {
        *value = if narrow == u32::MAX { wide.u64().ok()? } else { u64::from(narrow) };
    }
    Some(out)
}

fn entry_name(bytes: &[u8]) -> Checked<String> {
    let name = std::str::from_utf8(bytes).map_err(|_| "an entry's name is not UTF-8")?;
    let bad = name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || name.starts_with('/')
        || name.contains('\\')
        || name.split('/').any(|part| part == ".." || part.is_empty())
        || name.chars().any(char::is_control);
    if bad { Err(format!("entry name {} is not permitted", shown(name))) } else { Ok(name.to_owned()) }
}

fn shown(name: &str) -> String {
    name.chars().take(80).collect::<String>().escape_debug().collect()
}

/// Entries follow each other from the first byte to the directory; only a data descriptor may lie between.
fn check_cover(entries: &BTreeMap<String, Entry>, directory: u64) -> Checked<()> {
    let mut all: Vec<(&String, &Entry)> = entries.iter().collect();
    all.sort_by_key(|(_, e)| e.header);
    let mut at = 0;
    for (name, entry) in all {
        match entry.header.checked_sub(at) {
            Some(gap) if gap <= if at == 0 { 0 } else { MAX_DESCRIPTOR_BYTES } => {}
            Some(_) => return Err(format!("bytes before entry {} belong to none", shown(name))),
            None => return Err(format!("entry {} overlaps the one before it", shown(name))),
        }
        at = entry.data.end;
    }
    match directory.checked_sub(at) {
        Some(gap) if gap <= MAX_DESCRIPTOR_BYTES => Ok(()),
        _ => Err("its entries do not end where the directory begins".into()),
    }
}

/// Little-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(&mut self, count: usize) -> Checked<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(count).ok_or("a record is cut short")?;
        self.0 = rest;
        Ok(first)
    }

    fn skip(&mut self, count: usize) -> Checked<()> {
        self.slice(count).map(|_| ())
    }

    fn take<const N: usize>(&mut self) -> Checked<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or("a record is cut short")?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Checked<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Checked<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Checked<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

// ---- the writer -------------------------------------------------------------------------------------------

/// Data begin at multiples of this, as `torch.save` aligns them.
const ALIGNMENT: usize = 64;
/// The id of the extra field that pads a local header ("FB", as in torch).
const PADDING: u16 = 0x4246;

/// The bytes of an archive with these entries in this order, each stored and aligned. Its bytes are a function
/// of the entries alone: dates are zero.
///
/// # Errors
/// Usage: beyond 4 GiB, or 65535 entries, where the format would need its 64-bit records.
pub fn encode(entries: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let total: usize = entries.iter().map(|(n, b)| b.len() + 2 * n.len() + 76 + 2 * ALIGNMENT).sum();
    if total > u32::MAX as usize || entries.len() >= 0xffff {
        return Err(Error::usage("the state is larger than 4 GiB; such files are not written")
            .hint("export the adapter alone: --format peft"));
    }
    let mut bytes = Vec::with_capacity(total);
    let mut directory = Vec::new();
    for (name, content) in entries {
        let header = bytes.len() as u32;
        let padding = (ALIGNMENT - (bytes.len() + 30 + name.len() + 4) % ALIGNMENT) % ALIGNMENT;
        let common = common_fields(name, content);
        bytes.extend(LOCAL);
        bytes.extend(&common);
        bytes.extend((4 + padding as u16).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(PADDING.to_le_bytes());
        bytes.extend((padding as u16).to_le_bytes());
        bytes.resize(bytes.len() + padding, b'Z');
        bytes.extend(content);
        directory.extend(CENTRAL);
        directory.extend([0, 0]);
        directory.extend(&common);
        directory.extend([0; 2 + 2 + 2 + 2 + 4]);
        directory.extend(header.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (bytes.len() as u32, entries.len() as u16);
    bytes.extend(&directory);
    bytes.extend(END);
    bytes.extend([0; 4]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    Ok(bytes)
}

/// Version needed, UTF-8 flag, stored, no date, checksum, sizes, length of the name: the same in both headers.
fn common_fields(name: &str, content: &[u8]) -> Vec<u8> {
    let mut fields = vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0];
    fields.extend(crc32(content).to_le_bytes());
    fields.extend((content.len() as u32).to_le_bytes());
    fields.extend((content.len() as u32).to_le_bytes());
    fields.extend((name.len() as u16).to_le_bytes());
    fields
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

/// The CRC-32 of zip (IEEE 802.3, reflected).
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, b: &u8| CRC_TABLE[usize::from((crc as u8) ^ b)] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}
