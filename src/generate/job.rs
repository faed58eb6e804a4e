//! A file of rows answered into another: whole or not there. Until all rows are answered, those that are lie in
//! `OUTPUT.partial`, in order, behind one line that says of which job they are; the same job continues there. An answer
//! is kept only after a look at the weights it was computed from: had they been edited, it would be another model's.

use super::{Event, Generator, Model, Options, text};
use crate::data::prompts::{PromptRow, Prompter, is_row, with_output};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::formats::open_folder::{OpenFolder, lock_soon};
use crate::formats::publish::{FileDraft, MadeFrom, Over};
use crate::identity::canonical_json;
use crate::report::event::{Event as Told, Observer};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest file of answers that is continued: its lines are read whole.
const MAX_ANSWERS: u64 = 4 << 30;

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
    let place = Place::open(output)?;
    place.refuse_taken()?;
    let rows = prompter.file(input)?;
    let longest = rows.iter().max_by_key(|row| row.ids.len());
    if let Some(row) = longest.filter(|row| row.ids.len() >= model.spec.longest_text()) {
        let (place, tokens, most) = (row.place, row.ids.len(), model.spec.longest_text());
        let place = format!("{}{place}", input.display());
        return Err(Error::input(format!(
            "{place}: the prompt has {tokens} tokens; the model reads {most}, answer included"
        )));
    }
    let header = header(model, prompter, options, &rows, observer)?;
    let mut partial = Partial::open(place, &header, rows.len())?;
    let (continued, total) = (partial.answered, rows.len());
    if continued > 0 {
        let place = partial.place.partial_path();
        let place = place.display();
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
                    // Before anything is written down: what is kept was answered by the model the job began with.
                    model.check_unchanged().map_err(|error| {
                        let kept = "the answers before are kept; restore the file and run the command again";
                        error.hint(kept)
                    })?;
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
    partial.publish(model)?;
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

/// The open folder the answers go to.
struct Place {
    folder: OpenFolder,
    output: OsString,
    partial: OsString,
}

impl Place {
    fn open(output: &Path) -> Result<Self> {
        let (folder, name) = OpenFolder::around(output)
            .map_err(|e| Error::output(format!("cannot write {}: {e}", output.display())).caused_by(e))?;
        let mut partial = name.clone();
        partial.push(".partial");
        Ok(Place { folder, output: name, partial })
    }

    fn partial_path(&self) -> PathBuf {
        self.folder.path_of(&self.partial)
    }

    fn refuse_taken(&self) -> Result<()> {
        let path = self.folder.path_of(&self.output);
        if self.folder.look(&self.output).map_err(|e| Error::io("looking at", &path, e))?.is_none() {
            return Ok(());
        }
        Err(Error::output(format!("{} is there already", path.display()))
            .hint("give another --output-file, or remove it"))
    }

    /// The `.partial`, locked; created where there is none.
    fn lock_partial(&self) -> Result<File> {
        let path = self.partial_path();
        let fault = |e: std::io::Error| {
            Error::output(format!("cannot use {}: {e}", path.display())).hint("remove it").caused_by(e)
        };
        let busy = || Error::output(format!("{} is being written by another process", path.display()));
        loop {
            let file = self.folder.open_or_create_file(&self.partial).map_err(fault)?;
            match lock_soon(&file) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy()),
                Err(e) => return Err(fault(e.into())),
            }
            let found = file.metadata().map_err(fault)?;
            if found.uid() != rustix::process::geteuid().as_raw() || found.nlink() > 1 {
                return Err(Error::output(format!("{} is not this user's alone", path.display()))
                    .hint("give another --output-file, or remove it"));
            }
            // Whoever had the lock before may have finished: then the name is gone, or another file's.
            if self.folder.leads_to(&self.partial, &file).map_err(fault)? {
                self.refuse_taken()?;
                return Ok(file);
            }
        }
    }
}

/// The answered rows so far.
struct Partial {
    place: Place,
    file: File,
    header: String,
    /// Rows in the file.
    answered: usize,
    /// Rows that ended before an earlier one did.
    early: BTreeMap<usize, String>,
}

impl Partial {
    fn open(place: Place, header: &str, rows: usize) -> Result<Self> {
        let path = place.partial_path();
        let fault = |e: std::io::Error| Error::io("writing", &path, e);
        let mut file = place.lock_partial()?;
        let bytes = files::read_from(file.try_clone().map_err(fault)?, &path, MAX_ANSWERS)?;
        let kept = Self::whole_lines(&path, &bytes, header, rows)?;
        let length = kept.iter().map(|line| line.len() as u64 + 1).sum();
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(fault)?;
        if kept.is_empty() {
            file.write_all(format!("{header}\n").as_bytes()).map_err(fault)?;
        }
        let answered = kept.len().saturating_sub(1);
        Ok(Partial { place, file, header: header.to_owned(), answered, early: BTreeMap::new() })
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
                .map_err(|e| Error::io("writing", &self.place.partial_path(), e))?;
            self.answered += 1;
        }
        Ok(())
    }

    /// All rows answered now, also those that wait for an earlier one.
    fn count(&self) -> usize {
        self.answered + self.early.len()
    }

    fn stopped(&self, total: usize) -> Error {
        let place = self.place.partial_path();
        let place = place.display();
        Error::new(Kind::Stopped, format!("stopped: {} of {total} rows are in {place}", self.answered))
            .hint("the same command continues there")
    }

    /// Gives the rows, without the header, their name.
    fn publish(mut self, model: &Model) -> Result<()> {
        let path = self.place.partial_path();
        let reading = |e: std::io::Error| Error::reading(&path, e);
        let mut draft = FileDraft::in_folder(&self.place.folder, &self.place.output)?;
        self.file.seek(SeekFrom::Start(self.header.len() as u64 + 1)).map_err(reading)?;
        let mut part = vec![0; 1 << 20];
        loop {
            let read = self.file.read(&mut part).map_err(reading)?;
            if read == 0 {
                break;
            }
            draft.write(&part[..read])?;
        }
        draft.publish(Over::Nothing, model)?;
        self.place.folder.unlink(&self.place.partial).map_err(|e| Error::io("removing", &path, e))
    }
}
