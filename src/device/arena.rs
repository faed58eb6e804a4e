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
    /// First element, counted in elements of 4 bytes on the CPU (bytes / element size in general).
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

/// Collects the regions of a run before anything is allocated.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    total: usize,
    uses: Vec<(Purpose, usize)>,
}

impl Planner {
    /// An empty plan.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves `len` elements; regions start on 64-byte boundaries.
    pub fn region(&mut self, purpose: Purpose, storage: Storage, len: usize) -> Region {
        let start = self.total;
        let padded = len.next_multiple_of(16);
        self.total += padded;
        self.uses.push((purpose, padded));
        Region { storage, start, len }
    }

    /// Elements in all.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.total
    }

    /// Bytes by purpose, on the CPU.
    #[must_use]
    pub fn bytes_by_purpose(&self) -> std::collections::BTreeMap<Purpose, usize> {
        let mut sums = std::collections::BTreeMap::new();
        for &(purpose, len) in &self.uses {
            *sums.entry(purpose).or_insert(0) += len * 4;
        }
        sums
    }
}
