//! Fine-tunes Qwen models with LoRA on one device, a GPU or the CPU; an interrupted run continues as if it had never stopped:
//! same losses, same bytes.
//!
//! # Training
//!
//! [`train()`] takes a [`Request`]: [`Settings`], and rows in memory where there are no files. It tells an [`Observer`] what
//! happens, as typed [`Event`]s, and stops when another thread asks its [`Control`] to; the state is saved then, and the same
//! request goes on with it:
//!
#![doc = concat!("```no_run\n", include_str!("../examples/embed.rs"), "```")]
//!
//! Rows of a program's own, conversations or prompts or texts, become tokens by [`tokenise`]. [`plan()`] says what a run would
//! need and do, without starting it.
//!
//! # Afterwards
//!
//! [`resume()`] goes on with a run folder, [`merge`] makes a model of its own from base and adapter, [`export`] writes what PEFT
//! or Hugging Face's Trainer reads, [`evaluate`] measures a file, [`Generator`] answers prompts, [`checkpoints`] lists what was
//! saved and [`read_adapter`] gives an adapter's matrices:
//!
#![doc = concat!("```no_run\n", include_str!("../examples/resume_and_merge.rs"), "```")]
//!
//! # Errors
//!
//! An [`Error`] says what is wrong, where, and what to do; its [`Kind`] is what a program would act on.

// What a feature leaves out leaves things unused.
#![cfg_attr(not(all(feature = "cuda", feature = "text")), allow(dead_code, unused_imports))]
// One stack; an arrow is the only permitted direction of `use` (a test checks it):
//!
//! ```text
//! cli ─▶ selftest, generate, bench ─▶ train ─▶ model ─▶ ops ─▶ device
//!  │                                  ├────▶ data ─────────▶ formats
//!  │                                  └────▶ checkpoint ───▶ formats
//!  └─ may use everything below; model may use formats;
//!     everything may use error, files, config and identity (plain values), philox, report's events and sys
//! ```

// Modules are public for this crate's own tests alone (the feature `internals`): everybody else has the names below.
#[cfg(not(feature = "internals"))]
mod bench;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod bench;
#[cfg(not(feature = "internals"))]
mod checkpoint;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod checkpoint;
#[cfg(not(feature = "internals"))]
mod cli;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod cli;
#[cfg(not(feature = "internals"))]
mod config;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod config;
#[cfg(not(feature = "internals"))]
mod data;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod data;
#[cfg(not(feature = "internals"))]
mod device;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod device;
#[cfg(not(feature = "internals"))]
mod element;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod element;
#[cfg(not(feature = "internals"))]
mod encoding;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod encoding;
#[cfg(not(feature = "internals"))]
mod error;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod error;
#[cfg(not(feature = "internals"))]
mod failpoint;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod failpoint;
#[cfg(not(feature = "internals"))]
mod files;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod files;
#[cfg(not(feature = "internals"))]
mod formats;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod formats;
#[cfg(not(feature = "internals"))]
mod generate;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod generate;
#[cfg(not(feature = "internals"))]
mod identity;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod identity;
#[cfg(not(feature = "internals"))]
mod model;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod model;
#[cfg(not(feature = "internals"))]
mod ops;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod ops;
#[cfg(not(feature = "internals"))]
mod philox;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod philox;
#[cfg(not(feature = "internals"))]
mod report;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod report;
#[cfg(not(feature = "internals"))]
mod selftest;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod selftest;
#[cfg(not(feature = "internals"))]
mod sys;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod sys;
#[cfg(not(feature = "internals"))]
mod train;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod train;

pub use checkpoint::format::Header as CheckpointHeader;
pub use checkpoint::inspect::{Listed as Checkpoint, list as checkpoints, verify as verify_checkpoint};
#[doc(hidden)]
pub use cli::main as command_line;
pub use config::settings::{
    CpuIsa, DeviceChoice, Dtype, Recompute, ReportTo, ResumeFrom, RowFormat, Scheduler, Settings, Strategy,
    Targets, Template, TooLong, TrainOn,
};
pub use data::dataset::{IGNORED, Row, Rows};
pub use error::{Error, Kind, Result};
pub use formats::peft::{Adapter, AdapterConfig, AdapterTensor, read as read_adapter};
pub use generate::{Event as AnswerEvent, Generator, Model, Options as GeneratorOptions, Sampling};
pub use model::merge::Merged;
pub use report::event::{EvalLine, Event, Observer, StepLine};
pub use train::evaluate::{Fit, Report as Evaluation, evaluate};
pub use train::exchange::{Exported, Form as ExportForm, Imported, export};
pub use train::merge::merge;
pub use train::{Control, PlanReport, Request, Summary, import, measure, plan, resume, tokenise, train};
