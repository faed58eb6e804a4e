//! The CUDA device: its planned memory, its queue of work, and the copies to and from the host.
//!
//! Kernels run on one stream, in order. Launches do not wait and cannot fail where they are asked for: the first failure
//! is kept, later work is left out, and the next call that returns a result tells it.

use super::driver::{Address, Driver, Event, Function, Graph, HostBuffer, Launch, Stream};
use super::{AnyKernel, Kernel, Parameters, images};
use crate::device::{Capabilities, Matrix, Planner, Recording, Region, Storage};
use crate::element::Element;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// What became of work that comes again.
pub enum Recorded {
    /// Not recorded: do it.
    Direct,
    /// Do it, and end the recording.
    Begun(Recording),
    /// It was done before and has been launched again.
    Replayed,
}

/// What is known of work that came before.
enum Known {
    Once,
    Graph(Graph),
    /// A graph of it could not be made.
    Never,
}

/// Device memory that stays free of recordings: the driver keeps them beside the planned memory, and says when there is
/// none left only to those who then need it.
const FREE_MEMORY: u64 = 128 << 20;

/// Recordings kept. Shapes are few, as micro-batches are padded; more are run launch by launch.
const MOST_RECORDINGS: usize = 128;

/// Two page-locked buffers: while one is copied, the other is filled.
struct Staging {
    buffers: [HostBuffer; 2],
    copied: [Event; 2],
    next: usize,
}

const STAGING_BYTES: usize = 16 << 20;

/// What copies to the host beside other work need; kept from one copy to the next.
struct Copier {
    stream: Stream,
    /// What is copied is complete.
    ready: Event,
    /// The copy is complete: what was copied may change.
    copied: Event,
    buffer: CopyBuffer,
    under_way: Option<Copying>,
}

/// A copy under way.
struct Copying {
    regions: [Region; 3],
    into: [Vec<f32>; 3],
    /// Work that is queued from now on runs after it.
    waited_for: bool,
}

/// Where a copy goes.
enum CopyBuffer {
    /// Page-locked: it is copied while other work goes on.
    Locked(HostBuffer),
    /// What there is when no memory can be locked: it is copied at once, and the host waits.
    Pageable(Vec<u8>),
}

impl CopyBuffer {
    fn len(&self) -> usize {
        match self {
            CopyBuffer::Locked(buffer) => buffer.len,
            CopyBuffer::Pageable(bytes) => bytes.len(),
        }
    }
}

/// A GPU with the planned memory of a run.
pub struct Cuda {
    driver: Box<dyn Driver>,
    arena: Address,
    bytes: usize,
    stream: Stream,
    staging: Staging,
    copier: Option<Box<Copier>>,
    /// Around what is measured.
    timing: Option<[Event; 2]>,
    functions: BTreeMap<&'static str, Function>,
    known: BTreeMap<Recording, Known>,
    /// Whether work that comes again is recorded; the bits are the same.
    pub graphs: bool,
    failure: Option<Error>,
}

impl Cuda {
    /// Version of the arithmetic around the kernels, which have a fingerprint of their own.
    pub const VERSION: &'static str = "cuda-1";

