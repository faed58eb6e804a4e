//! From files to tokenised rows: the complete validation pass before step 0.
//!
//! A file is read twice when its rows are not cached: once for its digest, once to tokenise. Rows are cut from
//! it in order, rendered and tokenised in parallel, and appended in file order, so the result depends on no
//! thread count. Nothing but the lengths stays in memory.

use super::cache::{Report, RowWriter, TokenCache};
use super::dataset::{Dataset, Part, Prepared, Row, Rows};
use super::reader::{Place, RawRow, RowReader};
use super::render::Renderer;
use super::rows::{self, Content};
use super::{columns, json};
use crate::config::Settings;
use crate::config::settings::{RowFormat, TooLong};
use crate::error::{Error, Result};
use crate::files;
use crate::identity::{Data, DataFile, RowSet};
use crate::philox::{self, Stream};
use crate::report::event::{Event, Observer};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Changes whenever the same inputs give other rows.
const ROWS_VERSION: u32 = 2;
/// Bad rows that are listed.
const LISTED: usize = 20;
/// Rows and bytes rendered at a time.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 8 << 20;

/// What became of one row.
pub(super) enum Outcome {
    /// `thoughts_left_out`: earlier answers whose thoughts the chat template does not write.
    Row {
        row: Row,
        truncated: bool,
        thoughts_left_out: usize,
    },
    TooLong(usize),
    Unscored,
    Bad(String),
}

/// Reads, checks, renders and tokenises all rows of the settings' files; the complete validation pass.
/// `vocab_size` bounds every id.
///
/// # Errors
/// Names file and row; up to 20 bad rows are listed.
pub fn prepare(settings: &Settings, vocab_size: usize, observer: &mut dyn Observer) -> Result<Prepared> {
    if settings.train_files.is_empty() {
        return Err(Error::usage("there is no data to train on").hint("name it with --train-file FILE"));
    }
    let mut source = Source { settings, vocab_size, renderer: None, identity: Data::default(), observer };
    let mut parts = Vec::new();
    for path in &settings.train_files {
        let (part, file) = source.file(path)?;
        parts.push(part);
        source.identity.train.files.push(file);
    }
    let mut train = Dataset::join(parts);
    let (mut eval, mut eval_file) = (None, None);
    if let Some(path) = &settings.valid_file {
        if settings.val_set_size > 0.0 {
            source.warn("--val-set-size has no effect beside --valid-file");
        }
        let (part, file) = source.file(path)?;
        (eval, eval_file) = (Some(Dataset::join(vec![part])), Some(file));
    } else if settings.val_set_size > 0.0 {
        let (rest, moved) = split(&train, settings)?;
        (train, eval) = (rest, Some(moved));
    }
    Ok(prepared(train, eval, eval_file, source.identity))
}

/// As [`prepare`] for rows in memory: they are checked and limited as the rows of a tokenised file are. Their
/// identity is the digest of their tokens and labels.
///
/// # Errors
/// Names the first 20 bad rows, counted from 1; no row that can be used.
pub fn prepare_rows(
    rows: Rows,
    settings: &Settings,
    vocab_size: usize,
    observer: &mut dyn Observer,
) -> Result<Prepared> {
    let mut source = Source { settings, vocab_size, renderer: None, identity: Data::default(), observer };
    let mut train = Dataset::join(vec![source.memory(rows.train, "training rows")?]);
    let mut eval = None;
    if !rows.eval.is_empty() {
        eval = Some(Dataset::join(vec![source.memory(rows.eval, "evaluation rows")?]));
    } else if settings.val_set_size > 0.0 {
        let (rest, moved) = split(&train, settings)?;
        (train, eval) = (rest, Some(moved));
    }
    Ok(prepared(train, eval, None, source.identity))
}

