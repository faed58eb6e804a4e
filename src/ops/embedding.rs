//! Token embedding: a gather of frozen rows.

use crate::device::cpu::tasks;
use crate::device::{Cpu, Device, Indices, Matrix, Region};

/// `out[t] = table[ids[t]]` as activations; `table` [vocab, H], `out` [T, H]. Every id is below vocab.
pub fn forward(dev: &mut Device, table: &Matrix, ids: Indices<'_>, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu_forward(cpu, table, ids.values, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => super::rows::cuda::gather(cuda, table.copy(), ids, table.cols(), out),
    }
}

fn cpu_forward(cpu: &mut Cpu, table: &Matrix, ids: &[u32], out: Region) {
    let (isa, width) = (cpu.isa, table.cols());
    let (pool, [], [rows]) = cpu.split([], [out]);
    assert_eq!(rows.len(), ids.len() * width, "one row for each id");
    let n = tasks::rows(width);
    tasks::run(
        pool,
        isa,
        rows.chunks_mut(n * width).zip(ids.chunks(n)).collect(),
        #[inline(always)]
        |(rows, ids)| {
            for (row, id) in rows.chunks_exact_mut(width).zip(ids) {
                table.read_row(*id as usize, row);
            }
        },
    );
    cpu.round(out);
}
