//! Runs that come from Hugging Face's Trainer, and go back to it.

mod export;
mod foreign;
mod import;

pub use export::{Exported, Form, export};
pub use foreign::Foreign;
pub use import::Imported;
pub(super) use import::{import, settings};

use crate::config::{Layer, fields};

/// Sets a field of the table by its key.
fn set(layer: &mut Layer, key: &str, value: serde_json::Value) {
    if let Some(field) = fields::find(key) {
        layer.set(field, value);
    }
}