fn prepared(
    train: Dataset,
    eval: Option<Dataset>,
    eval_file: Option<DataFile>,
    mut identity: Data,
) -> Prepared {
    let row_set =
        |rows: &Dataset, files| RowSet { digest: rows.digest().into(), rows: rows.len() as u64, files };
    identity.train = row_set(&train, identity.train.files);
    identity.eval = eval.as_ref().map(|rows| row_set(rows, eval_file.into_iter().collect()));
    Prepared { train, eval, identity }
}

/// Moves `val_set_size` rows, drawn by the seed, to evaluation; both parts keep the file's order. A fraction is
/// rounded up, as in scikit-learn's `train_test_split`.
fn split(all: &Dataset, settings: &Settings) -> Result<(Dataset, Dataset)> {
    let size = settings.val_set_size;
    let count = if size < 1.0 { (all.len() as f64 * size).ceil() } else { size } as usize;
    if count >= all.len() {
        let rows = all.len();
        return Err(Error::input(format!("--val-set-size {size} leaves none of {rows} rows to train on")));
    }
    let mut order: Vec<u32> = (0..all.len() as u32).collect();
    philox::shuffle(&mut order, settings.seed, Stream::ValidationSplit, 0);
    let (moved, rest) = order.split_at_mut(count);
    moved.sort_unstable();
    rest.sort_unstable();
    Ok((all.select(rest), all.select(moved)))
}

/// What all files of a run share.
struct Source<'a> {
    settings: &'a Settings,
    vocab_size: usize,
    /// Opened for the first row that is text.
    renderer: Option<Renderer>,
    identity: Data,
    observer: &'a mut dyn Observer,
}

