//! Independent pieces of an operation on the threads.

use super::isa::Isa;
use crate::error::Result;
use crate::sys;
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The device's threads. Pieces own what they write, so who does them and when never reaches a result.
pub struct Threads {
    pool: rayon::ThreadPool,
    forks: AtomicU64,
}

impl Threads {
    /// So many, or one for each core.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn new(asked: Option<usize>) -> Result<Self> {
        Ok(Threads { pool: sys::pool(asked)?, forks: AtomicU64::new(0) })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// How often work was handed out since the beginning: waking the threads and waiting for the last of them is what small
    /// operations cost on many cores.
    #[must_use]
    pub fn forks(&self) -> u64 {
        self.forks.load(Ordering::Relaxed)
    }

    /// Calls `f` once on every thread.
    pub fn on_all(&self, f: impl Fn() + Sync) {
        self.forks.fetch_add(1, Ordering::Relaxed);
        self.pool.broadcast(|_| f());
    }

    /// Calls `f` for every index below `count`; here alone where there is nothing to share.
    pub(super) fn each(&self, count: usize, f: impl Fn(usize) + Sync) {
        if count < 2 || self.count() == 1 {
            return (0..count).for_each(f);
        }
        let next = AtomicUsize::new(0);
        self.on_all(|| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                f(index);
            }
        });
    }

    /// Calls `f` for every task; here alone where there is nothing to share.
    fn all<T: Send>(&self, tasks: Vec<T>, f: impl Fn(T) + Sync) {
        if tasks.len() < 2 || self.count() == 1 {
            return tasks.into_iter().for_each(f);
        }
        self.forks.fetch_add(1, Ordering::Relaxed);
        self.pool.install(|| tasks.into_par_iter().for_each(&f));
    }
}

/// Elements of one task of an elementwise operation: enough to pay for handing it to a thread. A multiple of 64; the size
/// never reaches a result.
pub const ELEMENTS: usize = 16 * 1024;

/// Rows of `width` elements for one task.
#[must_use]
pub fn rows(width: usize) -> usize {
    (ELEMENTS / width.max(1)).max(1)
}

/// Does `work` for every task, compiled for `isa`. Give an `#[inline(always)]` closure.
pub fn run<T: Send>(threads: &Threads, isa: Isa, tasks: Vec<T>, work: impl Fn(T) + Sync) {
    threads.all(tasks, |task| {
        isa.run(
            #[inline(always)]
            || work(task),
        );
    });
}