    /// bf16 in a memory of its own; the kernels' head sizes, and rows in 16-byte pieces.
    pub const CAPABILITIES: &'static Capabilities = &Capabilities {
        kind: "cuda",
        activation: Element::Bf16,
        kept: Element::Bf16,
        own_memory: true,
        queued: true,
        sums_in_parts: true,
        head_sizes: Some(&[64, 128]),
        row_multiple: 8,
        logits: 1 << 28,
    };

    /// Allocates the planned memory, zeroed, and loads the kernels.
    ///
    /// # Errors
    /// What the driver says: too little memory, an image it cannot run.
    pub fn new(driver: Box<dyn Driver>, plan: &Planner, kernels: &[&dyn AnyKernel]) -> Result<Self> {
        assert_eq!(plan.capabilities(), Self::CAPABILITIES, "a plan for another device");
        let arena = driver.allocate(plan.bytes())?;
        let stream = driver.stream()?;
        driver.fill(stream, arena, plan.bytes(), 0)?;
        let mut functions = BTreeMap::new();
        let mut modules = BTreeMap::new();
        for kernel in kernels {
            let module = match modules.get(kernel.image()) {
                Some(module) => *module,
                None => driver.load(kernel.image(), images::find(kernel.image()))?,
            };
            modules.insert(kernel.image(), module);
            functions.insert(kernel.name(), driver.function(module, kernel.name())?);
        }
        let staging = Staging {
            buffers: [driver.host_buffer(STAGING_BYTES)?, driver.host_buffer(STAGING_BYTES)?],
            copied: [driver.event()?, driver.event()?],
            next: 0,
        };
        driver.synchronize(stream)?;
        Ok(Cuda {
            driver,
            arena,
            bytes: plan.bytes(),
            stream,
            staging,
            copier: None,
            timing: None,
            functions,
            known: BTreeMap::new(),
            graphs: true,
            failure: None,
        })
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    fn place(&self, region: Region) -> (Address, usize) {
        let size = match region.storage {
            Storage::F32 | Storage::Integer => 4,
            Storage::Activation | Storage::Kept | Storage::Copy => 2,
        };
        let (first, bytes) = (region.start * size, region.len * size);
        assert!(first + bytes <= self.bytes, "region outside the arena");
        (self.arena.offset(first), bytes)
    }

    /// The address of `region`, for a kernel's parameters.
    ///
    /// # Panics
    /// When it lies outside the arena.
    #[must_use]
    pub fn address(&self, region: Region) -> u64 {
        self.place(region).0.0
    }

    /// The address of a region that the next launch writes. While it is being copied to the host, work that is queued from
    /// now on waits for the copy.
    ///
    /// # Panics
    /// As [`Cuda::address`].
    pub fn address_to_write(&mut self, region: Region) -> u64 {
        self.wait_for_copy_of(region);
        self.address(region)
    }

    /// The address of an optional region; 0 for none.
    #[must_use]
    pub fn address_or_null(&self, region: Option<Region>) -> u64 {
        region.map_or(0, |r| self.address(r))
    }

    /// Queues a kernel. A grid without blocks is nothing to do.
    ///
    /// # Panics
    /// When the device was made without the kernel.
    pub(crate) fn launch<P: Parameters>(&mut self, kernel: &Kernel<P>, grid: [u32; 3], params: &P) {
        if self.failure.is_some() || grid.contains(&0) {
            return;
        }
        let name = kernel.name();
        let function = *self.functions.get(name).unwrap_or_else(|| panic!("{name} was not loaded"));
        let launch = Launch { grid, threads: kernel.threads(), shared_bytes: kernel.shared_bytes() };
        // SAFETY: only the operations can launch kernels. They take addresses from `address`, which are inside the arena,
        // with regions as large as their kernels' documentation says; the handle has the struct and shared memory.
        let done = unsafe { self.driver.launch(self.stream, function, launch, params.bytes()) };
        self.keep(done.map_err(|e| e.at(name)));
    }

    /// Queues setting a region to zero.
    pub fn zero(&mut self, region: Region) {
        self.wait_for_copy_of(region);
        let (start, bytes) = self.place(region);
        if self.failure.is_none() && bytes > 0 {
            let done = self.driver.fill(self.stream, start, bytes, 0);
            self.keep(done);
        }
    }

    /// Queues a copy between regions of the same type and length.
    pub fn copy(&mut self, from: Region, to: Region) {
        self.wait_for_copy_of(to);
        let ((from, bytes), (to, same)) = (self.place(from), self.place(to));
        assert_eq!(bytes, same, "copy between different lengths");
        if self.failure.is_none() && bytes > 0 {
            let done = self.driver.copy(self.stream, to, from, bytes);
            self.keep(done);
        }
    }

    fn keep(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.failure.get_or_insert(error);
        }
    }

    /// The first failure, if there was one.
    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    // ---- copies ----------------------------------------------------------------------------------------------------

    /// Queues copying what `fill` puts into buffers, `bytes` in all; it is called with the first byte of each piece and
    /// the buffer for it.
    fn stage(&mut self, to: Address, bytes: usize, mut fill: impl FnMut(usize, &mut [u8])) -> Result<()> {
        self.check()?;
        let staging = &mut self.staging;
        for first in (0..bytes).step_by(STAGING_BYTES) {
            let len = STAGING_BYTES.min(bytes - first);
            let (buffer, copied) = (staging.buffers[staging.next], staging.copied[staging.next]);
            staging.next = 1 - staging.next;
            self.driver.wait_for(copied)?;
            // SAFETY: the buffer's last copy is over, and nobody else has it.
            fill(first, &mut unsafe { buffer.bytes_mut() }[..len]);
            // SAFETY: the buffer is left alone until `copied`, which the next user waits for.
            unsafe { self.driver.start_write(self.stream, to.offset(first), buffer, 0, len)? };
            self.driver.record(copied, self.stream)?;
        }
        Ok(())
    }

    /// Queues copying `values` to `region`, rounded where it holds bf16.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write(&mut self, region: Region, values: &[f32]) -> Result<()> {
        assert_eq!(region.len, values.len(), "values for a region of another length");
        self.wait_for_copy_of(region);
        let (to, bytes) = self.place(region);
        if bytes == 2 * values.len() {
            return self.stage(to, bytes, |first, buffer| {
                for (out, v) in buffer.chunks_exact_mut(2).zip(&values[first / 2..]) {
                    out.copy_from_slice(&half::bf16::from_f32(*v).to_le_bytes());
                }
            });
        }
        self.stage(to, bytes, |first, buffer| {
            for (out, v) in buffer.chunks_exact_mut(4).zip(&values[first / 4..]) {
                out.copy_from_slice(&v.to_le_bytes());
            }
        })
    }

    /// Queues copying integers to `region`.
    ///
    /// # Errors
    /// When the device failed.
    pub fn write_integers(&mut self, region: Region, values: &[u32]) -> Result<()> {
        assert_eq!(region.len, values.len(), "integers for a region of another length");
        let (to, bytes) = self.place(region);
        self.stage(to, bytes, |first, buffer| {
            for (out, v) in buffer.chunks_exact_mut(4).zip(&values[first / 4..]) {
                out.copy_from_slice(&v.to_le_bytes());
            }
        })
    }

    /// Queues copying a frozen matrix to its place, rounded to bf16 where it is stored otherwise.
    ///
    /// # Errors
    /// When the device failed.
    pub fn upload(&mut self, matrix: &Matrix) -> Result<()> {
        let (to, bytes) = self.place(matrix.copy());
        if matrix.encoding().plain() == Some(Element::Bf16) {
            let source = matrix.bytes();
            return self.stage(to, bytes, |first, buffer| {
                buffer.copy_from_slice(&source[first..first + buffer.len()]);
            });
        }
        let mut values = Vec::new();
        self.stage(to, bytes, |first, buffer| {
            values.resize(buffer.len() / 2, 0.0);
            matrix.read_span(first / 2, &mut values);
            for (out, value) in buffer.chunks_exact_mut(2).zip(&values) {
                out.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes());
            }
        })
    }

    /// The bytes of `region`, after all queued work.
    ///
    /// # Errors
    /// When the device failed, also in work that was queued before.
    pub fn read_bytes(&mut self, region: Region) -> Result<Vec<u8>> {
        self.check()?;
        let (from, bytes) = self.place(region);
        let mut raw = vec![0; bytes];
        let read = self.driver.read(self.stream, &mut raw, from);
        self.keep(read);
        self.check()?;
        Ok(raw)
    }

    /// Appends the elements of `region` to `out`, after all queued work.
    ///
    /// # Errors
    /// As [`Cuda::read_bytes`].
    pub fn read_into(&mut self, region: Region, out: &mut Vec<f32>) -> Result<()> {
        let raw = self.read_bytes(region)?;
        if raw.len() == 2 * region.len {
            out.extend(raw.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        } else {
            out.extend(raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Ok(())
    }

    // ---- copies beside other work ----------------------------------------------------------------------------------

    /// Starts copying `regions` (f32) to the host, beside all work that is queued from now on; where no memory can be
    /// page-locked, it is done when this returns.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When a copy is under way.
    pub fn begin_copy(&mut self, regions: [Region; 3], into: [Vec<f32>; 3]) -> Result<()> {
        self.check()?;
        let bytes = regions.iter().map(|r| self.place(*r).1).sum();
        let mut copier = match self.copier.take() {
            Some(copier) if copier.buffer.len() >= bytes => copier,
            _ => Box::new(Copier {
                stream: self.driver.stream()?,
                ready: self.driver.event()?,
                copied: self.driver.event()?,
                buffer: match self.driver.host_buffer(bytes) {
                    Ok(buffer) => CopyBuffer::Locked(buffer),
                    Err(_) => CopyBuffer::Pageable(vec![0; bytes]),
                },
                under_way: None,
            }),
        };
        assert!(copier.under_way.is_none(), "one copy at a time");
        self.driver.record(copier.ready, self.stream)?;
        self.driver.wait(copier.stream, copier.ready)?;
        let mut first = 0;
        for region in regions {
            let (from, bytes) = self.place(region);
            match &mut copier.buffer {
                // SAFETY: the buffer is read by `end_copy` only, after `copied`.
                CopyBuffer::Locked(buffer) => unsafe {
                    self.driver.start_read(copier.stream, *buffer, first, from, bytes)?;
                },
                CopyBuffer::Pageable(all) => {
                    self.driver.read(copier.stream, &mut all[first..first + bytes], from)?;
                }
            }
            first += bytes;
        }
        self.driver.record(copier.copied, copier.stream)?;
        copier.under_way = Some(Copying { regions, into, waited_for: false });
        self.copier = Some(copier);
        Ok(())
    }

    /// Lets work that is queued from now on wait for the copy under way, if `region` is part of it.
    fn wait_for_copy_of(&mut self, region: Region) {
        let Some(copier) = &self.copier else { return };
        let Some(copying) = copier.under_way.as_ref().filter(|copying| !copying.waited_for) else { return };
        let ends = |region: Region| {
            let (first, bytes) = self.place(region);
            (first.0, first.0 + bytes as u64)
        };
        let (first, end) = ends(region);
        let overlaps = |copied: &Region| {
            let (copied_first, copied_end) = ends(*copied);
            copied_first < end && first < copied_end
        };
        if !copying.regions.iter().any(overlaps) {
            return;
        }
        let done = self.driver.wait(self.stream, copier.copied);
        self.keep(done);
        if let Some(copying) = self.copier.as_mut().and_then(|copier| copier.under_way.as_mut()) {
            copying.waited_for = true;
        }
    }

    /// Waits for the copy under way and gives its regions, in the order they were given.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When none is under way.
    pub fn end_copy(&mut self) -> Result<[Vec<f32>; 3]> {
        let mut copier = self.copier.take().expect("a copy that was begun");
        let Copying { regions, mut into, .. } = copier.under_way.take().expect("a copy that was begun");
        let waited = self.driver.wait_for(copier.copied);
        self.keep(waited);
        self.check()?;
        let copier = self.copier.insert(copier);
        let mut values = match &copier.buffer {
            // SAFETY: the copies into it are over, and the driver lives.
            CopyBuffer::Locked(buffer) => unsafe { buffer.bytes() },
            CopyBuffer::Pageable(bytes) => bytes,
        };
        for (region, out) in regions.iter().zip(&mut into) {
            let (bytes, rest) = values.split_at(4 * region.len);
            out.clear();
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            values = rest;
        }
        Ok(into)
    }

    // ---- time ------------------------------------------------------------------------------------------------------

    /// Puts an event behind the work queued so far.
    ///
    /// # Errors
    /// When the device failed.
    pub fn begin_timing(&mut self) -> Result<()> {
        self.check()?;
        let events = match self.timing {
            Some(events) => events,
            None => [self.driver.event()?, self.driver.event()?],
        };
        self.timing = Some(events);
        self.driver.record(events[0], self.stream)
    }

    /// Waits for the work queued since [`Cuda::begin_timing`]; its seconds.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When nothing was begun.
    pub fn end_timing(&mut self) -> Result<f64> {
        let [begin, end] = self.timing.expect("a time that was begun");
        self.driver.record(end, self.stream)?;
        self.driver.wait_for(end)?;
        self.check()?;
        Ok(f64::from(self.driver.elapsed_ms(begin, end)?) / 1e3)
    }

    // ---- recordings ------------------------------------------------------------------------------------------------

    /// Launches the work if it is known, or says what to do; see `Device::repeat`.
    pub fn begin_recording(&mut self, recording: Recording) -> Recorded {
        if !self.graphs || self.failure.is_some() {
            return Recorded::Direct;
        }
        match self.known.get(&recording) {
            Some(Known::Graph(graph)) => {
                // SAFETY: the arena and its regions are those of the recording; what its kernels read of integers is
                // laid out alike, which is what the recording's shape says.
                let done = unsafe { self.driver.launch_graph(self.stream, *graph) };
                self.keep(done);
                Recorded::Replayed
            }
            None => {
                if self.known.len() < MOST_RECORDINGS {
                    self.known.insert(recording, Known::Once);
                }
                Recorded::Direct
            }
            Some(Known::Never) => Recorded::Direct,
            Some(Known::Once) => {
                let room = self.driver.memory_free().is_ok_and(|free| free >= FREE_MEMORY);
                if room && self.driver.begin_capture(self.stream).is_ok() {
                    return Recorded::Begun(recording);
                }
                self.known.insert(recording, Known::Never);
                Recorded::Direct
            }
        }
    }

    /// Ends a recording and launches it; false where no graph can be made of it: nothing has been done then.
    pub fn end_recording(&mut self, recording: Recording) -> bool {
        let graph = self.driver.end_capture(self.stream);
        // What failed while it was recorded comes from the work, and from nothing else: told when it is done directly.
        self.failure = None;
        let Ok(graph) = graph else {
            self.known.insert(recording, Known::Never);
            return false;
        };
        self.known.insert(recording, Known::Graph(graph));
        // SAFETY: nothing has changed since the calls were recorded.
        let launched = unsafe { self.driver.launch_graph(self.stream, graph) };
        self.keep(launched);
        true
    }
}