impl Source<'_> {
    fn warn(&mut self, what: impl Into<String>) {
        self.observer.on_event(&Event::Warning(what.into()));
    }

    fn file(&mut self, path: &Path) -> Result<(Part, DataFile)> {
        let digest = self.digest_file(path)?;
        let format = format_of(path, self.settings)?;
        if format != RowFormat::Tokenized {
            self.open_renderer(format)?;
        }
        let key = self.key(&digest, format);
        let (part, report) = self.cached_or_made(path, format, &digest, key)?;
        self.tell(path, &report, part.lengths.len())?;
        let (digest, format) = (digest.to_hex().to_string(), format!("{format:?}").to_lowercase());
        Ok((part, DataFile { digest, format, skipped: report.bad }))
    }

    /// Rows in memory; `name` stands where a file's path does.
    fn memory(&mut self, rows: Vec<Row>, name: &str) -> Result<Part> {
        let mut writer = RowWriter::in_memory();
        let mut report = Report::default();
        for (index, row) in rows.into_iter().enumerate() {
            let outcome = match row.fault().or_else(|| outside(&row, self.vocab_size)) {
                Some(fault) => Outcome::Bad(fault),
                None => outcome_of(Content::Tokens(row), self.settings, None),
            };
            count(&mut report, Place { line: Some(index as u64 + 1), row: None }, &outcome);
            if let Outcome::Row { row, .. } = &outcome {
                writer.push(row)?;
            }
        }
        let path = Path::new(name);
        if report.bad > self.settings.skip_bad_rows as u64 {
            return Err(bad_rows(path, &report, self.settings.skip_bad_rows));
        }
        let (part, report) = writer.finish(report)?;
        self.tell(path, &report, part.lengths.len())?;
        Ok(part)
    }

    fn open_renderer(&mut self, format: RowFormat) -> Result<()> {
        if self.renderer.is_none() {
            let renderer = Renderer::open(self.settings, self.vocab_size)?;
            let (tokenizer, template) = renderer.identity();
            (self.identity.tokenizer, self.identity.template) = (Some(tokenizer), Some(template));
            self.renderer = Some(renderer);
        }
        match &self.renderer {
            Some(renderer) if format != RowFormat::Text => renderer.require_template(),
            _ => Ok(()),
        }
    }

    fn digest_file(&mut self, path: &Path) -> Result<blake3::Hash> {
        use std::io::Read;
        let mut file = files::open(path)?;
        let total = file.metadata().map_err(|e| Error::reading(path, e))?.len();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 22];
        let mut done = 0;
        loop {
            let n = file.read(&mut buffer).map_err(|e| Error::reading(path, e))?;
            if n == 0 {
                return Ok(hasher.finalize());
            }
            hasher.update(&buffer[..n]);
            done += n as u64;
            self.observer.on_event(&Event::Progress { what: "reading data", done, total });
        }
    }

    /// The digest of everything that decides a file's rows.
    fn key(&self, file: &blake3::Hash, format: RowFormat) -> [u8; 32] {
        let s = self.settings;
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: String| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        };
        add(format!("rows {ROWS_VERSION}"));
        add(file.to_hex().to_string());
        add(format!("{format:?} {} {:?} {}", s.cutoff_len, s.too_long, self.vocab_size));
        add(s.skip_bad_rows.to_string());
        add(format!("{:?} {:?}", s.columns, s.max_samples));
        if let Some(renderer) = self.renderer.as_ref().filter(|_| format != RowFormat::Tokenized) {
            add(format!("{:?}", renderer.identity()));
            add(format!("{:?} {:?} {:?}", s.train_on, s.max_source_length, s.max_target_length));
            add(format!("{:?} {:?}", s.system_prompt, s.thinking));
        }
        hasher.finalize().into()
    }

    fn cached_or_made(
        &mut self,
        path: &Path,
        format: RowFormat,
        digest: &blake3::Hash,
        key: [u8; 32],
    ) -> Result<(Part, Report)> {
        if let Some(folder) = cache_folder(self.settings) {
            match self.cached(&folder, path, format, digest, key) {
                Err(Fault::Writing(fault)) => self.warn(format!("{}; rows stay in memory", fault.what)),
                made => return made.map_err(Fault::into_error),
            }
        } else {
            self.warn("there is no folder for the token cache (no HOME); rows stay in memory");
        }
        self.make(path, format, digest, RowWriter::in_memory()).map_err(Fault::into_error)
    }

    /// The rows from the cache, or made and put there.
    fn cached(
        &mut self,
        folder: &Path,
        path: &Path,
        format: RowFormat,
        digest: &blake3::Hash,
        key: [u8; 32],
    ) -> std::result::Result<(Part, Report), Fault> {
        let cache = TokenCache::open(folder).map_err(Fault::Writing)?;
        match cache.find(&key, self.vocab_size) {
            Ok(Some(found)) => {
                cache.warning.into_iter().for_each(|text| self.warn(text));
                return Ok(found);
            }
            Ok(None) => {}
            Err(fault) => self.warn(format!("{}; the rows are made again", fault.what)),
        }
        let writer = cache.begin(key).map_err(Fault::Writing)?;
        self.make(path, format, digest, writer)
    }

    fn make(
        &mut self,
        path: &Path,
        format: RowFormat,
        digest: &blake3::Hash,
        mut writer: RowWriter,
    ) -> std::result::Result<(Part, Report), Fault> {
        let mut reader = RowReader::open(path)?;
        let total = files::size(path)?.unwrap_or(0);
        self.observer.on_event(&Event::Progress { what: "tokenising", done: 0, total });
        let mut report = Report::default();
        loop {
            let left = self.settings.max_samples.map_or(u64::MAX, |most| most as u64 - report.rows);
            let chunk = next_chunk(&mut reader, usize::try_from(left).unwrap_or(usize::MAX))?;
            if chunk.is_empty() {
                break;
            }
            let (settings, vocab_size, renderer) = (self.settings, self.vocab_size, self.renderer.as_ref());
            let make = |raw: &RawRow| match content_of(raw, format, &settings.columns, vocab_size) {
                Err(fault) => Outcome::Bad(fault),
                Ok(content) => outcome_of(content, settings, renderer),
            };
            let made: Vec<Outcome> = chunk.par_iter().map(make).collect();
            for (raw, outcome) in chunk.iter().zip(made) {
                count(&mut report, raw.place, &outcome);
                if let Outcome::Row { row, .. } = &outcome {
                    writer.push(row).map_err(Fault::Writing)?;
                }
            }
            if report.bad_rows.len() > self.settings.skip_bad_rows.max(LISTED - 1) {
                break;
            }
            let done = reader.offset();
            self.observer.on_event(&Event::Progress { what: "tokenising", done, total });
        }
        if report.bad > self.settings.skip_bad_rows as u64 {
            return Err(bad_rows(path, &report, self.settings.skip_bad_rows).into());
        }
        if reader.digest()? != *digest {
            return Err(Error::input(format!("{} changed while it was read", path.display())).into());
        }
        self.observer.on_event(&Event::Tokenised { path: path.to_owned(), rows: report.rows });
        writer.finish(report).map_err(Fault::Writing)
    }

    /// Warns of rows left out or changed; refuses a file of which nothing is left.
    fn tell(&mut self, path: &Path, report: &Report, used: usize) -> Result<()> {
        let (name, rows) = (path.display().to_string(), report.rows);
        let cutoff = self.settings.cutoff_len;
        if report.too_long > 0 {
            let n = report.too_long;
            self.warn(format!("{name}: {n} of {rows} rows left out: longer than --cutoff-len {cutoff}"));
        }
        if report.truncated > 0 {
            let n = report.truncated;
            self.warn(format!("{name}: {n} of {rows} rows cut to the length limits (--too-long truncate)"));
        }
        if report.thoughts_left_out > 0 {
            let n = report.thoughts_left_out;
            self.warn(format!(
                "{name}: the chat template leaves out the thoughts of {n} answers that are not the last"
            ));
        }
        if report.unscored > 0 {
            self.warn(format!(
                "{name}: {} of {rows} rows left out: nothing in them is scored",
                report.unscored
            ));
        }
        if report.bad > 0 {
            let list: Vec<&str> =
                report.bad_rows.iter().map(|row| row.trim_start_matches([':', ' '])).collect();
            let list = list.join("; ");
            self.warn(format!("{name}: {} of {rows} rows are wrong and left out: {list}", report.bad));
        }
        if used == 0 {
            return Err(Error::input(format!("{name}: 0 usable rows of {rows}")));
        }
        Ok(())
    }
}

