//! What is asked for: plain, validated values.

pub mod settings;
pub use settings::*;
