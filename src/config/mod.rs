//! What is asked for: plain, validated values.

pub mod check;
pub mod fields;
pub mod foreign;
pub mod identity;
pub mod init;
pub mod read;
pub mod run_file;
pub mod settings;
pub mod value;

pub use check::{check, check_inputs, check_values};
pub use identity::{changed, math_identity, may_change_on_resume};
pub use read::{Layer, resolve};
pub use run_file::{RunFile, run_json};
pub use settings::*;
