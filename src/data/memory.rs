//! A program's own rows as tokens.

use super::dataset::Row;
use super::json;
use super::prepare::{Outcome, outcome_of};
use super::render::Renderer;
use super::rows;
use crate::config::Settings;
use crate::config::settings::RowFormat;
use crate::error::{Error, Result};
use serde_json::Value;

/// Each row as the tokens it would be if a data file held it: conversations, prompts with completions, texts, tokens. Model,
/// template, masks and length limits are the settings'. `vocab_size` bounds every id.
///
/// # Errors
/// Names the row, counted from 1: it is wrong, too long, or nothing in it is scored.
pub fn tokenise(settings: &Settings, vocab_size: usize, rows: &[Value]) -> Result<Vec<Row>> {
    let mut renderer = None;
    rows.iter()
        .enumerate()
        .map(|(index, row)| {
            let fault = |what: String| Error::input(format!("row {}: {what}", index + 1));
            let value = json::parse(&row.to_string()).map_err(|e| fault(e.what))?;
            let format = match settings.format {
                RowFormat::Auto => rows::recognise(&value).map_err(fault)?,
                named => named,
            };
            if format != RowFormat::Tokenized && renderer.is_none() {
                renderer = Some(Renderer::open(settings, vocab_size)?);
            }
            if let Some(renderer) =
                renderer.as_ref().filter(|_| !matches!(format, RowFormat::Text | RowFormat::Tokenized))
            {
                renderer.require_template()?;
            }
            let content = rows::read(&value, format, vocab_size).map_err(fault)?;
            match outcome_of(content, settings, renderer.as_ref()) {
                Outcome::Row { row, .. } => Ok(row),
                Outcome::Bad(what) => Err(fault(what)),
                Outcome::Unscored => Err(fault("nothing in it is scored".into())),
                Outcome::TooLong(tokens) => {
                    Err(fault(format!("{tokens} tokens are more than the limit of {}", settings.cutoff_len)))
                }
            }
        })
        .collect()
}
