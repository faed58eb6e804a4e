//! The emulated device as a driver: what the product's launch code runs on when there is no GPU. Launches are done when
//! they are asked for, copies between host and device at the latest moment: when their stream has other work, or somebody
//! waits for an event behind them. So a wait that is missing shows as other results. Recorded work is done when its graph
//! is launched.

use super::library::{Library, MODES, Mode};
use qwentune::device::cuda::driver::{
    Address, Driver, Event, Facts, Function, Graph, HostBuffer, Launch, Module, Stream,
};
use qwentune::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};

/// A stream that is being captured, by its work; and by what was asked for that no capture takes, which spoils it.
struct Capture {
    stream: Stream,
    work: Vec<Work>,
    events: Vec<Event>,
    spoiled: Option<String>,
}

/// What a device may have too little of.
#[derive(Clone, Copy)]
pub struct Supply {
    /// Host buffers that can be page-locked.
    pub locked: usize,
    /// Graphs that can be made.
    pub graphs: usize,
    /// Bytes of memory that are left once something was allocated.
    pub left: u64,
}

impl Supply {
    /// Enough of everything.
    pub const ENOUGH: Supply = Supply { locked: usize::MAX, graphs: usize::MAX, left: u64::MAX };
}

/// Something that was recorded.
enum Work {
    Launch(String, Launch, Vec<u8>),
    Copy(Address, Address, usize),
    Fill(Address, usize, u8),
}

#[derive(Default)]
struct State {
    allocations: Vec<(u64, usize)>,
    functions: Vec<String>,
    handles: usize,
    locked: usize,
    /// Copies that nobody has had to see yet, in order.
    waiting: Vec<(Stream, Work)>,
    /// Where each event was recorded last.
    recorded: Vec<(Event, Stream)>,
    capture: Option<Capture>,
    graphs: Vec<Vec<Work>>,
}

thread_local! {
    static LAUNCHED: RefCell<BTreeSet<String>> = RefCell::default();
    static CAPTURES: Cell<usize> = const { Cell::new(0) };
    static LISTED: RefCell<Vec<Listed>> = RefCell::default();
}

/// The captures that this thread's devices have begun since this was last asked for.
pub fn captures() -> usize {
    CAPTURES.take()
}

/// A launch as a device that counts was asked for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The kernel.
    pub kernel: String,
    /// Blocks, threads of one and its shared memory.
    pub shape: ([u32; 3], u32, u32),
}

/// The launches of this thread's counting devices since this was last asked for, in order.
pub fn listed() -> Vec<Listed> {
    LISTED.take()
}

/// The kernels that this thread's devices have launched since this was last asked for.
pub fn launched() -> BTreeSet<String> {
    LAUNCHED.take()
}

/// The emulated device.
pub struct Emulated {
    facts: Facts,
    mode: Mode,
    supply: Supply,
    /// Kernels that are counted, not computed: memory is there when it is touched, and large copies are not made.
    counting: Option<Counting>,
    state: Mutex<State>,
}

/// What becomes of the launches of a device that counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// They are listed.
    Listed,
    /// They are run too: by a library that counts, as far as it is asked to.
    Run,
}

/// Copies and fills of more bytes are weights and activations, which no count depends on.
const COUNTED_COPY: usize = 1 << 20;

impl Emulated {
    /// A device whose lanes run in one of [`MODES`].
    pub fn new(mode: usize) -> Self {
        Self::with_memory(mode, 1 << 32)
    }

    /// The same with so many bytes of memory.
    pub fn with_memory(mode: usize, memory: u64) -> Self {
        let facts = Facts {
            name: "emulated".into(),
            capability: (8, 0),
            multiprocessors: 1,
            shared_bytes: 99 * 1024,
            memory,
            cuda: (13, 0),
            driver: String::new(),
        };
        let supply = Supply::ENOUGH;
        Emulated { facts, mode: MODES[mode], supply, counting: None, state: Mutex::default() }
    }

