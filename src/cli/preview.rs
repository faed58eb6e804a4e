//! `preview`: how rows become tokens, and which of them are scored.

use super::{option, show, training};
use crate::config;
use crate::config::Settings;
use crate::data::preview::{PreviewRow, preview as read_rows};
use crate::error::{Error, Result, printable};
use crate::report::console::{colours, say, say_styled};
use clap::ArgMatches;
use serde_json::json;

const SCORED: &str = "\x1b[32m";
const UNSCORED: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// `qwentune preview`.
pub fn preview(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    let settings = training::resolved(matches, warnings)?;
    show(warnings);
    config::check_inputs(&settings, false)?;
    let rows = read_rows(&settings, count(matches)?)?;
    let as_json = matches.get_flag("json");
    let coloured = colours();
    for (index, row) in rows.iter().enumerate() {
        if as_json {
            say(&row_json(row).to_string());
        } else {
            say_styled(&row_text(index + 1, row, coloured));
        }
    }
    if !as_json && !rows.is_empty() {
        say_styled(&legend(&settings, coloured));
    }
    Ok(())
}

fn count(matches: &ArgMatches) -> Result<usize> {
    let text = option(matches, "rows").unwrap_or("3");
    match text.parse() {
        Ok(rows) if rows > 0 => Ok(rows),
        _ => Err(Error::usage(format!("--rows: '{text}' is not a whole number above 0"))),
    }
}

fn row_json(row: &PreviewRow) -> serde_json::Value {
    let text: String = row.pieces.iter().map(|(text, _)| text.as_str()).collect();
    json!({
        "file": row.file,
        "line": row.line,
        "input_ids": row.ids,
        "labels": row.labels,
        "text": text,
        "note": row.note,
    })
}

fn row_text(number: usize, row: &PreviewRow, coloured: bool) -> String {
    let scored = row.labels.iter().skip(1).filter(|label| **label >= 0).count();
    let mut text = format!(
        "row {number}, {}:{}: {} tokens, {scored} scored",
        printable(&row.file.display().to_string()),
        row.line,
        row.ids.len()
    );
    if !row.note.is_empty() {
        text += &format!("\n  {}", printable(&row.note));
    }
    if row.pieces.is_empty() && !row.ids.is_empty() {
        text += &format!("\n  ids {:?}", row.ids);
    }
    if coloured {
        let pieces = row.pieces.iter().map(|(piece, scored)| {
            let colour = if *scored { SCORED } else { UNSCORED };
            format!("{colour}{}{PLAIN}", printable(piece))
        });
        return text + "\n" + &pieces.collect::<String>() + "\n";
    }
    for (piece, scored) in &row.pieces {
        let mark = if *scored { '+' } else { '-' };
        text += &format!("\n  {mark} {}", serde_json::to_string(piece).unwrap_or_default());
    }
    text
}

fn legend(settings: &Settings, coloured: bool) -> String {
    let marks = if coloured {
        format!("{SCORED}scored{PLAIN}, {UNSCORED}not scored{PLAIN}")
    } else {
        "+ scored, - not scored".to_owned()
    };
    let packed = if settings.packing {
        "; with --packing, rows share sequences without seeing each other"
    } else {
        ""
    };
    format!("{marks}{packed}")
}
