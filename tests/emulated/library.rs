//! The kernels compiled for the emulated device: one shared library, built once and kept under the target folder by a
//! digest of its sources.

use qwentune::device::cuda::driver::Launch;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O3",
    "-fPIC",
    // A multiply and an add stay two roundings, as nvcc's --fmad=false has it.
    "-ffp-contract=off",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
];

type RegisterFunction = unsafe extern "C" fn(*const c_void, usize);
type UnregisterFunction = unsafe extern "C" fn(*const c_void);
type SymbolsFunction = unsafe extern "C" fn() -> *const c_char;
type SharedBytesFunction = unsafe extern "C" fn(*const c_char) -> usize;
type LaunchFunction = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    u32,
    u32,
    *const c_void,
    u32,
    u32,
    u32,
    u64,
    *mut c_char,
    usize,
) -> i32;

/// The loaded library's functions.
pub struct Library {
    launch: LaunchFunction,
    register: RegisterFunction,
    unregister: UnregisterFunction,
    symbols: SymbolsFunction,
    shared_bytes: SharedBytesFunction,
}

/// In which order lanes run, and when asynchronous copies take effect.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// 0 forward, 1 reverse, 2 shuffled.
    pub order: u32,
    /// Copies are done by the wait that must have seen them, not at once.
    pub lazy: bool,
    /// Of the shuffle.
    pub seed: u64,
}

/// Every kind of schedule; results must be the same under all.
pub const MODES: &[Mode] = &[
    Mode { order: 0, lazy: false, seed: 0 },
    Mode { order: 1, lazy: true, seed: 0 },
    Mode { order: 2, lazy: false, seed: 1 },
    Mode { order: 2, lazy: true, seed: 2 },
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    all.sort();
    all
}

/// Digest of everything that decides the library.
fn digest(compiler: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(compiler.as_bytes());
    hasher.update(FLAGS.join(" ").as_bytes());
    for folder in ["kernels/prim", "kernels/tile", "kernels/op", "kernels/host", "tests/emulated"] {
        for file in files(&root().join(folder)) {
            hasher.update(file.file_name().unwrap().as_encoded_bytes());
            hasher.update(&std::fs::read(&file).unwrap());
        }
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Compiles one source; the order of the objects does not matter.
fn compile(compiler: &str, source: &Path, object: &Path) {
    let output = Command::new(compiler)
        .args(FLAGS)
        .args(["-x", "c++", "-c", "-o"])
        .arg(object)
        .arg(source)
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e} (the tests need a C++ compiler; CXX names it)"));
    assert!(output.status.success(), "{}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
}

/// The library of this checkout's kernels, or the one that `EMULATED_LIBRARY` names: `scripts/mutate-kernels` and
/// `scripts/sanitize-kernels` build others.
fn build() -> PathBuf {
    if let Some(given) = std::env::var_os("EMULATED_LIBRARY") {
        return given.into();
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated");
    std::fs::create_dir_all(&folder).unwrap();
    let name = digest(&compiler);
    let library = folder.join(format!("{name}.so"));
    if library.exists() {
        return library;
    }
    let work = folder.join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&work).unwrap();
    let mut sources = files(&root().join("kernels/op"));
    sources.push(root().join("kernels/host/emulator.cpp"));
    sources.push(root().join("tests/emulated/instructions.cu"));
    let object = |source: &Path| work.join(source.file_name().unwrap()).with_extension("o");
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| compile(&compiler, source, &object(source)));
        }
    });
    let linked = work.join("linked.so");
    let output = Command::new(&compiler)
        .args(["-shared", "-o"])
        .arg(&linked)
        .args(sources.iter().map(|s| object(s)))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&linked, &library).unwrap();
    std::fs::remove_dir_all(&work).unwrap();
    library
}

fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the handle is that of the loaded library, the name ends with a zero.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    assert!(!address.is_null(), "the library has no {name:?}");
    address
}

