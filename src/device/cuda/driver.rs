//! What the CUDA device needs from a driver: one small interface, so that the launch code above it is the same on a GPU
//! ([`super::nvidia`]) and on the emulated device of the tests.
//!
//! Everything a driver hands out (memory, streams, events, functions, graphs) stays valid until the driver is dropped;
//! nothing is given back before, since a run allocates once. Work on one stream happens in the order it was asked for.

use crate::error::Result;

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// `bytes` further.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// Host memory that copies can use while the host goes on (page-locked on a GPU). Whoever holds it must know which
/// copies are under way; so touching its bytes is `unsafe`.
#[derive(Clone, Copy, Debug)]
pub struct HostBuffer {
    /// First byte; aligned to 256 bytes or more.
    pub start: *mut u8,
    /// Number of bytes.
    pub len: usize,
}

// SAFETY: a plain range of bytes; every access goes through the unsafe methods below or a driver.
unsafe impl Send for HostBuffer {}

impl HostBuffer {
    /// Its bytes.
    ///
    /// # Safety
    /// The driver that made it still lives, and no copy into it is under way.
    #[must_use]
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        // SAFETY: the range was allocated by a driver that lives, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// Its bytes, to be written.
    ///
    /// # Safety
    /// The driver that made it still lives, no copy from or into it is under way, and there is no other reference.
    #[must_use]
    pub unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        // SAFETY: the range was allocated by a driver that lives, and nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// A queue of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub usize);

/// A point in a stream's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub usize);

/// A loaded kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module(pub usize);

/// A kernel of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub usize);

/// Captured work that can be launched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub usize);

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name its maker gave it.
    pub name: String,
    /// Compute capability, as (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
    /// Device memory in all, in bytes.
    pub memory: u64,
    /// The newest CUDA version that the driver supports, as (13, 0).
    pub cuda: (u32, u32),
    /// The driver's own version, as "580.65.06"; empty when the system does not tell.
    pub driver: String,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// A driver of one device. Errors are of the kind `Device`; on a GPU an error of a launched kernel may be reported by any
/// later call.
///
/// # Safety
/// What the device above builds on: memory that was handed out is there, as large as asked for and nobody else's, until the
/// driver is dropped; host buffers are initialised; no call touches memory but what its documentation says; copies and
/// fills outside an allocation panic; a copy that was started touches its host buffer no longer once an event recorded
/// after it is reached.
pub unsafe trait Driver: Send {
    /// What is known of the device.
    fn facts(&self) -> &Facts;

    /// What decides the bits that this device's kernels compute, as it stands in checkpoints.
    ///
    /// # Errors
    /// When the device cannot run the kernels.
    fn identity(&self) -> Result<String>;

    /// Device memory that is free now, in bytes.
    fn memory_free(&self) -> Result<u64>;

    /// Allocates device memory, aligned to 256 bytes or more. Its content is arbitrary.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Allocates host memory for asynchronous copies. Its content is arbitrary, but initialised.
    fn host_buffer(&self, bytes: usize) -> Result<HostBuffer>;

    /// A new stream, independent of all others.
    fn stream(&self) -> Result<Stream>;

    /// A new event.
    fn event(&self) -> Result<Event>;

    /// Loads the image of the kernel family `name`.
    fn load(&self, name: &str, image: &[u8]) -> Result<Module>;

    /// The kernel called `name` of `module`, free to use all shared memory a block may have.
    fn function(&self, module: Module, name: &str) -> Result<Function>;

    /// Launches a kernel whose one parameter is a structure with the bytes of `params`.
    ///
    /// # Safety
    /// `params` is of the kernel's parameter type, every address in it belongs to memory of this driver that is large
    /// enough for what the kernel does with it, and the kernel's shared memory structure fits in `shared_bytes`.
    unsafe fn launch(&self, stream: Stream, function: Function, launch: Launch, params: &[u8]) -> Result<()>;

    /// Copies `from` to the device, after all work of the stream, and waits for it.
    ///
    /// # Panics
    /// As all copies and fills: when the device range is not inside one allocation of this driver.
    fn write(&self, stream: Stream, to: Address, from: &[u8]) -> Result<()>;

    /// Copies from the device to `to`, after all work of the stream, and waits for it.
    fn read(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<()>;

    /// Starts copying `bytes` of `from`, beginning at `offset`, to the device.
    ///
    /// # Safety
    /// Nobody writes to that part of `from` until the copy is done.
    unsafe fn start_write(
        &self,
        stream: Stream,
        to: Address,
        from: HostBuffer,
        offset: usize,
        bytes: usize,
    ) -> Result<()>;

    /// Starts copying `bytes` from the device to `to`, beginning at `offset`.
    ///
    /// # Safety
    /// Nobody touches that part of `to` until the copy is done.
    unsafe fn start_read(
        &self,
        stream: Stream,
        to: HostBuffer,
        offset: usize,
        from: Address,
        bytes: usize,
    ) -> Result<()>;

    /// Starts copying within the device; the ranges do not overlap.
    fn copy(&self, stream: Stream, to: Address, from: Address, bytes: usize) -> Result<()>;

    /// Starts setting `bytes` bytes to `value`.
    fn fill(&self, stream: Stream, to: Address, bytes: usize, value: u8) -> Result<()>;

    /// Puts `event` at the end of the stream's work.
    fn record(&self, event: Event, stream: Stream) -> Result<()>;

    /// Lets the stream's further work wait for `event` as last recorded.
    fn wait(&self, stream: Stream, event: Event) -> Result<()>;

    /// Whether the event, as last recorded, has been reached.
    fn reached(&self, event: Event) -> Result<bool>;

    /// Waits until the event, as last recorded, is reached.
    fn wait_for(&self, event: Event) -> Result<()>;

    /// Milliseconds between two events that have been reached.
    fn elapsed_ms(&self, start: Event, end: Event) -> Result<f32>;

    /// Waits until the stream's work is done.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// From here to [`Driver::end_capture`] launches, copies and fills on the stream are recorded, not done. Copies that
    /// wait (`write`, `read`) are errors then.
    fn begin_capture(&self, stream: Stream) -> Result<()>;

    /// The work recorded since [`Driver::begin_capture`], ready to be launched.
    fn end_capture(&self, stream: Stream) -> Result<Graph>;

    /// Launches recorded work.
    ///
    /// # Safety
    /// What the recorded calls asked for holds again.
    unsafe fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()>;
}
