//! Token embedding: a gather of frozen rows.

pub mod check;
mod cpu;

use crate::device::{Device, Indices, Matrix, Region};

/// `out[t] = table[ids[t]]` as activations; `table` [vocab, H], `out` [T, H]. Every id is below vocab.
pub fn forward(dev: &mut Device, table: &Matrix, ids: Indices<'_>, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, table, ids.values, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => super::rows::cuda::gather(cuda, table.copy(), ids, table.cols(), out),
    }
}