impl Library {
    fn open(path: &Path) -> Self {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the library was made by `build` and only registers its kernels when it is loaded.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{} cannot be loaded", path.display());
        // SAFETY: kernels/host/emulator.cpp defines these functions with these types.
        unsafe {
            Library {
                launch: std::mem::transmute::<*mut c_void, LaunchFunction>(symbol(handle, c"qt_launch")),
                register: std::mem::transmute::<*mut c_void, RegisterFunction>(symbol(
                    handle,
                    c"qt_register",
                )),
                unregister: std::mem::transmute::<*mut c_void, UnregisterFunction>(symbol(
                    handle,
                    c"qt_unregister",
                )),
                symbols: std::mem::transmute::<*mut c_void, SymbolsFunction>(symbol(handle, c"qt_symbols")),
                shared_bytes: std::mem::transmute::<*mut c_void, SharedBytesFunction>(symbol(
                    handle,
                    c"qt_shared_bytes",
                )),
            }
        }
    }

    /// The library of this checkout's kernels.
    pub fn get() -> &'static Library {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        LIBRARY.get_or_init(|| Library::open(&build()))
    }

    /// The most shared memory that a block of the kernel used in any launch so far.
    pub fn shared_bytes(&self, kernel: &str) -> usize {
        let name = CString::new(kernel).unwrap();
        // SAFETY: a text that ends with a zero.
        unsafe { (self.shared_bytes)(name.as_ptr()) }
    }

    /// Kernels, parameter structs and constants, a line each.
    pub fn symbols(&self) -> &'static str {
        // SAFETY: a text that lives as long as the library, which is never unloaded.
        unsafe { CStr::from_ptr((self.symbols)()) }.to_str().unwrap()
    }

    /// Lets kernels touch `bytes` from `start` on.
    pub fn register(&self, start: u64, bytes: usize) {
        // SAFETY: the emulator only keeps the numbers.
        unsafe { (self.register)(start as *const c_void, bytes) };
    }

    /// Takes [`Library::register`] back.
    pub fn unregister(&self, start: u64) {
        // SAFETY: the emulator only forgets the numbers.
        unsafe { (self.unregister)(start as *const c_void) };
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, kernel: &str, shape: Launch, params: &[u8], mode: Mode) -> Result<(), String> {
        let name = CString::new(kernel).unwrap();
        let mut error = vec![0u8; 4096];
        // The struct begins on 16 bytes, as kernel parameters do.
        let mut aligned = vec![0u128; params.len().div_ceil(16)];
        // SAFETY: the destination has at least the source's length.
        unsafe {
            std::ptr::copy_nonoverlapping(params.as_ptr(), aligned.as_mut_ptr().cast(), params.len());
        }
        // SAFETY: all pointers are valid for the call; what the kernel itself touches is checked by the emulator.
        let code = unsafe {
            (self.launch)(
                name.as_ptr(),
                shape.grid.as_ptr(),
                shape.threads,
                shape.shared_bytes,
                aligned.as_ptr().cast(),
                params.len() as u32,
                mode.order,
                u32::from(mode.lazy),
                mode.seed,
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        let text = CStr::from_bytes_until_nul(&error).unwrap().to_string_lossy().into_owned();
        if code == 0 { Ok(()) } else { Err(text) }
    }
}

/// Memory of the emulated device: on a cache line, known to the emulator, with bytes behind it that must not change.
pub struct Memory {
    words: Vec<u128>,
    first: usize,
    bytes: usize,
}

const GUARD: u8 = 0xA5;

impl Memory {
    /// Memory that holds `content`.
    pub fn new(content: &[u8]) -> Self {
        let mut words = vec![0u128; content.len().div_ceil(16) + 32];
        let address = words.as_ptr().addr();
        let first = (256 - address % 256) % 256;
        // SAFETY: at most 240 bytes are skipped and 512 were added.
        let all: &mut [u8] =
            unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 16) };
        all[first..first + content.len()].copy_from_slice(content);
        all[first + content.len()..].fill(GUARD);
        let memory = Memory { words, first, bytes: content.len() };
        Library::get().register(memory.address(), memory.bytes);
        memory
    }

    /// `len` bytes of NaN in any format.
    pub fn poisoned(len: usize) -> Self {
        Self::new(&vec![0xFF; len])
    }

    /// The device address.
    pub fn address(&self) -> u64 {
        self.words.as_ptr().addr() as u64 + self.first as u64
    }

    /// The bytes, after a look at what stands behind them.
    pub fn read(&self) -> &[u8] {
        // SAFETY: the whole vector.
        let all: &[u8] =
            unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 16) };
        assert!(all[self.first + self.bytes..].iter().all(|b| *b == GUARD), "written beyond an allocation");
        &all[self.first..self.first + self.bytes]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        Library::get().unregister(self.address());
    }
}
