//! What only the operating system can do for us, where no safe wrapper exists: signals of faulty memory maps
//! and of file-size limits; and what it knows: memory that can be had.

use crate::error::{Error, Kind, Result, printable};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// How many files can be watched at a time; the largest released Qwen has 37 shards.
const SLOTS: usize = 512;

/// The exit status of a process that lost a mapped file: [`Kind::Io`].
const LOST_FILE: i32 = Kind::Io as i32;

/// One watched mapping. `len` is 0 while the slot is free or being filled.
struct Slot {
    claimed: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
    message: AtomicPtr<u8>,
    message_len: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        claimed: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        message: AtomicPtr::new(std::ptr::null_mut()),
        message_len: AtomicUsize::new(0),
    }
}; SLOTS];

static INSTALL: Once = Once::new();

/// Keeps a mapping watched; dropping it frees the slot. Must be dropped before the mapping is.
#[derive(Debug)]
pub struct Watch {
    slot: usize,
    // The handler reads it through the slot's pointer for as long as `len` is not 0.
    _message: Box<[u8]>,
}

/// Watches the mapped bytes of `file`: when the file shrinks underneath, reading them raises SIGBUS, and the
/// process then ends with one line that names `file` and status 74 instead of dying from the signal.
///
/// # Errors
/// [`Kind::Input`] when more files are mapped than the table holds.
pub fn watch_mapping(bytes: &[u8], file: &Path) -> Result<Watch> {
    INSTALL.call_once(install_bus_handler);
    let message = format!(
        "error: {} was truncated or became unreadable while it was mapped\n  \
         put the original file back, then continue with `qwentune resume RUN`\n",
        printable(&file.display().to_string())
    )
    .into_bytes()
    .into_boxed_slice();
    for (index, slot) in TABLE.iter().enumerate() {
        if slot.claimed.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        slot.start.store(bytes.as_ptr() as usize, Ordering::Relaxed);
        slot.message.store(message.as_ptr().cast_mut(), Ordering::Relaxed);
        slot.message_len.store(message.len(), Ordering::Relaxed);
        slot.len.store(bytes.len(), Ordering::Release);
        return Ok(Watch { slot: index, _message: message });
    }
    Err(Error::input(format!("{}: more than {SLOTS} model files are mapped at once", file.display())))
}

impl Drop for Watch {
    fn drop(&mut self) {
        let slot = &TABLE[self.slot];
        slot.len.store(0, Ordering::Release);
        slot.claimed.store(0, Ordering::Release);
    }
}

fn install_bus_handler() {
    // SAFETY: the structure is plain data for which all zeros is a valid value, the handler has the signature
    // SA_SIGINFO asks for and only does what POSIX allows in one, and both pointers are valid for the call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as extern "C" fn(_, _, _) as usize;
        // On the alternate stack where the thread has one, so that the handler needs no room on a full stack.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    // Positive codes are faults of memory; others were sent by a process and carry no address.
    if code > 0 {
        for slot in &TABLE {
            let len = slot.len.load(Ordering::Acquire);
            if address.wrapping_sub(slot.start.load(Ordering::Relaxed)) < len {
                let message = slot.message.load(Ordering::Relaxed);
                let message_len = slot.message_len.load(Ordering::Relaxed);
                // SAFETY: the message lives as long as its slot is in use, and this thread was reading the
                // mapping, so the `Watch` that owns both is alive; write and _exit are async-signal-safe.
                unsafe {
                    libc::write(libc::STDERR_FILENO, message.cast(), message_len);
                    libc::_exit(LOST_FILE);
                }
            }
        }
    }
    // SAFETY: signal and raise are async-signal-safe; with the default action back in place the pending signal
    // ends the process as if this handler did not exist.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Lets a write beyond the file-size limit (`ulimit -f`) fail with an error that can be reported, instead of
/// ending the process.
pub fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Whether the process was started with `signal` ignored, as `nohup` starts it.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action only the present one is written, into memory of its type.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it was written when the call succeeded.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Most threads of a pool on a machine with fewer cores: a mistyped number must not ask for a hundred thousand.
pub const MOST_THREADS: usize = 64;

/// Threads of a pool: those `asked` for, else those of `RAYON_NUM_THREADS`, else one for each core; not more than the
/// cores or [`MOST_THREADS`], whichever is more. Results do not depend on it.
#[must_use]
pub fn threads(asked: Option<usize>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let environment = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let wanted = asked.or_else(environment).filter(|n| *n > 0).unwrap_or(cores);
    wanted.min(cores.max(MOST_THREADS))
}

/// A pool of [`threads`].
///
/// # Errors
/// [`Kind::Device`] when the system gives none.
pub fn pool(asked: Option<usize>) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(threads(asked)).build().map_err(no_threads)
}

/// Starts the threads that everything without a pool of its own shares; that they run already is as good.
///
/// # Errors
/// [`Kind::Device`] when the system gives none.
pub fn start_threads() -> Result<()> {
    match rayon::ThreadPoolBuilder::new().num_threads(threads(None)).build_global() {
        // Only where a thread could not be started there is something behind the error.
        Err(e) if std::error::Error::source(&e).is_some() => Err(no_threads(e)),
        _ => Ok(()),
    }
}

fn no_threads(e: rayon::ThreadPoolBuildError) -> Error {
    Error::device(format!("the system gives no further thread: {e}"))
        .hint("raise the limit (ulimit -u, the container's pids), or ask for fewer: --threads 1, RAYON_NUM_THREADS=1")
        .caused_by(e)
}

/// Bytes of memory that can be had without swapping; unlimited where the system does not say.
#[must_use]
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(u64::MAX, |k| k * 1024)
}

/// Bytes of memory this process holds now, mapped files included; 0 where the system does not say.
#[must_use]
pub fn resident_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
