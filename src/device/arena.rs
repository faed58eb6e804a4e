//! One allocation planned before the first step: named regions, nothing allocated inside a step.

/// Element type of a region. On the CPU both are f32; on a GPU activations are bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Activations and their gradients: f32 on the CPU, bf16 on CUDA.
    Activation,
    /// State and statistics: f32 everywhere.
    F32,
}

/// What a region is for; the memory plan is printed by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Purpose {
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
}

/// A range of elements of the arena. Plain data: reading or writing goes through the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    activation_bytes: usize,
    total: usize,
    uses: Vec<(Purpose, usize)>,
}

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

impl Planner {
    /// An empty plan for the CPU: every element has 4 bytes.
    #[must_use]
    pub fn new() -> Self {
        Planner { activation_bytes: 4, total: 0, uses: Vec::new() }
    }

    /// An empty plan for a device that keeps activations as bf16.
    #[must_use]
    pub fn bf16() -> Self {
        Planner { activation_bytes: 2, ..Self::new() }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn element_bytes(&self, storage: Storage) -> usize {
        match storage {
            Storage::Activation => self.activation_bytes,
            Storage::F32 => 4,
        }
    }

    /// Reserves `len` elements.
    pub fn region(&mut self, purpose: Purpose, storage: Storage, len: usize) -> Region {
        let size = self.element_bytes(storage);
        let start = self.total / size;
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

    /// Bytes by purpose.
    #[must_use]
    pub fn bytes_by_purpose(&self) -> std::collections::BTreeMap<Purpose, usize> {
        let mut sums = std::collections::BTreeMap::new();
        for &(purpose, bytes) in &self.uses {
            *sums.entry(purpose).or_insert(0) += bytes;
        }
        sums
    }
}
