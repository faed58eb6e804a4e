//! Independent pieces of an operation on the threads.

use super::isa::Isa;
use rayon::prelude::*;

/// Elements of one task of an elementwise operation: enough to pay for handing it to a thread. The size never
/// reaches a result.
const ELEMENTS: usize = 16 * 1024;

/// Rows of `width` elements for one task.
#[must_use]
pub fn rows(width: usize) -> usize {
    (ELEMENTS / width.max(1)).max(1)
}

/// Does `work` for every task, compiled for `isa`: in the pool, or here when there is only one. Give an
/// `#[inline(always)]` closure. Tasks own what they write, so their order does not matter.
pub fn run<T: Send>(pool: &rayon::ThreadPool, isa: Isa, tasks: Vec<T>, work: impl Fn(T) + Sync) {
    let one = |task| {
        isa.run(
            #[inline(always)]
            || work(task),
        );
    };
    if tasks.len() < 2 {
        tasks.into_iter().for_each(one);
    } else {
        pool.install(|| tasks.into_par_iter().for_each(one));
    }
}
