//! Text to ids and back, exactly as the model's own tokenizer does it.
//!
//! Added tokens are found first, then each stretch between them is normalised (NFC), split and merged by the
//! `tokenizers` library. Control tokens in the text are recognised only where the caller says so, because text
//! that comes from users must not be able to end a turn.

use super::vocabulary::{self, AddedToken, Around, Vocabulary};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// A token and the bytes of the text it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// Which tokens are found in a text as a whole, before it is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognise<'a> {
    /// Control tokens (`<|im_end|>`) and the others (`<think>`), as the model's own tokenizer does.
    All,
    /// Control tokens are plain text.
    Written,
    /// These ids are plain text.
    Without(&'a [u32]),
}

/// A Qwen tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Longest first, so that the longest match wins.
    added: Vec<AddedToken>,
    starts: [bool; 256],
    bytes: BTreeMap<u32, Vec<u8>>,
    around: Around,
    digest: String,
    is_tiktoken: bool,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder: `tokenizer.json`, else `qwen.tiktoken`.
    ///
    /// # Errors
    /// There is none, it is damaged, or it is not Qwen's kind.
    pub fn open(folder: &Path) -> Result<Self> {
        let (vocabulary, is_tiktoken) = vocabulary::read(folder)?;
        let bytes = bytes_of(&vocabulary);
        let Vocabulary { ids, merges, mut added, split, around, digest } = vocabulary;
        let inner = library(ids, merges, split).map_err(|fault| {
            Error::input(format!("the tokenizer in {} cannot be used: {fault}", folder.display()))
        })?;
        added.sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        let mut starts = [false; 256];
        added.iter().for_each(|token| starts[token.content.as_bytes()[0] as usize] = true);
        let digest = digest.to_hex().to_string();
        Ok(Tokenizer { inner, added, starts, bytes, around, digest, is_tiktoken })
    }

    /// Ids of a text; control tokens in it are recognised, nothing is added.
    ///
    /// # Errors
    /// Internal errors of the library.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokens(text, Recognise::All)?.iter().map(|token| token.id).collect())
    }

    /// The text of ids; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes a token stands for; none for an unknown id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Tokens of a text with the bytes they come from.
    ///
    /// # Errors
    /// Internal errors of the library.
    pub fn tokens(&self, text: &str, recognise: Recognise<'_>) -> Result<Vec<Token>> {
        let mut tokens = Vec::new();
        let (mut plain, mut at) = (0, 0);
        while at < text.len() {
            let Some(found) = self.added_at(text, at, recognise) else {
                at += 1;
                continue;
            };
            self.push_plain(&text[plain..at], plain, &mut tokens)?;
            plain = at + found.content.len();
            tokens.push(Token { id: found.id, start: at, end: plain });
            at = plain;
        }
        self.push_plain(&text[plain..], plain, &mut tokens)?;
        Ok(tokens)
    }

    fn added_at(&self, text: &str, at: usize, recognise: Recognise<'_>) -> Option<&AddedToken> {
        let rest = &text.as_bytes()[at..];
        if !self.starts[rest[0] as usize] {
            return None;
        }
        let wanted = |token: &&AddedToken| match recognise {
            Recognise::All => true,
            Recognise::Written => !token.special,
            Recognise::Without(ids) => !ids.contains(&token.id),
        };
        self.added.iter().filter(wanted).find(|token| rest.starts_with(token.content.as_bytes()))
    }

    fn push_plain(&self, text: &str, offset: usize, into: &mut Vec<Token>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self.inner.encode(text, false).map_err(|e| Error::check(format!("tokenizer: {e}")))?;
        let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
        into.extend(pairs.map(|(&id, &(start, end))| Token { id, start: start + offset, end: end + offset }));
        Ok(())
    }

    /// The id of an added token.
    #[must_use]
    pub fn added(&self, content: &str) -> Option<u32> {
        self.added.iter().find(|token| token.content == content).map(|token| token.id)
    }

    /// The added tokens that begin a text of its own, as the model's own tokenizer has it, but for those that the
    /// text begins with itself.
    pub(super) fn begins(&self, text: &str) -> &[String] {
        if text.starts_with(&self.around.before.concat()) { &[] } else { &self.around.before }
    }

    /// The added token that ends a text of its own, where the model's own tokenizer adds one.
    pub(super) fn ends(&self) -> Option<&str> {
        self.around.after.first().map(String::as_str)
    }

    /// The added tokens, and whether they are special.
    pub(super) fn added_tokens(&self) -> impl Iterator<Item = (&str, bool)> {
        self.added.iter().map(|token| (token.content.as_str(), token.special))
    }

    /// Whether the id is a control token's.
    #[must_use]
    pub fn is_control(&self, id: u32) -> bool {
        self.added.iter().any(|token| token.id == id && token.special)
    }

    /// One more than the largest id.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.last_key_value().map_or(0, |(&id, _)| id as usize + 1)
    }

    /// BLAKE3 of the tokenizer's file, hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether it was read from `qwen.tiktoken` (Qwen v1).
    #[must_use]
    pub fn is_tiktoken(&self) -> bool {
        self.is_tiktoken
    }
}

fn library(
    ids: std::collections::HashMap<String, u32>,
    merges: Vec<(String, String)>,
    split: &str,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let bpe = BPE::builder().vocab_and_merges(ids.into_iter().collect::<Vocab>(), merges).build()?;
    let split = Split::new(SplitPattern::Regex(split.into()), SplitDelimiterBehavior::Isolated, false)?;
    let steps = vec![PreTokenizerWrapper::from(split), ByteLevel::new(false, false, false).into()];
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_normalizer(Some(NFC))?;
    inner.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(inner)
}

use tokenizers::models::bpe::Vocab;

fn bytes_of(vocabulary: &Vocabulary) -> BTreeMap<u32, Vec<u8>> {
    let byte_of: BTreeMap<char, u8> = vocabulary::byte_alphabet().into_iter().zip(0..=255).collect();
    let written = |token: &str| token.chars().filter_map(|c| byte_of.get(&c).copied()).collect::<Vec<u8>>();
    let plain = vocabulary.ids.iter().map(|(token, &id)| (id, written(token)));
    let added = vocabulary.added.iter().map(|token| (token.id, token.content.clone().into_bytes()));
    plain.chain(added).collect()
}
