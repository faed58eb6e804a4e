//! What a device states of itself, so that nothing above asks which one it is.

use crate::element::Element;

/// What a device can do, and how it wants its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Its kind, as checkpoints name it.
    pub kind: &'static str,
    /// How it stores activations. Sums are f32.
    pub activation: Element,
    /// How it stores what layers keep from the forward to the backward pass.
    pub kept: Element,
    /// Whether it has a memory of its own, with copies of the host's matrices and integers.
    pub own_memory: bool,
    /// Whether operations are queued rather than done when they return; work that comes again is then recorded.
    pub queued: bool,
    /// Whether sums over many rows are made of parts, which need memory beside the operands.
    pub sums_in_parts: bool,
    /// Head sizes of its attention; `None`: all even ones.
    pub head_sizes: Option<&'static [usize]>,
    /// Elements that rows of products are a multiple of.
    pub row_multiple: usize,
    /// Logits held at once: enough rows to amortise reading the head and to fill the device, bounded for a vocabulary of
    /// 150k.
    pub logits: usize,
}

impl Capabilities {
    /// Elements of a row that holds `len`.
    #[must_use]
    pub fn row_len(&self, len: usize) -> usize {
        len.next_multiple_of(self.row_multiple)
    }

    /// Rows of logits held at once, of the scored tokens among `tokens`.
    #[must_use]
    pub fn logit_rows(&self, vocab: usize, tokens: usize) -> usize {
        (self.logits / self.row_len(vocab)).clamp(1, tokens)
    }
}
