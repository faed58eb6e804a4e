//! Fine-tunes Qwen models with LoRA on one device; an interrupted run continues as if it had never
//! stopped: same losses, same bytes.
//!
//! One stack; an arrow is the only permitted direction of `use` (a test checks it):
//!
//! ```text
//! cli ─▶ selftest ─▶ train ─▶ model ─▶ ops ─▶ device
//!  │       ├────▶ data ─────────▶ formats
//!  │       └────▶ checkpoint ───▶ formats
//!  ├───▶ generate ─▶ model, data, formats
//!  └─ may use everything below; model may use formats;
//!     everything may use error, config (plain values), philox, report's events and sys
//! ```

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod element;
pub mod error;
pub mod failpoint;
pub mod formats;
pub mod generate;
pub mod model;
pub mod ops;
pub mod philox;
pub mod report;
pub mod selftest;
pub mod sys;
pub mod train;