    /// A device that counts, of any size.
    pub fn that_counts(counting: Counting) -> Self {
        let mut device = Self::with_memory(0, 1 << 40);
        device.counting = Some(counting);
        device
    }

    /// The same with so little.
    pub fn with_supply(mode: usize, supply: Supply) -> Self {
        let mut device = Self::new(mode);
        device.supply = supply;
        device
    }

    /// What a GPU would refuse, though there is nothing wrong with the kernel; CUDA C++ Programming Guide, "Compute
    /// Capabilities", table of technical specifications.
    fn refusal(&self, name: &str, launch: Launch, params: &[u8]) -> Option<String> {
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return Some(format!("a grid of {x} by {y} by {z} blocks"));
        }
        if launch.threads == 0 || launch.threads > 1024 {
            return Some(format!("blocks of {} threads", launch.threads));
        }
        if launch.shared_bytes > self.facts.shared_bytes {
            return Some(format!("{} bytes of shared memory", launch.shared_bytes));
        }
        if params.len() > 4096 {
            return Some(format!("{} bytes of parameters", params.len()));
        }
        // A warp's registers are given out 256 at a time, of the 65536 that a block may have.
        let registers = registers(name).next_multiple_of(8) * launch.threads.div_ceil(32) * 32;
        (registers > 65_536).then(|| format!("{registers} registers for a block"))
    }

    /// Spoils a capture by something that none takes, of `stream` or, where it is `None`, of this thread.
    fn not_in_capture(&self, stream: Option<Stream>, what: &str) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        match &mut state.capture {
            Some(capture) if stream.is_none_or(|s| s == capture.stream) => {
                capture.spoiled.get_or_insert_with(|| what.to_owned());
                Err(Error::device(format!("{what} while a stream is captured")))
            }
            _ => Ok(()),
        }
    }

    /// The same by asking for an event that stands in captured work.
    fn not_captured(&self, event: Event, what: &str) -> Result<()> {
        let stream = {
            let state = self.state.lock().unwrap();
            state.capture.as_ref().filter(|c| c.events.contains(&event)).map(|c| c.stream)
        };
        stream.map_or(Ok(()), |stream| self.not_in_capture(Some(stream), what))
    }

    fn check(&self, at: Address, bytes: usize) {
        let state = self.state.lock().unwrap();
        let inside =
            |&(first, len): &(u64, usize)| at.0 >= first && at.0 + bytes as u64 <= first + len as u64;
        assert!(bytes == 0 || state.allocations.iter().any(inside), "a copy outside every allocation");
    }

    fn handle(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.handles += 1;
        state.handles
    }

    /// Does the work after what waits before it, or records it when its stream is captured.
    fn submit(&self, stream: Stream, work: Work) -> Result<()> {
        if let Some(capture) = &mut self.state.lock().unwrap().capture
            && capture.stream == stream
        {
            capture.work.push(work);
            return Ok(());
        }
        self.finish(stream)?;
        self.run(&work)
    }

    /// Does the stream's copies that wait.
    fn finish(&self, stream: Stream) -> Result<()> {
        let all = std::mem::take(&mut self.state.lock().unwrap().waiting);
        let (now, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|(s, _)| *s == stream);
        self.state.lock().unwrap().waiting = later;
        now.iter().try_for_each(|(_, work)| self.run(work))
    }

    /// Does everything before the event.
    fn finish_event(&self, event: Event) -> Result<()> {
        let stream = self.state.lock().unwrap().recorded.iter().find(|(e, _)| *e == event).map(|(_, s)| *s);
        stream.map_or(Ok(()), |stream| self.finish(stream))
    }

    /// Puts a copy off.
    fn put_off(&self, stream: Stream, work: Work) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let captured = state.capture.as_ref().is_some_and(|c| c.stream == stream);
        assert!(!captured, "a host copy in recorded work, whose bytes would be those of the recording");
        state.waiting.push((stream, work));
        Ok(())
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Launch(name, launch, params) => {
                LAUNCHED.with_borrow_mut(|all| all.insert(name.clone()));
                if let Some(counting) = self.counting {
                    let shape = (launch.grid, launch.threads, launch.shared_bytes);
                    LISTED.with_borrow_mut(|all| all.push(Listed { kernel: name.clone(), shape }));
                    if counting == Counting::Listed {
                        return Ok(());
                    }
                }
                Library::get().launch(name, *launch, params, self.mode).map_err(Error::device)
            }
            Work::Copy(_, _, bytes) | Work::Fill(_, bytes, _)
                if self.counting.is_some() && *bytes > COUNTED_COPY =>
            {
                Ok(())
            }
            Work::Copy(to, from, bytes) => {
                // SAFETY: both ranges are inside live allocations (`check`) and do not overlap (the trait's contract).
                unsafe {
                    std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, *bytes);
                }
                Ok(())
            }
            Work::Fill(to, bytes, value) => {
                // SAFETY: the range is inside a live allocation (`check`).
                unsafe { std::ptr::write_bytes(to.0 as *mut u8, *value, *bytes) };
                Ok(())
            }
        }
    }

    fn host(&self, bytes: usize) -> *mut u8 {
        if self.counting.is_some() {
            let start = lazy_memory(bytes);
            self.state.lock().unwrap().allocations.push((start as u64, bytes));
            return start;
        }
        let layout = std::alloc::Layout::from_size_align(bytes.max(1), 256).unwrap();
        // SAFETY: the size is not zero. Freed by `drop`, which walks through the allocations.
        let start = unsafe { std::alloc::alloc(layout) };
        assert!(!start.is_null(), "out of memory");
        // SAFETY: just allocated. NaN in every format: what nobody wrote shows.
        unsafe { std::ptr::write_bytes(start, 0xFF, bytes) };
        self.state.lock().unwrap().allocations.push((start as u64, bytes));
        start
    }
}

