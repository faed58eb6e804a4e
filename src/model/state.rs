//! The flat trainable state on a device, and where each adapter lies in it.

use super::lora::{Layout, Slot};
use crate::device::{Planner, Purpose, Region, Storage};
use crate::error::{Error, Result};
use crate::ops::linear::Lora;
use crate::ops::reduce;

/// The flat trainable state, four arrays of one layout.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// LoRA parameters.
    pub params: Region,
    /// Their gradients.
    pub grads: Region,
    /// First moments.
    pub m: Region,
    /// Second moments.
    pub v: Region,
    /// Scratch of the gradients' norm.
    pub(super) sums: Region,
}

impl State {
    /// Plans all four arrays.
    pub(super) fn plan(planner: &mut Planner, layout: &Layout) -> Self {
        let mut trainable = || planner.region(Purpose::TrainableState, Storage::F32, layout.len);
        let [params, grads, m, v] = [(); 4].map(|()| trainable());
        State { params, grads, m, v, sums: reduce::plan(planner, layout.len) }
    }

    /// Plans the parameters alone, for passes that only read them.
    pub(super) fn plan_reading(planner: &mut Planner, layout: &Layout) -> Self {
        let params = planner.region(Purpose::TrainableState, Storage::F32, layout.len);
        State { params, grads: params, m: params, v: params, sums: params }
    }

    /// What a checkpoint keeps: parameters and both moments.
    #[must_use]
    pub fn kept(&self) -> [Region; 3] {
        [self.params, self.m, self.v]
    }
}

/// Places of the adapters' matrices, also of their copies.
pub(super) struct Adapters<'a> {
    layout: &'a Layout,
    pub state: State,
    /// The copies: see [`Lora::packed`].
    pub packed: Region,
    used: usize,
    /// Whether the device has copies: else nobody reads the table.
    copies: bool,
    /// What [`crate::ops::linear::pack`] reads.
    pub table: Vec<u32>,
}

impl<'a> Adapters<'a> {
    /// Plans the copies.
    ///
    /// # Errors
    /// More values than the table's integers count, on a device that has copies.
    pub fn plan(planner: &mut Planner, layout: &'a Layout, state: State) -> Result<Self> {
        let device = planner.capabilities();
        let copies = |s: &Slot| device.row_len(s.rank) * (s.shape[0] + s.shape[1]);
        let len: usize = layout.slots.iter().map(copies).sum();
        let most = len.max(layout.len);
        if device.own_memory && u32::try_from(most).is_err() {
            return Err(Error::usage(format!(
                "the adapters have {most} values, this device takes {}",
                u32::MAX
            ))
            .hint("lower --lora-r, or train fewer layers: --lora-target"));
        }
        let packed = planner.region(Purpose::TrainableState, Storage::Copy, len);
        Ok(Adapters { layout, state, packed, used: 0, copies: device.own_memory, table: Vec::new() })
    }

    /// The place of a copy of `rows` × `columns` elements of the [rows, columns] matrix at `source`.
    fn copy(&mut self, source: usize, matrix: [usize; 2], copy: [usize; 2]) -> Region {
        let place = self.packed.slice(self.used, copy[0] * copy[1]);
        let entry = [source, self.used, matrix[0], matrix[1], copy[0], copy[1]];
        if self.copies {
            self.table.extend(entry.map(|v| u32::try_from(v).expect("the plan looked at the lengths")));
        }
        self.used += place.len;
        place
    }

    /// The adapter of `module`, where it has one; each is asked for once.
    pub fn of(&mut self, planner: &Planner, module: &str) -> Option<Lora> {
        let slot = self.layout.slot(module)?;
        let ([output, input], rank, [a, b]) = (slot.shape, slot.rank, slot.lens());
        let width = planner.capabilities().row_len(rank);
        let packed = [
            self.copy(slot.a, [rank, input], [width, input]),
            self.copy(slot.b, [output, rank], [output, width]),
        ];
        Some(Lora {
            rank,
            width,
            scale: slot.scale,
            a: self.state.params.slice(slot.a, a),
            b: self.state.params.slice(slot.b, b),
            grad_a: self.state.grads.slice(slot.a, a),
            grad_b: self.state.grads.slice(slot.b, b),
            packed,
        })
    }
}
