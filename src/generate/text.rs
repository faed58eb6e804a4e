//! Tokens as text while they come: control tokens are left out, and a character is shown when it is whole.

use crate::data::tokenizer::Tokenizer;

/// The text of an answer, as transformers decodes it with `skip_special_tokens`.
#[must_use]
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let said: Vec<u32> = ids.iter().copied().filter(|id| !tokenizer.is_control(*id)).collect();
    tokenizer.decode(&said)
}

/// Text that comes token by token.
#[derive(Debug, Default)]
pub struct Stream {
    /// The beginning of a character whose end is still to come.
    rest: Vec<u8>,
}

impl Stream {
    /// What can be shown after one token more.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if !tokenizer.is_control(id) {
            self.rest.extend_from_slice(tokenizer.token_bytes(id));
        }
        let whole = whole_characters(&self.rest);
        let rest = self.rest.split_off(whole);
        let shown = std::mem::replace(&mut self.rest, rest);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// What is left when the answer is complete.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()
    }
}

/// Length of the beginning of `bytes` that later bytes do not change.
fn whole_characters(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let open = std::str::from_utf8(last).is_err_and(|e| e.error_len().is_none());
    bytes.len() - if open { last.len() } else { 0 }
}
