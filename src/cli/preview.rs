//! `preview`: how rows become tokens, and which of them are scored.

use super::{option, show, training};
use crate::config;
use crate::config::Settings;
use crate::data::preview::{FoundAnswer, PreviewRow, explanation, preview as read_rows};
use crate::error::{Error, Result, printable};
use crate::report::console::{colours, say, say_styled};
use clap::ArgMatches;
use serde_json::json;

const SCORED: &str = "\x1b[32m";
const UNSCORED: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// `qwentune preview`.
pub fn preview(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    let mut settings = training::resolved(matches, warnings)?;
    show(warnings);
    config::check_inputs(&mut settings, false)?;
    let rows = read_rows(&settings, count(matches)?)?;
    let (as_json, explained) = (matches.get_flag("json"), matches.get_flag("explain"));
    if explained && !as_json {
        explanation(&settings)?.iter().for_each(|fact| say(fact));
    }
    let coloured = colours();
    for (index, row) in rows.iter().enumerate() {
        if as_json {
            say(&row_json(row, explained).to_string());
        } else {
            say_styled(&row_text(index + 1, row, explained, coloured));
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

fn row_json(row: &PreviewRow, explained: bool) -> serde_json::Value {
    let text: String = row.pieces.iter().map(|(text, _)| text.as_str()).collect();
    let mut shown = json!({
        "file": row.file,
        "line": row.place.line,
        "row": row.place.row,
        "input_ids": row.ids,
        "labels": row.labels,
        "text": text,
        "note": row.note,
    });
    if explained {
        shown["recognised"] = json!(row.recognised);
    }
    if let Some(written) = row.written.as_ref().filter(|_| explained) {
        shown["rendered"] = json!(written.text.as_ref().ok());
        shown["prompt"] = json!(written.prompt.as_ref().ok());
        let place = |answer: &FoundAnswer| json!([answer.place.start, answer.place.end]);
        shown["answers"] = written.answers.iter().map(place).collect();
    }
    shown
}

fn row_text(number: usize, row: &PreviewRow, explained: bool, coloured: bool) -> String {
    let scored = row.labels.iter().skip(1).filter(|label| **label >= 0).count();
    let mut text = format!(
        "row {number}, {}{}: {} tokens, {scored} scored",
        printable(&row.file.display().to_string()),
        row.place,
        row.ids.len()
    );
    for line in row.recognised.iter().filter(|_| explained) {
        text += &format!("\n  {}", printable(line));
    }
    if !row.note.is_empty() {
        text += &format!("\n  {}", printable(&row.note));
    }
    for answer in row.written.iter().filter(|_| explained).flat_map(|written| &written.answers) {
        text += &format!("\n  {}", printable(&answer.how));
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
