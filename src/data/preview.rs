//! What the rows of a run become, for people to look at before they train on it.

use super::dataset::Row;
#[cfg(feature = "internals")]
use super::plan::{Origin, Plan, Rules};
use super::prepare::{self, Outcome};
use super::reader::{Place, RowReader};
use super::render::Renderer;
use super::rows::{self, Content};
pub use super::template::{FoundAnswer, Written};
use crate::config::Settings;
use crate::config::settings::RowFormat;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// One row as it would be trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewRow {
    /// The data file.
    pub file: PathBuf,
    /// Where it is in the file.
    pub place: Place,
    /// Token ids; none when the row is left out.
    pub ids: Vec<u32>,
    /// Labels, -100 where not scored.
    pub labels: Vec<i32>,
    /// The text in stretches of equally scored tokens; empty for tokenised rows without a tokenizer.
    pub pieces: Vec<(String, bool)>,
    /// What was recognised in the row: which key is what.
    pub recognised: Vec<String>,
    /// Why the row is left out or what was done to it; empty for a row that is taken as it is.
    pub note: String,
    /// What the chat template makes of it, when it is a conversation.
    pub written: Option<Written>,
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
        let format = prepare::format_of(file, settings)?;
        if renderer.is_none() {
            renderer = open(settings, format)?;
        }
        let mut reader = RowReader::open(file)?;
        let most = rows.min(shown.len().saturating_add(settings.max_samples.unwrap_or(usize::MAX)));
        while shown.len() < most
            && let Some(raw) = reader.next()?
        {
            let (file, place) = (file.clone(), raw.place);
            let mut written = None;
            let json = prepare::parse(&raw, &settings.columns);
            let mut recognised = vec![how_known(format, settings)];
            recognised.extend(json.iter().flat_map(|json| rows::explain(json, format)));
            let outcome = match json.and_then(|json| rows::read(&json, format, usize::MAX)) {
                Err(fault) => Outcome::Bad(fault),
                Ok(content) => {
                    check_template(&content, renderer.as_ref())?;
                    written = renderer.as_ref().and_then(|renderer| renderer.written(&content, settings));
                    prepare::outcome_of(content, settings, renderer.as_ref())
                }
            };
            let (row, note) = explain(outcome, settings);
            let pieces = renderer.as_ref().map_or_else(Vec::new, |r| r.stretches(&row));
            shown.push(PreviewRow {
                file,
                place,
                ids: row.ids,
                labels: row.labels,
                pieces,
                recognised,
                note,
                written,
            });
        }
    }
    Ok(shown)
}

/// What was chosen to render the rows of these settings, and why: one fact a line.
///
/// # Errors
/// A tokenizer that cannot be read.
pub fn explanation(settings: &Settings) -> Result<Vec<String>> {
    Ok(Renderer::open(settings, usize::MAX)?.explain())
}

#[cfg(feature = "internals")]
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

/// The format and where it is known from.
fn how_known(format: RowFormat, settings: &Settings) -> String {
    let name = serde_json::to_value(format).ok().and_then(|name| name.as_str().map(str::to_owned));
    let from =
        if settings.format == RowFormat::Auto { "by the keys of the file's first row" } else { "--format" };
    format!("format {}: {from}", name.unwrap_or_default())
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
        Outcome::Row { row, truncated, thoughts_left_out } => {
            let cut = truncated.then(|| format!("cut to --cutoff-len {cutoff}"));
            let lost = (thoughts_left_out > 0)
                .then(|| format!("the thoughts of {thoughts_left_out} earlier answers are left out"));
            (row, cut.into_iter().chain(lost).collect::<Vec<_>>().join("; "))
        }
        Outcome::TooLong(n) => (nothing, format!("left out: {n} tokens, more than --cutoff-len {cutoff}")),
        Outcome::Unscored => (nothing, "left out: nothing in it is scored".into()),
        Outcome::Bad(fault) => (nothing, fault),
    }
}
