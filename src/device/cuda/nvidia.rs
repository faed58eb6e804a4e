//! NVIDIA's driver, found at run time: the same program starts on machines without one.

use super::driver::{Address, Driver, Event, Facts, Function, Graph, HostBuffer, Launch, Module, Stream};
use super::images;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::cell::RefCell;
use std::ffi::CString;

/// The oldest driver interface that this program calls: its functions were looked up by their CUDA 12.0 names.
const OLDEST: (u32, u32) = (12, 0);

/// One GPU and everything that was allocated on it.
pub struct Nvidia {
    facts: Facts,
    device: sys::CUdevice,
    context: sys::CUcontext,
    owned: RefCell<Owned>,
}

#[derive(Default)]
struct Owned {
    /// Address and size.
    memory: Vec<(u64, usize)>,
    host: Vec<HostBuffer>,
    streams: Vec<sys::CUstream>,
    events: Vec<sys::CUevent>,
    modules: Vec<sys::CUmodule>,
    graphs: Vec<sys::CUgraphExec>,
}

// SAFETY: a context and what belongs to it may be used by any thread that makes the context current, and every call does;
// `RefCell` keeps two threads from sharing it.
unsafe impl Send for Nvidia {}

/// The driver's answer as a result of ours; `doing` says what was asked for.
fn said<T>(answer: std::result::Result<T, result::DriverError>, doing: &dyn Fn() -> String) -> Result<T> {
    use sys::CUresult as Code;
    answer.map_err(|error| {
        let words = error.error_string().map(|text| text.to_string_lossy().into_owned());
        let what = format!("{}: {:?} ({})", doing(), error.0, words.unwrap_or_else(|_| "unknown".into()));
        let wrong = Error::device(what);
        match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => wrong.hint(
                "free the GPU's memory, or train with less: --recompute full, a smaller micro-batch or row length",
            ),
            Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_LAUNCH_FAILED => wrong.hint(
                "a kernel failed; `qwentune selftest --device cuda` finds which, the last checkpoint is good",
            ),
            Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | Code::CUDA_ERROR_UNKNOWN => {
                wrong.hint("the driver's library and its kernel module differ: reboot, or reinstall the driver")
            }
            _ => wrong,
        }
    })
}

/// The driver's own version, where the system tells it.
fn driver_version() -> String {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let number = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    text.split_whitespace().find(number).unwrap_or_default().to_owned()
}

