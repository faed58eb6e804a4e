//! Places at which the tests let a process die: `QWENTUNE_CRASH_AT=n` kills it, as `kill -9` would, in place of the n-th
//! operation that changes the run folder (counted from 1: create, reserve, write, sync, rename, link, remove).
//! `QWENTUNE_CRASH_AT=n/2` lets half of it happen where it is a write. Only with the feature `internals`: the released
//! program does not look.

#[cfg(feature = "internals")]
pub use armed::{die_if_halfway, hit, hit_halfway};

/// Nothing.
#[cfg(not(feature = "internals"))]
#[inline(always)]
pub fn hit() {}

/// No.
#[cfg(not(feature = "internals"))]
#[inline(always)]
#[must_use]
pub fn hit_halfway() -> bool {
    false
}

/// Nothing.
#[cfg(not(feature = "internals"))]
#[inline(always)]
pub fn die_if_halfway() {}

#[cfg(feature = "internals")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static DONE: AtomicU64 = AtomicU64::new(0);
    static PLAN: OnceLock<Option<(u64, bool)>> = OnceLock::new();

    fn plan() -> Option<(u64, bool)> {
        *PLAN.get_or_init(|| {
            let text = std::env::var("QWENTUNE_CRASH_AT").ok()?;
            let (number, half) = match text.strip_suffix("/2") {
                Some(number) => (number, true),
                None => (text.as_str(), false),
            };
            Some((number.parse().ok()?, half))
        })
    }

    /// Counts an operation about to happen; does not return from the planned one.
    pub fn hit() {
        if count() {
            die();
        }
    }

    /// Counts a write about to happen. Answers true when half of it shall be done before [`die_if_halfway`].
    #[must_use]
    pub fn hit_halfway() -> bool {
        if !count() {
            return false;
        }
        if plan().is_none_or(|(_, half)| !half) {
            die();
        }
        true
    }

    /// Ends the process after half a write, if that was the plan.
    pub fn die_if_halfway() {
        if let Some((at, true)) = plan()
            && DONE.load(Ordering::Relaxed) == at
        {
            die();
        }
    }

    fn count() -> bool {
        plan().is_some_and(|(at, _)| DONE.fetch_add(1, Ordering::Relaxed) + 1 == at)
    }

    /// Ends the process at once, with nothing flushed or released in an orderly way.
    fn die() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort()
    }
}