/// Zeros that take memory only where they are touched.
fn lazy_memory(bytes: usize) -> *mut u8 {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping of no file, wherever there is room.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes.max(1), access, kind, -1, 0) };
    assert!(start != libc::MAP_FAILED, "no room for {bytes} bytes");
    start.cast()
}

/// The most registers of a thread that any target's compiler gave the kernel; few for the tests' own kernels.
fn registers(kernel: &str) -> u32 {
    static TABLE: OnceLock<BTreeMap<String, u32>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/registers.tsv");
        let mut most = BTreeMap::new();
        for line in std::fs::read_to_string(path).expect(path).lines().skip(1) {
            let cells: Vec<&str> = line.split('\t').collect();
            let count: u32 = cells[2].parse().expect("a number of registers");
            let entry = most.entry(cells[0].to_owned()).or_insert(0);
            *entry = count.max(*entry);
        }
        most
    });
    match table.get(kernel) {
        Some(count) => *count,
        None => {
            assert!(kernel.starts_with("probe_"), "{kernel} is not in kernels/registers.tsv");
            32
        }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        for (start, bytes) in std::mem::take(&mut self.state.lock().unwrap().allocations) {
            Library::get().unregister(start);
            if self.counting.is_some() {
                // SAFETY: mapped by `lazy_memory` with this length.
                unsafe { libc::munmap(start as *mut libc::c_void, bytes.max(1)) };
                continue;
            }
            let layout = std::alloc::Layout::from_size_align(bytes.max(1), 256).unwrap();
            // SAFETY: allocated by `host` with this layout.
            unsafe { std::alloc::dealloc(start as *mut u8, layout) };
        }
    }
}

// SAFETY: allocations are freed by `drop` alone, ranges are checked against them, host buffers are filled, and copies are
// done at once or when an event behind them is waited for.
unsafe impl Driver for Emulated {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn identity(&self) -> Result<String> {
        Ok("emulated".into())
    }