fn outside(row: &Row, vocab_size: usize) -> Option<String> {
    let at = row.ids.iter().position(|&id| id as usize >= vocab_size)?;
    let id = row.ids[at];
    Some(format!("token {id} at position {at} is outside the vocabulary of {vocab_size}"))
}

/// Why rows could not be made: the caller handles a cache that cannot be written.
enum Fault {
    Writing(Error),
    Other(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Other(error)
    }
}

impl Fault {
    fn into_error(self) -> Error {
        match self {
            Fault::Other(error) | Fault::Writing(error) => error,
        }
    }
}

fn cache_folder(settings: &Settings) -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    settings.cache_dir.clone().or_else(|| {
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("qwentune"))
    })
}

/// The format asked for, or the one the file's first row tells.
pub(super) fn format_of(path: &Path, settings: &Settings) -> Result<RowFormat> {
    if settings.format != RowFormat::Auto {
        return Ok(settings.format);
    }
    let Some(raw) = RowReader::open(path)?.next()? else {
        return Err(Error::input(format!("{}: 0 usable rows of 0", path.display())));
    };
    let place = format!("{}{}", path.display(), raw.place);
    let value = parse(&raw, &settings.columns).map_err(|fault| Error::input(format!("{place}: {fault}")))?;
    rows::recognise(&value)
        .map_err(|fault| Error::input(format!("{place}: {fault}")).hint("name the format with --format"))
}

fn next_chunk(reader: &mut RowReader, most: usize) -> Result<Vec<RawRow>> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < CHUNK_ROWS.min(most) && bytes < CHUNK_BYTES {
        let Some(raw) = reader.next()? else { break };
        bytes += raw.bytes.len();
        chunk.push(raw);
    }
    Ok(chunk)
}

