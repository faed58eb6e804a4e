//! What is asked for: plain, validated values.

pub mod check;
pub mod fields;
pub mod foreign;
pub mod identity;
pub mod init;
pub mod llama_factory;
pub mod model_folder;
pub mod read;
pub mod settings;
pub mod value;
#[cfg(feature = "yaml")]
mod yaml;

pub use check::{check, check_inputs, check_values};
pub use identity::{changed, math_identity, text_of};
pub use read::{Layer, resolve};
pub use settings::*;
