//! The counter-based generator under the operations' own path; see [`crate::philox`].

pub use crate::philox::philox4x32;
