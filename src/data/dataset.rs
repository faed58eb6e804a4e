//! Tokenised rows: lengths in memory, tokens on disk.

use super::store::{self, Store};
use crate::error::{Error, Result};
use crate::identity::Data;
use std::sync::Arc;

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

impl Row {
    /// What is wrong with the row, if anything: no tokens, labels of another length, a label that is neither
    /// its token nor [`IGNORED`].
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.ids.is_empty() {
            return Some("there are no tokens".into());
        }
        if self.ids.len() != self.labels.len() {
            return Some(format!("{} labels for {} tokens", self.labels.len(), self.ids.len()));
        }
        let differs = |i: &usize| self.labels[*i] != IGNORED && self.labels[*i] as u32 != self.ids[*i];
        let at = (0..self.ids.len()).find(differs)?;
        Some(format!(
            "label {} at position {at} is not its token {} (labels are the tokens themselves, unshifted, or -100)",
            self.labels[at], self.ids[at]
        ))
    }

    /// Tokens that count in the loss: labels that are not [`IGNORED`], the first token left out.
    #[must_use]
    pub fn scored(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
    }
}

/// A program's own rows, in memory: what stands in for the settings' data files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows trained on.
    pub train: Vec<Row>,
    /// Rows evaluated on; none: the settings' `val_set_size` says how many of the training rows are.
    pub eval: Vec<Row>,
}

/// Tokenised rows with random access; works on data larger than memory. A copy shares the tokens.
#[derive(Clone)]
pub struct Dataset {
    stores: Vec<Arc<Store>>,
    places: Vec<Place>,
    lengths: Vec<u32>,
    digest: String,
}

/// Where a row lies.
#[derive(Clone, Copy)]
struct Place {
    store: u32,
    sum: u32,
    offset: u64,
}

/// The rows of one source, as the cache holds them.
pub(super) struct Part {
    /// Encoded rows.
    pub(super) store: Arc<Store>,
    /// Offset of the first row; the others follow without gaps.
    pub(super) first: u64,
    /// Tokens of each row.
    pub(super) lengths: Vec<u32>,
    /// [`store::sum`] of each row.
    pub(super) sums: Vec<u32>,
    /// BLAKE3 of the stream of rows.
    pub(super) digest: [u8; 32],
}

/// Digests the stream of rows: length (u32), ids and mask of each, in order.
pub(super) fn digest_row(hasher: &mut blake3::Hasher, encoded: &[u8], tokens: u32) {
    hasher.update(&tokens.to_le_bytes());
    hasher.update(encoded);
}

impl Dataset {
    #[cfg(feature = "internals")]
    /// Rows held in memory.
    ///
    /// # Errors
    /// Names the row that is empty, has labels of another length, or scores nothing.
    pub fn from_rows(rows: Vec<Row>) -> Result<Self> {
        let (mut bytes, mut sums) = (Vec::new(), Vec::new());
        let mut hasher = blake3::Hasher::new();
        for (index, row) in rows.iter().enumerate() {
            let fault = row.fault().or_else(|| (row.scored() == 0).then(|| "no token is scored".into()));
            if let Some(fault) = fault {
                return Err(Error::input(format!("row {}: {fault}", index + 1)));
            }
            let first = bytes.len();
            store::encode(row, &mut bytes);
            digest_row(&mut hasher, &bytes[first..], row.ids.len() as u32);
            sums.push(store::sum(&bytes[first..]));
        }
        Ok(Self::join(vec![Part {
            store: Arc::new(Store::Memory(bytes)),
            first: 0,
            lengths: rows.iter().map(|row| row.ids.len() as u32).collect(),
            sums,
            digest: hasher.finalize().into(),
        }]))
    }

    /// The rows of all parts, in order. One part keeps its digest; several have the digest of their digests.
    pub(super) fn join(parts: Vec<Part>) -> Self {
        let mut hasher = blake3::Hasher::new();
        parts.iter().for_each(|part| _ = hasher.update(&part.digest));
        let digest = match parts.as_slice() {
            [only] => blake3::Hash::from_bytes(only.digest),
            _ => hasher.finalize(),
        };
        let mut all = Dataset {
            stores: Vec::new(),
            places: Vec::new(),
            lengths: Vec::new(),
            digest: digest.to_hex().to_string(),
        };
        for part in parts {
            let mut offset = part.first;
            for (&length, &sum) in part.lengths.iter().zip(&part.sums) {
                all.places.push(Place { store: all.stores.len() as u32, sum, offset });
                offset += store::row_bytes(length) as u64;
            }
            all.stores.push(part.store);
            all.lengths.extend(part.lengths);
        }
        all
    }

    /// The rows of ascending `indices`; their digest is that of all rows together with the indices.
    pub(super) fn select(&self, indices: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.digest.as_bytes());
        indices.iter().for_each(|index| _ = hasher.update(&index.to_le_bytes()));
        Dataset {
            stores: self.stores.clone(),
            places: indices.iter().map(|&i| self.places[i as usize]).collect(),
            lengths: indices.iter().map(|&i| self.lengths[i as usize]).collect(),
            digest: hasher.finalize().to_hex().to_string(),
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    #[cfg(feature = "internals")]
    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of each row.
    #[must_use]
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Row `index`.
    ///
    /// # Errors
    /// I/O errors of the token cache.
    pub fn row(&self, index: usize) -> Result<Row> {
        let Some(place) = self.places.get(index) else {
            return Err(Error::check(format!("row {index} of {} was asked for", self.len())));
        };
        self.stores[place.store as usize].row(place.offset, self.lengths[index], place.sum)
    }

    /// BLAKE3 over the tokenised stream in canonical (file) order, hex. Several files have the digest of their
    /// digests; a part of the rows, the digest of all rows' digest and the rows' numbers.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// Training and evaluation rows, and what identifies them.
pub struct Prepared {
    /// Rows trained on.
    pub train: Dataset,
    /// Rows evaluated on.
    pub eval: Option<Dataset>,
    /// What decides the rows.
    pub identity: Data,
}

pub use super::prepare::{prepare, prepare_rows};
