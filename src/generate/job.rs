//! A file of rows answered into another: whole or not there. Until all rows are answered, those that are lie in
//! `OUTPUT.partial`, in order, behind one line that says of which job they are; the same job continues there.

use super::{Event, Generator, Model, Options, text};
use crate::data::prompts::{PromptRow, Prompter, is_row, with_output};
use crate::error::{Error, Kind, Result};
use crate::formats::atomic_file;
use crate::identity::canonical_json;
use crate::report::event::{Event as Told, Observer};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// What a job has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Rows of the file.
    pub rows: usize,
    /// Rows that an earlier process had answered.
    pub continued: usize,
    /// Tokens generated now.
    pub tokens: u64,
    /// Answers generated now that were cut at their longest.
    pub cut: usize,
}

/// Answers the rows of `input` into `output`.
///
/// # Errors
/// `output` is there; its `.partial` is another job's; a row is wrong; I/O; [`Kind::Stopped`] when cancelled, with
/// what was answered kept.
pub fn run(
    model: &Model,
    prompter: &Prompter,
    options: &Options,
    input: &Path,
    output: &Path,
    observer: &mut dyn Observer,
    cancelled: &dyn Fn() -> bool,
) -> Result<Done> {
    if output.exists() {
        return Err(Error::output(format!("{} is there already", output.display()))
            .hint("give another --output-file, or remove it"));
    }
    let rows = prompter.file(input)?;
    let longest = rows.iter().max_by_key(|row| row.ids.len());
    if let Some(row) = longest.filter(|row| row.ids.len() >= model.spec.longest_text()) {
        let (line, tokens, most) = (row.line, row.ids.len(), model.spec.longest_text());
        let place = format!("{}:{line}", input.display());
        return Err(Error::input(format!(
            "{place}: the prompt has {tokens} tokens; the model reads {most}, answer included"
        )));
    }
    let header = header(model, prompter, options, &rows, observer)?;
    let mut partial = Partial::open(output, &header, rows.len())?;
    let (continued, total) = (partial.answered, rows.len());
    if continued > 0 {
        let place = partial.path.display();
        observer
            .on_event(&Told::Note(format!("continues {place}: {continued} of {total} rows are answered")));
    }
    let mut done = Done { rows: total, continued, ..Done::default() };
    let left: Vec<&[u32]> = rows[continued..].iter().map(|row| row.ids.as_slice()).collect();
    let mut complete = true;
    if let Some(longest) = left.iter().map(|ids| ids.len()).max() {
        let mut generator = Generator::new(model, options.clone(), longest, left.len())?;
        let mut tell = |event| {
            match event {
                Event::Token { .. } => done.tokens += 1,
                Event::Answer { row, ids, ended } => {
                    done.cut += usize::from(!ended);
                    let answer = text::decode(prompter.tokenizer(), &ids);
                    partial.push(row, with_output(&rows[row].text, &answer))?;
                    let (done, total) = (partial.count() as u64, total as u64);
                    observer.on_event(&Told::Progress { what: "generating", done, total });
                }
            }
            Ok(())
        };
        complete = generator.run(&left, continued, &mut tell, cancelled)?;
    }
    if !complete {
        return Err(partial.stopped(total));
    }
    partial.publish(output)?;
    Ok(done)
}

/// One line that tells one job from another: everything that decides the answers.
fn header(
    model: &Model,
    prompter: &Prompter,
    options: &Options,
    rows: &[PromptRow],
    observer: &mut dyn Observer,
) -> Result<String> {
    let mut progress =
        |done, total| observer.on_event(&Told::Progress { what: "digesting the model", done, total });
    let digests = model.weights.map.digests(None, &mut progress)?;
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &[u8]| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    add(format!("{:?}", model.spec).as_bytes());
    digests.iter().for_each(|(name, digest)| add(format!("{name} {digest}").as_bytes()));
    add(format!("{:?}", model.adapter.spec).as_bytes());
    model.adapter.values.chunks(4096).for_each(|values| {
        add(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    });
    add(prompter.identity().as_bytes());
    let Options { max_new_tokens, sampling, seed, ends, .. } = options;
    // On another kind of device an answer may differ.
    add(canonical_json(&options.chosen()?.engine()?).as_bytes());
    add(format!("{max_new_tokens} {sampling:?} {seed} {ends:?}").as_bytes());
    rows.iter().for_each(|row| add(row.text.as_bytes()));
    Ok(format!("{{\"generate\": \"{}\"}}", hasher.finalize().to_hex()))
}

/// The answered rows so far.
struct Partial {
    path: PathBuf,
    file: File,
    header: String,
    /// Rows in the file.
    answered: usize,
    /// Rows that ended before an earlier one did.
    early: BTreeMap<usize, String>,
}

impl Partial {
    fn open(output: &Path, header: &str, rows: usize) -> Result<Self> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let path = output.with_file_name(name);
        let fault = |e: std::io::Error| Error::io("writing", &path, e);
        let mut file = File::options().create(true).read(true).append(true).open(&path).map_err(fault)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::output(format!("{} is being written by another process", path.display())));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| Error::reading(&path, e))?;
        let kept = Self::whole_lines(&path, &bytes, header, rows)?;
        let length = kept.iter().map(|line| line.len() as u64 + 1).sum();
        file.set_len(length).map_err(fault)?;
        if kept.is_empty() {
            file.write_all(format!("{header}\n").as_bytes()).map_err(fault)?;
        }
        let answered = kept.len().saturating_sub(1);
        Ok(Partial { path, file, header: header.to_owned(), answered, early: BTreeMap::new() })
    }

    /// The lines of an earlier process that are whole, header included; a crash may have torn the last one.
    fn whole_lines(path: &Path, bytes: &[u8], header: &str, rows: usize) -> Result<Vec<String>> {
        let text = String::from_utf8_lossy(bytes);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.split('\n').filter(|_| !whole.is_empty());
        match lines.next() {
            None => return Ok(Vec::new()),
            Some(first) if first == header => {}
            Some(_) => {
                return Err(Error::output(format!(
                    "{} is of another job: model, adapter, rows or settings differ",
                    path.display()
                ))
                .hint("give another --output-file, or remove it"));
            }
        }
        let answered = lines.take_while(|line| is_row(line)).take(rows).map(str::to_owned);
        Ok(std::iter::once(header.to_owned()).chain(answered).collect())
    }

    /// Keeps a row's answer; rows go to the file in order.
    fn push(&mut self, row: usize, line: String) -> Result<()> {
        self.early.insert(row, line);
        while let Some(line) = self.early.remove(&self.answered) {
            self.file
                .write_all(format!("{line}\n").as_bytes())
                .map_err(|e| Error::io("writing", &self.path, e))?;
            self.answered += 1;
        }
        Ok(())
    }

    /// All rows answered now, also those that wait for an earlier one.
    fn count(&self) -> usize {
        self.answered + self.early.len()
    }

    fn stopped(&self, total: usize) -> Error {
        let place = self.path.display();
        Error::new(Kind::Stopped, format!("stopped: {} of {total} rows are in {place}", self.answered))
            .hint("the same command continues there")
    }

    /// Gives the rows, without the header, their name.
    fn publish(self, output: &Path) -> Result<()> {
        let bytes = std::fs::read(&self.path).map_err(|e| Error::reading(&self.path, e))?;
        atomic_file::write(output, &bytes[self.header.len() + 1..])?;
        std::fs::remove_file(&self.path).map_err(|e| Error::io("removing", &self.path, e))
    }
}
