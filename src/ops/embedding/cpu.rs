//! Token embedding on the CPU.

use crate::device::cpu::tasks;
use crate::device::{Cpu, Matrix, Region};

pub(super) fn forward(cpu: &mut Cpu, table: &Matrix, ids: &[u32], out: Region) {
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
