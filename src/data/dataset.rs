//! Tokenised rows: lengths in memory, tokens on disk.

use crate::config::Settings;
use crate::error::Result;
use crate::report::event::Observer;
use std::collections::BTreeMap;

/// Label of a token that is not scored.
pub const IGNORED: i32 = -100;

/// One tokenised row. `labels[i]` is the id of token i where it is scored, [`IGNORED`] elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Labels, as long as `ids`.
    pub labels: Vec<i32>,
}

/// Tokenised rows with random access; works on data larger than memory.
pub struct Dataset {}

impl Dataset {
    /// Rows held in memory (tests, embedding).
    ///
    /// # Errors
    /// Names the row that is empty, has labels of another length, or scores nothing.
    pub fn from_rows(rows: Vec<Row>) -> Result<Self> {
        let _ = rows;
        todo!()
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of each row.
    #[must_use]
    pub fn lengths(&self) -> &[u32] {
        todo!()
    }

    /// Row `index`.
    ///
    /// # Errors
    /// I/O errors of the token cache.
    pub fn row(&self, index: usize) -> Result<Row> {
        let _ = index;
        todo!()
    }

    /// BLAKE3 over the tokenised stream in canonical (file) order, hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        todo!()
    }
}

/// Training and evaluation rows, and what identifies them.
pub struct Prepared {
    /// Rows trained on.
    pub train: Dataset,
    /// Rows evaluated on.
    pub eval: Option<Dataset>,
    /// What decides the rows, for the fingerprint: `data.*` and `tokenizer.*` keys to digests, counts, names.
    pub identity: BTreeMap<String, String>,
}

/// Reads, checks, renders and tokenises all rows of the settings' files; the complete validation pass.
/// `vocab_size` bounds every id.
///
/// # Errors
/// Names file and row; up to 20 bad rows are listed.
pub fn prepare(settings: &Settings, vocab_size: usize, observer: &mut dyn Observer) -> Result<Prepared> {
    let _ = (settings, vocab_size, observer);
    todo!()
}
