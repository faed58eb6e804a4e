//! Kernels as the launch code knows them: a typed handle for each, declared beside its parameter struct.

use super::parameters::{Layout, Parameters};
use std::marker::PhantomData;

/// One kernel of `kernels/op/IMAGE.cu`, with what the parts of a launch that never vary are. The tests compare all of it
/// with what the kernel's source says of itself.
pub struct Kernel<P> {
    image: &'static str,
    name: &'static str,
    threads: u32,
    shared_bytes: u32,
    parameters: PhantomData<fn(P)>,
}

impl<P: Parameters> Kernel<P> {
    /// The kernel called `name`, with blocks of `threads` threads that use `shared_bytes` bytes of shared memory.
    #[must_use]
    pub const fn new(image: &'static str, name: &'static str, threads: u32, shared_bytes: u32) -> Self {
        Kernel { image, name, threads, shared_bytes, parameters: PhantomData }
    }
}

/// A kernel, whatever it takes.
pub trait AnyKernel: Sync {
    /// Name of its source and image.
    fn image(&self) -> &'static str;
    /// Its name.
    fn name(&self) -> &'static str;
    /// Threads of a block.
    fn threads(&self) -> u32;
    /// Shared memory of a block, in bytes.
    fn shared_bytes(&self) -> u32;
    /// Its parameter struct, then the structs within it.
    fn parameters(&self) -> Vec<Layout>;
}

impl<P: Parameters> AnyKernel for Kernel<P> {
    fn image(&self) -> &'static str {
        self.image
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn threads(&self) -> u32 {
        self.threads
    }

    fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    fn parameters(&self) -> Vec<Layout> {
        let mut all = Vec::new();
        P::layouts(&mut all);
        all
    }
}

/// A number that a kernel and its launch must agree on: the source that defines it, its name there, and its value here.
pub type Shared = (&'static str, &'static str, usize);

/// All that an operation has for a GPU.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Its kernels.
    pub kernels: &'static [&'static dyn AnyKernel],
    /// The numbers it shares with their sources; the tests compare them.
    #[cfg_attr(not(feature = "internals"), allow(dead_code))]
    pub shared: &'static [Shared],
}

impl Kernels {
    /// Of an operation that is done by kernels of others.
    pub const NONE: Kernels = Kernels { kernels: &[], shared: &[] };
}