/// What a raw row says, or what is wrong with it.
pub(super) fn content_of(
    raw: &RawRow,
    format: RowFormat,
    columns: &BTreeMap<String, String>,
    vocab_size: usize,
) -> std::result::Result<Content, String> {
    rows::read(&parse(raw, columns)?, format, vocab_size)
}

/// The row as JSON with the keys that are known here, or what is wrong with it.
pub(super) fn parse(
    raw: &RawRow,
    columns: &BTreeMap<String, String>,
) -> std::result::Result<json::Json, String> {
    Ok(columns::apply(columns, parse_json(raw)?))
}

/// The row as JSON, or what is wrong with it.
pub(super) fn parse_json(raw: &RawRow) -> std::result::Result<json::Json, String> {
    if let Some(fault) = &raw.fault {
        return Err(fault.clone());
    }
    let text = std::str::from_utf8(&raw.bytes).map_err(|fault| {
        let within = fault.valid_up_to();
        let place = raw.offset.map(|offset| format!(" (byte {} of the file)", offset + within as u64));
        format!("invalid UTF-8 at byte {within} of the row{}", place.unwrap_or_default())
    })?;
    json::parse(text).map_err(|fault| {
        if fault.at_end && raw.unterminated {
            return "the file ends inside this row (was it still being written?)".to_string();
        }
        let line = if fault.line > 1 { format!("line {} ", fault.line) } else { String::new() };
        format!("{line}column {}: {}", fault.column, fault.what)
    })
}

/// Renders, tokenises and applies the length limits.
pub(super) fn outcome_of(content: Content, settings: &Settings, renderer: Option<&Renderer>) -> Outcome {
    let outcome = match (content, renderer) {
        (Content::Tokens(row), _) => limit_tokens(row, settings),
        (text, Some(renderer)) => renderer.outcome(&text, settings),
        (_, None) => Outcome::Bad("the row is text, but there is no tokenizer".into()),
    };
    match outcome {
        Outcome::Row { row, .. } if row.scored() == 0 => Outcome::Unscored,
        Outcome::TooLong(tokens) if settings.too_long == TooLong::Error => {
            Outcome::Bad(format!("{tokens} tokens are more than --cutoff-len {}", settings.cutoff_len))
        }
        other => other,
    }
}

/// Tokens carry no headers to keep: they are cut on the right.
fn limit_tokens(mut row: Row, settings: &Settings) -> Outcome {
    let truncated = row.ids.len() > settings.cutoff_len;
    if truncated && settings.too_long != TooLong::Truncate {
        return Outcome::TooLong(row.ids.len());
    }
    row.ids.truncate(settings.cutoff_len);
    row.labels.truncate(settings.cutoff_len);
    Outcome::Row { row, truncated, thoughts_left_out: 0 }
}

fn count(report: &mut Report, place: Place, outcome: &Outcome) {
    report.rows += 1;
    match outcome {
        Outcome::Row { truncated, thoughts_left_out, .. } => {
            report.truncated += u64::from(*truncated);
            report.thoughts_left_out += *thoughts_left_out as u64;
        }
        Outcome::TooLong(_) => report.too_long += 1,
        Outcome::Unscored => report.unscored += 1,
        Outcome::Bad(fault) => {
            report.bad += 1;
            if report.bad_rows.len() < LISTED {
                report.bad_rows.push(format!("{place}: {fault}"));
            }
        }
    }
}

fn bad_rows(path: &Path, report: &Report, allowed: usize) -> Error {
    let name = path.display();
    let list: Vec<String> = report.bad_rows.iter().map(|row| format!("{name}{row}")).collect();
    let hint = "mend the rows, or leave up to N bad rows out with --skip-bad-rows N";
    match list.as_slice() {
        [only] => Error::input(only).hint(hint),
        many if report.bad > many.len() as u64 || allowed > 0 => {
            let first = many.len();
            Error::input(format!("{} bad rows, the first {first}:\n{}", report.bad, many.join("\n")))
                .hint(hint)
        }
        many => Error::input(format!("{} bad rows:\n{}", many.len(), many.join("\n"))).hint(hint),
    }
}
