//! Attention of one query a sequence over the keys and values kept of it: what a step of generation needs.
//!
//! A cache holds the rows of many sequences, one after the other; which rows a query reads is given. A query's
//! sums run over its own rows in their order, so a result depends on no other sequence and on no thread.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use super::attention::{Attention, Segment};
use crate::device::{Device, Indices, Region};

/// Keys (rotated) and values of one layer, each [rows, kv_heads·D].
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Keys.
    pub k: Region,
    /// Values.
    pub v: Region,
}

/// The rows of a cache that each query sees.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// A run of rows for each query.
    pub list: &'a [Segment],
    /// The same as integers, start and length of each.
    pub words: Indices<'a>,
}

/// Puts the keys of `qk` [T, (heads+kv_heads)·D] and the values of `qkv` [T, (heads+2·kv_heads)·D] into the
/// cache: token row t becomes row `to[t]`.
pub fn append(dev: &mut Device, p: &Attention, qk: Region, qkv: Region, to: Indices<'_>, cache: Cache) {
    match dev {
        Device::Cpu(cpu) => cpu::append(cpu, p, qk, qkv, to.values, cache),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::append(cuda, p, qk, qkv, to, cache),
    }
}

/// `out` [N, heads·D] from the queries of `qk` [N, (heads+kv_heads)·D]: query i sees run i of the cache, one row or more.
pub fn forward(dev: &mut Device, p: &Attention, qk: Region, seen: &Seen<'_>, cache: Cache, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, qk, seen.list, cache, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, p, qk, seen, cache, out),
    }
}

/// Multiplies the queries of `qk` [T, (heads+kv_heads)·D] at `positions` `[T]` by `table[position]`: Qwen v1's
/// log n attention.
pub fn scale_queries(dev: &mut Device, p: &Attention, table: Region, positions: Indices<'_>, qk: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::scale_queries(cpu, p, table, positions.values, qk),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::scale_queries(cuda, p, table, positions, qk),
    }
}