    fn memory_free(&self) -> Result<u64> {
        let allocated = !self.state.lock().unwrap().allocations.is_empty();
        Ok(if allocated { self.facts.memory.min(self.supply.left) } else { self.facts.memory })
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.not_in_capture(None, "an allocation")?;
        let start = self.host(bytes) as u64;
        Library::get().register(start, bytes);
        Ok(Address(start))
    }

    fn host_buffer(&self, bytes: usize) -> Result<HostBuffer> {
        self.not_in_capture(None, "an allocation")?;
        let mut state = self.state.lock().unwrap();
        if state.locked == self.supply.locked {
            return Err(Error::device("no more memory can be page-locked"));
        }
        state.locked += 1;
        drop(state);
        Ok(HostBuffer { start: self.host(bytes), len: bytes })
    }

    fn stream(&self) -> Result<Stream> {
        Ok(Stream(self.handle()))
    }

    fn event(&self) -> Result<Event> {
        Ok(Event(self.handle()))
    }

    /// All kernels are in one library, whatever the image.
    fn load(&self, _name: &str, _image: &[u8]) -> Result<Module> {
        Ok(Module(0))
    }

    fn function(&self, _module: Module, name: &str) -> Result<Function> {
        let known = Library::get().symbols().lines().any(|l| l.split(' ').nth(1) == Some(name));
        if !known {
            return Err(Error::device(format!("no kernel {name}")));
        }
        let mut state = self.state.lock().unwrap();
        state.functions.push(name.to_owned());
        Ok(Function(state.functions.len() - 1))
    }

    unsafe fn launch(&self, stream: Stream, function: Function, launch: Launch, params: &[u8]) -> Result<()> {
        let name = self.state.lock().unwrap().functions[function.0].clone();
        if let Some(what) = self.refusal(&name, launch, params) {
            return Err(Error::device(format!("a GPU has no room for {what}")));
        }
        self.submit(stream, Work::Launch(name, launch, params.to_vec()))
    }

    fn write(&self, stream: Stream, to: Address, from: &[u8]) -> Result<()> {
        self.check(to, from.len());
        self.not_in_capture(Some(stream), "a copy that waits")?;
        self.finish(stream)?;
        self.run(&Work::Copy(to, Address(from.as_ptr() as u64), from.len()))
    }

    fn read(&self, stream: Stream, to: &mut [u8], from: Address) -> Result<()> {
        self.check(from, to.len());
        self.not_in_capture(Some(stream), "a copy that waits")?;
        self.finish(stream)?;
        self.run(&Work::Copy(Address(to.as_mut_ptr() as u64), from, to.len()))
    }

    unsafe fn start_write(
        &self,
        stream: Stream,
        to: Address,
        from: HostBuffer,
        offset: usize,
        bytes: usize,
    ) -> Result<()> {
        assert!(offset + bytes <= from.len, "a copy beyond its host buffer");
        self.check(to, bytes);
        self.put_off(stream, Work::Copy(to, Address(from.start as u64 + offset as u64), bytes))
    }

    unsafe fn start_read(
        &self,
        stream: Stream,
        to: HostBuffer,
        offset: usize,
        from: Address,
        bytes: usize,
    ) -> Result<()> {
        assert!(offset + bytes <= to.len, "a copy beyond its host buffer");
        self.check(from, bytes);
        self.put_off(stream, Work::Copy(Address(to.start as u64 + offset as u64), from, bytes))
    }

    fn copy(&self, stream: Stream, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.check(to, bytes);
        self.check(from, bytes);
        self.submit(stream, Work::Copy(to, from, bytes))
    }

    fn fill(&self, stream: Stream, to: Address, bytes: usize, value: u8) -> Result<()> {
        self.check(to, bytes);
        self.submit(stream, Work::Fill(to, bytes, value))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.recorded.retain(|(e, _)| *e != event);
        state.recorded.push((event, stream));
        if let Some(capture) = &mut state.capture {
            capture.events.retain(|e| *e != event);
            if capture.stream == stream {
                capture.events.push(event);
            }
        }
        Ok(())
    }

