//! What the rows of a run become, for people to look at before they train on it.

use super::dataset::Row;
use super::plan::{Origin, Plan, Rules};
use super::prepare::{self, Outcome};
use super::reader::RowReader;
use super::render::Renderer;
use super::rows::Content;
use crate::config::Settings;
use crate::config::settings::RowFormat;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// One row as it would be trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewRow {
    /// The data file.
    pub file: PathBuf,
    /// Line of the file, from 1.
    pub line: u64,
    /// Token ids; none when the row is left out.
    pub ids: Vec<u32>,
    /// Labels, -100 where not scored.
    pub labels: Vec<i32>,
    /// The text in stretches of equally scored tokens; empty for tokenised rows without a tokenizer.
    pub pieces: Vec<(String, bool)>,
    /// Why the row is left out or what was done to it; empty for a row that is taken as it is.
    pub note: String,
}

/// The first `rows` rows of the training files. Rows that a run would leave out are here too, with the reason.
///
/// # Errors
/// Files, tokenizer or template that cannot be read.
pub fn preview(settings: &Settings, rows: usize) -> Result<Vec<PreviewRow>> {
    if settings.train_files.is_empty() {
        return Err(Error::usage("there is no data to preview").hint("name it with --train-file FILE"));
    }
    let mut shown = Vec::new();
    let mut renderer = None;
    for file in &settings.train_files {
        let format = prepare::format_of(file, settings.format)?;
        if renderer.is_none() {
            renderer = open(settings, format)?;
        }
        let mut reader = RowReader::open(file)?;
        while shown.len() < rows
            && let Some(raw) = reader.next()?
        {
            let (file, line) = (file.clone(), raw.line);
            let outcome = match prepare::content_of(&raw, format, usize::MAX) {
                Err(fault) => Outcome::Bad(fault),
                Ok(content) => {
                    check_template(&content, renderer.as_ref())?;
                    prepare::outcome_of(content, settings, renderer.as_ref())
                }
            };
            let (row, note) = explain(outcome, settings);
            let pieces = renderer.as_ref().map_or_else(Vec::new, |r| r.stretches(&row));
            shown.push(PreviewRow { file, line, ids: row.ids, labels: row.labels, pieces, note });
        }
    }
    Ok(shown)
}

/// The micro-batches that the shown rows would form among themselves, in file order: indices into `rows`, rows
/// that are left out missing. With packing these are the packed sequences.
///
/// # Errors
/// A row longer than a packed micro-batch; no row is used.
pub fn micro_batches(settings: &Settings, rows: &[PreviewRow]) -> Result<Vec<Vec<usize>>> {
    let used: Vec<usize> = (0..rows.len()).filter(|&i| !rows[i].ids.is_empty()).collect();
    let lengths: Vec<u32> = used.iter().map(|&i| rows[i].ids.len() as u32).collect();
    let rules = Rules {
        batch_size: settings.per_device_train_batch_size,
        accumulation: used.len().max(1),
        packing: settings.packing,
        tokens_per_micro_batch: settings.tokens_per_micro_batch,
        shuffle: false,
        seed: settings.seed,
        epochs: 1.0,
        max_steps: None,
        origin: Origin::default(),
    };
    let step = Plan::new(&lengths, rules)?.step(0);
    let named = |rows: &Vec<u32>| rows.iter().map(|&row| used[row as usize]).collect();
    Ok(step.micro_batches.iter().map(named).collect())
}

/// Tokenised rows need no tokenizer, but are shown as text where the model folder has one.
fn open(settings: &Settings, format: RowFormat) -> Result<Option<Renderer>> {
    match Renderer::open(settings, usize::MAX) {
        Ok(renderer) => Ok(Some(renderer)),
        Err(_) if format == RowFormat::Tokenized => Ok(None),
        Err(fault) => Err(fault),
    }
}

fn check_template(content: &Content, renderer: Option<&Renderer>) -> Result<()> {
    match (content, renderer) {
        (Content::Chat(_), Some(renderer)) => renderer.require_template(),
        _ => Ok(()),
    }
}

fn explain(outcome: Outcome, settings: &Settings) -> (Row, String) {
    let nothing = Row { ids: Vec::new(), labels: Vec::new() };
    let cutoff = settings.cutoff_len;
    match outcome {
        Outcome::Row { row, truncated: false } => (row, String::new()),
        Outcome::Row { row, truncated: true } => (row, format!("cut to --cutoff-len {cutoff}")),
        Outcome::TooLong(n) => (nothing, format!("left out: {n} tokens, more than --cutoff-len {cutoff}")),
        Outcome::Unscored => (nothing, "left out: nothing in it is scored".into()),
        Outcome::Bad(fault) => (nothing, fault),
    }
}
