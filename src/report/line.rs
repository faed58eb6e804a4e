//! The lines a run logs: each kind is declared once, here, for `metrics.jsonl`, for checkpoints and for observers.

use serde::{Deserialize, Serialize};

/// A number of a line, as checkpoints hold it.
trait Word {
    fn to_word(self) -> u64;
    fn from_word(word: u64) -> Self;
    fn finite(self) -> bool;
}

impl Word for u64 {
    fn to_word(self) -> u64 {
        self
    }

    fn from_word(word: u64) -> Self {
        word
    }

    fn finite(self) -> bool {
        true
    }
}

impl Word for f64 {
    fn to_word(self) -> u64 {
        self.to_bits()
    }

    fn from_word(word: u64) -> Self {
        f64::from_bits(word)
    }

    fn finite(self) -> bool {
        f64::is_finite(self)
    }
}

/// Declares the kinds of lines: the number of the kind in checkpoints, its name, its fields in the order of the file.
/// Every kind has a step and an epoch; a field is `u64` or `f64`.
macro_rules! log_lines {
    ($($(#[$doc:meta])* $number:literal $kind:ident($line:ident) {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $line {
                $($(#[$field_doc])* pub $field: $type,)*
            }
        )*

        /// A line of `metrics.jsonl` without its clock.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum LogLine {
            $($(#[$doc])* $kind($line),)*
        }

        impl LogLine {
            /// The step it belongs to.
            #[must_use]
            pub fn step(&self) -> u64 {
                match self { $(LogLine::$kind(line) => line.step,)* }
            }

            /// Epochs finished, as a fraction.
            #[must_use]
            pub fn epoch(&self) -> f64 {
                match self { $(LogLine::$kind(line) => line.epoch,)* }
            }

            /// Whether all its numbers are finite.
            #[must_use]
            pub fn is_finite(&self) -> bool {
                match self { $(LogLine::$kind(line) => [$(Word::finite(line.$field)),*].iter().all(|yes| *yes),)* }
            }

            /// The number of its kind, and its fields: integers, and the bits of f64.
            #[must_use]
            pub fn words(&self) -> (u32, Vec<u64>) {
                match self { $(LogLine::$kind(line) => ($number, vec![$(line.$field.to_word()),*]),)* }
            }

            /// The line of `kind` with these fields; `None` when there is no such kind, or it has another number of
            /// fields.
            #[must_use]
            pub fn from_words(kind: u32, words: &[u64]) -> Option<LogLine> {
                match kind {
                    $($number => {
                        let [$($field),*] = words.try_into().ok()?;
                        Some(LogLine::$kind($line { $($field: <$type as Word>::from_word($field)),* }))
                    })*
                    _ => None,
                }
            }
        }
    };
}

log_lines! {
    /// An optimizer step.
    1 Step(StepLine) {
        /// The step just finished, counted from 1.
        step: u64,
        /// Epochs finished after this step, as a fraction.
        epoch: f64,
        /// Sum of the scored tokens' losses over their number, nats.
        loss: f64,
        /// Norm of the gradient before clipping.
        grad_norm: f64,
        /// Learning rate used by this step.
        lr: f64,
        /// Scored tokens of this step.
        tokens: u64,
    }
    /// An evaluation.
    2 Eval(EvalLine) {
        /// The step after which it was made.
        step: u64,
        /// Epochs finished, as a fraction.
        epoch: f64,
        /// Token-weighted loss over the evaluation set, nats.
        eval_loss: f64,
    }
}
