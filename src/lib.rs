//! Fine-tunes Qwen models with LoRA on one device; an interrupted run continues as if it had never
//! stopped: same losses, same bytes.
//!
//! A program trains on rows of its own by handing them over in a [`train::Request`]; [`train::train`] tells what
//! happens to an observer, stops when its [`train::Control`] asks, and continues from the output folder:
//!
#![doc = concat!("```no_run\n", include_str!("../examples/embed.rs"), "```")]
//!
//! With [`config::Settings::train_files`] in place of rows it reads data files; the command line is no more than
//! that. Errors are [`error::Error`]: what is wrong, where, what to do, and the [`error::Kind`] of it.
//!
//! One stack; an arrow is the only permitted direction of `use` (a test checks it):
//!
//! ```text
//! cli ─▶ selftest, generate, bench ─▶ train ─▶ model ─▶ ops ─▶ device
//!  │                                  ├────▶ data ─────────▶ formats
//!  │                                  └────▶ checkpoint ───▶ formats
//!  └─ may use everything below; model may use formats;
//!     everything may use error, files, config and identity (plain values), philox, report's events and sys
//! ```

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod element;
pub mod encoding;
pub mod error;
pub mod failpoint;
pub mod files;
pub mod formats;
pub mod generate;
pub mod identity;
pub mod model;
pub mod ops;
pub mod philox;
pub mod report;
pub mod selftest;
pub mod sys;
pub mod train;