    /// Only its own copies can be unfinished in a stream, so what the event stands behind is done now.
    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        let outside = {
            let state = self.state.lock().unwrap();
            state.capture.as_ref().is_some_and(|c| c.stream == stream && !c.events.contains(&event))
        };
        if outside {
            self.not_in_capture(Some(stream), "waiting for work that is not captured")?;
        }
        self.finish_event(event)
    }

    fn reached(&self, event: Event) -> Result<bool> {
        self.not_captured(event, "asking for captured work")?;
        self.finish_event(event).map(|()| true)
    }

    fn wait_for(&self, event: Event) -> Result<()> {
        self.not_captured(event, "waiting for captured work")?;
        self.finish_event(event)
    }

    /// The emulated device has no clock.
    fn elapsed_ms(&self, _start: Event, _end: Event) -> Result<f32> {
        Ok(0.0)
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.not_in_capture(Some(stream), "waiting for the stream")?;
        self.finish(stream)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.not_in_capture(Some(stream), "a second capture")?;
        CAPTURES.set(CAPTURES.get() + 1);
        let (work, events) = (Vec::new(), Vec::new());
        self.state.lock().unwrap().capture = Some(Capture { stream, work, events, spoiled: None });
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let mut state = self.state.lock().unwrap();
        let captured = state.capture.take().filter(|c| c.stream == stream);
        let Some(capture) = captured else { return Err(Error::device("nothing is being captured")) };
        if let Some(what) = capture.spoiled {
            return Err(Error::device(format!("a capture that was spoiled by {what}")));
        }
        if state.graphs.len() == self.supply.graphs {
            return Err(Error::device("no memory for another graph"));
        }
        state.graphs.push(capture.work);
        Ok(Graph(state.graphs.len() - 1))
    }

    unsafe fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()> {
        self.not_in_capture(Some(stream), "a graph's launch")?;
        self.finish(stream)?;
        let work = std::mem::take(&mut self.state.lock().unwrap().graphs[graph.0]);
        let result = work.iter().try_for_each(|w| self.run(w));
        self.state.lock().unwrap().graphs[graph.0] = work;
        result
    }
}

/// `probe_shuffle` of instructions.cu on one stream: what each lane got.
#[test]
fn recorded_work_gives_what_direct_work_gives() -> Result<()> {
    let device = Emulated::new(2);
    let (stream, module) = (device.stream()?, device.load("instructions", &[])?);
    let function = device.function(module, "probe_shuffle")?;
    assert!(device.function(module, "no_such_kernel").is_err());
    let bytes = 3 * 32 * 4;
    let (direct, recorded) = (device.allocate(bytes)?, device.allocate(bytes)?);
    let launch = Launch { grid: [1, 1, 1], threads: 32, shared_bytes: 0 };
    let params = |out: Address| [0, 0, out.0, 0].map(u64::to_le_bytes).concat();
    // SAFETY: the kernel writes three words for each of 32 lanes to `out`.
    unsafe { device.launch(stream, function, launch, &params(direct))? };
    device.begin_capture(stream)?;
    device.fill(stream, recorded, bytes, 0)?;
    // SAFETY: as above.
    unsafe { device.launch(stream, function, launch, &params(recorded))? };
    let graph = device.end_capture(stream)?;
    let (mut a, mut b) = (vec![0; bytes], vec![0; bytes]);
    device.read(stream, &mut b, recorded)?;
    assert!(b.iter().all(|byte| *byte == 0xFF), "recorded work was done at once");
    // SAFETY: as above.
    unsafe { device.launch_graph(stream, graph)? };
    device.read(stream, &mut a, direct)?;
    device.read(stream, &mut b, recorded)?;
    assert_eq!(a, b);
    Ok(())
}