/// Loads and starts the driver; the newest CUDA version it supports.
fn start() -> Result<(u32, u32)> {
    // SAFETY: opens the library and closes it again; NVIDIA's has no unsound initialiser.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device("no NVIDIA driver: libcuda.so.1 is not on this machine")
            .hint("install NVIDIA's driver, or train with --device cpu"));
    }
    let mut version = 0;
    // SAFETY: the library is there, `version` is an integer, and this call may come before cuInit.
    said(unsafe { sys::cuDriverGetVersion(&raw mut version) }.result(), &|| {
        "asking for the driver's version".into()
    })?;
    let version = u32::try_from(version).unwrap_or(0);
    let cuda = (version / 1000, version % 1000 / 10);
    if cuda < OLDEST {
        return Err(Error::device(format!(
            "the NVIDIA driver {} supports CUDA {}.{} only; {}.{} is needed",
            driver_version(),
            cuda.0,
            cuda.1,
            OLDEST.0,
            OLDEST.1
        ))
        .hint(format!("update the driver: {}", images::needed_driver(images::TOOLKIT.unwrap_or(OLDEST)))));
    }
    said(result::init(), &|| format!("starting the NVIDIA driver {}", driver_version())).map_err(|e| {
        if e.remedy.is_empty() {
            e.hint("`nvidia-smi` shows the GPUs; --device cpu trains without one")
        } else {
            e
        }
    })?;
    Ok(cuda)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32> {
    // SAFETY: `device` came from the driver.
    let value = said(unsafe { result::device::get_attribute(device, which) }, &|| {
        "asking what the GPU can do".into()
    })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

fn facts_of(index: u32, cuda: (u32, u32)) -> Result<(sys::CUdevice, Facts)> {
    use sys::CUdevice_attribute as A;
    let ask = || format!("asking for GPU {index}");
    let device = said(result::device::get(i32::try_from(index).unwrap_or(i32::MAX)), &ask)?;
    let facts = Facts {
        name: said(result::device::get_name(device), &ask)?,
        capability: (
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(device, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(device, A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: `device` came from the driver.
        memory: said(unsafe { result::device::total_mem(device) }, &ask)? as u64,
        cuda,
        driver: driver_version(),
    };
    Ok((device, facts))
}

fn count() -> Result<u32> {
    let found = said(result::device::get_count(), &|| "counting the GPUs".into())?;
    Ok(u32::try_from(found).unwrap_or(0))
}

/// All GPUs of this machine; uses no memory on them.
///
/// # Errors
/// Without a driver, or with one that is too old or does not start.
pub fn list() -> Result<Vec<Facts>> {
    let cuda = start()?;
    (0..count()?).map(|index| Ok(facts_of(index, cuda)?.1)).collect()
}

/// Whether there is a GPU number `index` that runs the kernels of this program; uses no memory on it.
///
/// # Errors
/// As [`open`].
pub fn probe(index: u32) -> Result<()> {
    images::present()?;
    let found = list()?;
    let facts = found.get(index as usize).ok_or_else(|| no_such(index, found.len()))?;
    images::target_on(facts).map(|_| ())
}

fn no_such(index: u32, found: usize) -> Error {
    Error::device(format!("there is no GPU {index}: the driver shows {found}"))
        .hint("`qwentune doctor` lists them; CUDA_VISIBLE_DEVICES hides some")
}

/// The GPU number `index`, sure to run the kernels of this program.
///
/// # Errors
/// What is missing, and how to get it: kernels, driver, GPU, a driver that is new enough.
pub fn open(index: u32) -> Result<Nvidia> {
    images::present()?;
    let gpu = Nvidia::open(index)?;
    images::target_on(&gpu.facts)?;
    Ok(gpu)
}

impl Nvidia {
    /// The GPU number `index` as the driver counts (`CUDA_VISIBLE_DEVICES` applies).
    ///
    /// # Errors
    /// Without a driver or that GPU, with one line on what is missing and one on the remedy.
    pub fn open(index: u32) -> Result<Nvidia> {
        let cuda = start()?;
        let found = count()?;
        if index >= found {
            return Err(no_such(index, found as usize));
        }
        let (device, facts) = facts_of(index, cuda)?;
        // Waits sleep: a step is longer than it takes to wake up, and the core is wanted for the data. An answer other than
        // success says that somebody in this process uses the context already, as it is.
        // SAFETY: `device` came from the driver.
        let _ = unsafe {
            sys::cuDevicePrimaryCtxSetFlags_v2(device, sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32)
        };
        // SAFETY: `device` came from the driver; the context is given back once, when `Nvidia` is dropped.
        let context = said(unsafe { result::primary_ctx::retain(device) }, &|| {
            format!("opening GPU {index} ({})", facts.name)
        })?;
        Ok(Nvidia { facts, device, context, owned: RefCell::default() })
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        said(unsafe { result::ctx::set_current(self.context) }, &|| "entering the GPU's context".into())
    }

    /// # Panics
    /// When the range is not inside one allocation.
    fn check(&self, start: Address, bytes: usize) {
        let inside = |&(first, len): &(u64, usize)| {
            start.0 >= first
                && usize::try_from(start.0 - first).is_ok_and(|at| at <= len && bytes <= len - at)
        };
        assert!(
            self.owned.borrow().memory.iter().any(inside),
            "{bytes} bytes at {start:?} are not device memory of ours"
        );
    }
}

fn host_range(buffer: HostBuffer, offset: usize, bytes: usize) -> *mut u8 {
    assert!(offset.checked_add(bytes).is_some_and(|end| end <= buffer.len), "a copy outside its host buffer");
    // SAFETY: `offset` is within the buffer.
    unsafe { buffer.start.add(offset) }
}

fn raw(stream: Stream) -> sys::CUstream {
    stream.0 as sys::CUstream
}

fn raw_event(event: Event) -> sys::CUevent {
    event.0 as sys::CUevent
}

// SAFETY: every range is checked against what was allocated here and is given back by `drop` alone; host buffers are zeroed;
// copies follow their stream's order, which events stand in.
unsafe impl Driver for Nvidia {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn identity(&self) -> Result<String> {
        images::identity_on(&self.facts)
    }

    fn memory_free(&self) -> Result<u64> {
        self.enter()?;
        Ok(said(result::mem_get_info(), &|| "asking for free GPU memory".into())?.0 as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.enter()?;
        // SAFETY: freed once, when `self` is dropped. At least one byte, since none is an error.
        let start = said(unsafe { result::malloc_sync(bytes.max(1)) }, &|| {
            format!("allocating {:.2} GB on {}", bytes as f64 / 1e9, self.facts.name)
        })?;
        self.owned.borrow_mut().memory.push((start, bytes));
        Ok(Address(start))
    }

    fn host_buffer(&self, bytes: usize) -> Result<HostBuffer> {
        self.enter()?;
        // SAFETY: freed once, when `self` is dropped.
        let start = said(unsafe { result::malloc_host(bytes.max(1), 0) }, &|| {
            format!("allocating {:.2} GB of page-locked host memory", bytes as f64 / 1e9)
        })?
        .cast::<u8>();
        // SAFETY: `bytes` were just allocated there.
        unsafe { start.write_bytes(0, bytes) };
        let buffer = HostBuffer { start, len: bytes };
        self.owned.borrow_mut().host.push(buffer);
        Ok(buffer)
    }

    fn stream(&self) -> Result<Stream> {
        self.enter()?;
        let stream = said(result::stream::create(result::stream::StreamKind::NonBlocking), &|| {
            "making a stream".into()
        })?;
        self.owned.borrow_mut().streams.push(stream);
        Ok(Stream(stream as usize))
    }

    fn event(&self) -> Result<Event> {
        self.enter()?;
        let event =
            said(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT), &|| "making an event".into())?;
        self.owned.borrow_mut().events.push(event);
        Ok(Event(event as usize))
    }

    fn load(&self, name: &str, image: &[u8]) -> Result<Module> {
        self.enter()?;
        // An image starts with 64-bit fields, bytes inside this program may start anywhere.
        let mut aligned = vec![0u128; image.len().div_ceil(16)];
        for (word, bytes) in aligned.iter_mut().zip(image.chunks(16)) {
            let mut padded = [0; 16];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u128::from_le_bytes(padded);
        }
        // SAFETY: the bytes are one of nvcc's images, whole; the driver copies what it needs.
        let module = said(unsafe { result::module::load_data(aligned.as_ptr().cast()) }, &|| {
            format!("loading the kernels of {name} on {}", self.facts.name)
        })?;
        self.owned.borrow_mut().modules.push(module);
        Ok(Module(module as usize))
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
        self.enter()?;
        let terminated =
            CString::new(name).map_err(|_| Error::check(format!("{name:?} is no kernel's name")))?;
        // SAFETY: the module was loaded by this driver and lives as long as it.
        let function =
            said(unsafe { result::module::get_function(module.0 as sys::CUmodule, terminated) }, &|| {
                format!("looking for the kernel {name}")
            })?;
        // Blocks have 48 KiB unless they ask for more; the size itself is given at the launch.
        let most = i32::try_from(self.facts.shared_bytes).unwrap_or(i32::MAX);
        // SAFETY: the function is valid.
        said(unsafe { result::function::set_function_attribute(function, SHARED, most) }, &|| {
            format!("giving shared memory to {name}")
        })?;
        Ok(Function(function as usize))
    }

    unsafe fn launch(&self, stream: Stream, function: Function, launch: Launch, params: &[u8]) -> Result<()> {
        self.enter()?;
        // One pointer for the kernel's one parameter: the form that stream capture takes too.
        let mut parameters = [params.as_ptr().cast_mut().cast::<std::ffi::c_void>()];
        let [x, y, z] = launch.grid;
        // SAFETY: handles are valid; the driver copies the parameters before it returns; the caller vouches for them.
        let answer = unsafe {
            sys::cuLaunchKernel(
                function.0 as sys::CUfunction,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared_bytes,
                raw(stream),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        said(answer.result(), &|| {
            format!("launching a kernel ({launch:?}, {} bytes of parameters)", params.len())
        })
    }

    fn write(&self, stream: Stream, to: Address, from: &[u8]) -> Result<()> {
        self.check(to, from.len());
        self.enter()?;
        // SAFETY: both ranges are valid; the copy is over before this returns.
        said(unsafe { result::memcpy_htod_async(to.0, from, raw(stream)) }, &|| "copying to the GPU".into())?;
        self.synchronize(stream)
    }

    fn read(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<()> {
        self.check(from, to.len());
        self.enter()?;
        // SAFETY: both ranges are valid; the copy is over before this returns.
        said(unsafe { result::memcpy_dtoh_async(to, from.0, raw(stream)) }, &|| {
            "copying from the GPU".into()
        })?;
        self.synchronize(stream)
    }

    unsafe fn start_write(
        &self,
        stream: Stream,
        to: Address,
        from: HostBuffer,
        offset: usize,
        bytes: usize,
    ) -> Result<()> {
        self.check(to, bytes);
        let start = host_range(from, offset, bytes);
        self.enter()?;
        // SAFETY: both ranges are valid as long as `self`; the caller leaves the host's alone until the copy is done.
        let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, start.cast(), bytes, raw(stream)) };
        said(answer.result(), &|| "copying to the GPU".into())
    }

    unsafe fn start_read(
        &self,
        stream: Stream,
        to: HostBuffer,
        offset: usize,
        from: Address,
        bytes: usize,
    ) -> Result<()> {
        self.check(from, bytes);
        let start = host_range(to, offset, bytes);
        self.enter()?;
        // SAFETY: both ranges are valid as long as `self`; the caller leaves the host's alone until the copy is done.
        let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(start.cast(), from.0, bytes, raw(stream)) };
        said(answer.result(), &|| "copying from the GPU".into())
    }

    fn copy(&self, stream: Stream, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.check(to, bytes);
        self.check(from, bytes);
        self.enter()?;
        // SAFETY: both ranges are memory of this device.
        said(unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, raw(stream)) }, &|| {
            "copying on the GPU".into()
        })
    }

    fn fill(&self, stream: Stream, to: Address, bytes: usize, value: u8) -> Result<()> {
        self.check(to, bytes);
        self.enter()?;
        // SAFETY: the range is memory of this device.
        said(unsafe { result::memset_d8_async(to.0, value, bytes, raw(stream)) }, &|| {
            "filling GPU memory".into()
        })
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: both were made by this driver and live as long as it.
        said(unsafe { result::event::record(raw_event(event), raw(stream)) }, &|| "recording an event".into())
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both were made by this driver and live as long as it.
        said(unsafe { result::stream::wait_event(raw(stream), raw_event(event), flags) }, &|| {
            "waiting for an event".into()
        })
    }

    fn reached(&self, event: Event) -> Result<bool> {
        self.enter()?;
        // SAFETY: the event was made by this driver and lives as long as it.
        match unsafe { result::event::query(raw_event(event)) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => said(answer, &|| "asking for an event".into()).map(|()| true),
        }
    }

    fn wait_for(&self, event: Event) -> Result<()> {
        self.enter()?;
        // SAFETY: the event was made by this driver and lives as long as it.
        said(unsafe { result::event::synchronize(raw_event(event)) }, &|| "waiting for the GPU".into())
    }

    fn elapsed_ms(&self, start: Event, end: Event) -> Result<f32> {
        self.enter()?;
        // SAFETY: both were made by this driver and live as long as it.
        said(unsafe { result::event::elapsed(raw_event(start), raw_event(end)) }, &|| "timing the GPU".into())
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream was made by this driver and lives as long as it.
        said(unsafe { result::stream::synchronize(raw(stream)) }, &|| "waiting for the GPU".into())
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream was made by this driver and lives as long as it.
        said(unsafe { result::stream::begin_capture(raw(stream), mode) }, &|| "beginning a CUDA graph".into())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.enter()?;
        let doing = || "making a CUDA graph".into();
        // SAFETY: the stream was made by this driver and lives as long as it.
        let recorded = said(unsafe { result::stream::end_capture(raw(stream)) }, &doing)?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph is valid.
        let ready = said(unsafe { result::graph::instantiate(recorded, flags) }, &doing);
        // SAFETY: the instance holds its own copy, and nobody else has this one.
        said(unsafe { result::graph::destroy(recorded) }, &doing)?;
        let ready = ready?;
        self.owned.borrow_mut().graphs.push(ready);
        Ok(Graph(ready as usize))
    }

    unsafe fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: both were made by this driver and live as long as it; the caller vouches for the recorded work.
        let answer = unsafe { result::graph::launch(graph.0 as sys::CUgraphExec, raw(stream)) };
        said(answer, &|| "launching a CUDA graph".into())
    }
}

impl Drop for Nvidia {
    /// Waits for all work and gives everything back. What fails here has failed before, in a call that said so.
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let owned = std::mem::take(self.owned.get_mut());
        // SAFETY: everything was made by this driver, and is given back exactly once, after the work that uses it.
        unsafe {
            let _ = result::ctx::synchronize();
            for graph in owned.graphs {
                let _ = result::graph::exec_destroy(graph);
            }
            for event in owned.events {
                let _ = result::event::destroy(event);
            }
            for stream in owned.streams {
                let _ = result::stream::destroy(stream);
            }
            for module in owned.modules {
                let _ = result::module::unload(module);
            }
            for (start, _) in owned.memory {
                let _ = result::free_sync(start);
            }
            for buffer in owned.host {
                let _ = result::free_host(buffer.start.cast());
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
