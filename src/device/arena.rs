//! One allocation planned before the first step: named regions, nothing allocated inside a step.

use super::Capabilities;

/// Element type of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// Activations and their gradients, in the type that the device computes with.
    #[default]
    Activation,
    /// What layers keep from the forward to the backward pass, in the type that the device keeps it in.
    Kept,
    /// State and statistics: f32 everywhere.
    F32,
    /// A device's copy of weights, in the type of activations. No room where the host's are read.
    Copy,
    /// A device's copy of integers of the host. No room where the host's are read.
    Integer,
}

/// What a region is for; the memory plan is printed by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Purpose {
    /// Frozen matrices on a device with a memory of its own.
    BaseWeights,
    /// LoRA parameters, gradients and both moments.
    TrainableState,
    /// Norm weights and biases, as f32.
    SmallWeights,
    /// Kept from the forward to the backward pass, every layer its own.
    SavedActivations,
    /// Shared by all layers, overwritten each time.
    Workspace,
    /// A chunk of logits.
    Logits,
    /// Token ids, positions and work lists of a micro-batch.
    Inputs,
}

/// A range of elements of the arena; the default is an empty one. Plain data: reading or writing goes through the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Element type.
    pub storage: Storage,
    /// First element, counted in elements of its own size from the beginning of the arena.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Region {
    /// The `len` elements from `offset` on.
    ///
    /// # Panics
    /// When they are not all inside.
    #[must_use]
    pub fn slice(self, offset: usize, len: usize) -> Region {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "slice outside its region");
        Region { start: self.start + offset, len, ..self }
    }
}

/// Regions start on multiples of this many bytes: a cache line of the CPU, a memory transaction of a GPU.
const ALIGNMENT: usize = 256;

/// Collects the regions of a run before anything is allocated.
#[derive(Clone, Debug)]
pub struct Planner {
    capabilities: &'static Capabilities,
    total: usize,
    uses: Vec<(Purpose, usize)>,
}

impl Planner {
    /// An empty plan for a device of these capabilities.
    #[must_use]
    pub fn new(capabilities: &'static Capabilities) -> Self {
        Planner { capabilities, total: 0, uses: Vec::new() }
    }

    /// What the device that is planned for can.
    #[must_use]
    pub fn capabilities(&self) -> &'static Capabilities {
        self.capabilities
    }

    /// Bytes of one element; 0 for what the device keeps no copy of.
    #[must_use]
    pub fn element_bytes(&self, storage: Storage) -> usize {
        let Capabilities { activation, kept, own_memory, .. } = *self.capabilities;
        match storage {
            Storage::F32 => 4,
            Storage::Activation => activation.bytes(),
            Storage::Kept => kept.bytes(),
            Storage::Copy => {
                if own_memory {
                    activation.bytes()
                } else {
                    0
                }
            }
            Storage::Integer => {
                if own_memory {
                    4
                } else {
                    0
                }
            }
        }
    }

    /// Reserves `len` elements.
    pub fn region(&mut self, purpose: Purpose, storage: Storage, len: usize) -> Region {
        let size = self.element_bytes(storage);
        let start = self.total.checked_div(size).unwrap_or(0);
        let padded = (len * size).next_multiple_of(ALIGNMENT);
        self.total += padded;
        self.uses.push((purpose, padded));
        Region { storage, start, len }
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.total
    }

    /// Bytes by purpose, those that need none left out.
    #[must_use]
    pub fn bytes_by_purpose(&self) -> std::collections::BTreeMap<Purpose, usize> {
        let mut sums = std::collections::BTreeMap::new();
        for &(purpose, bytes) in self.uses.iter().filter(|(_, bytes)| *bytes > 0) {
            *sums.entry(purpose).or_insert(0) += bytes;
        }
        sums
    }
}
