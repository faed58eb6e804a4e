//! One test binary; each module says what it guards.
mod adapters;
mod bench;
mod calls;
#[cfg(feature = "text")]
mod chat;
mod checkpoint;
mod cli;
mod common;
mod completions;
mod config;
mod cpu;
mod data;
mod embed;
#[cfg(feature = "cuda")]
mod emulated;
mod encodings;
mod errors;
mod evaluate;
mod exchange;
mod exchange_faults;
mod extraction;
mod faults;
mod formats;
mod generate;
mod gguf;
mod golden;
mod house;
mod launch;
mod limits;
mod linear;
mod llama_factory;
mod loss;
mod matmul;
mod merge;
mod model;
mod model_files;
mod ops;
mod origin;
mod output;
mod publish;
mod report;
mod resume;
#[cfg(feature = "text")]
mod rows;
mod scratch;
#[cfg(feature = "text")]
mod templates;
mod tensorboard;
#[cfg(feature = "text")]
mod text;
mod torch_files;
mod variants;
mod walks;
mod workloads;
