//! SwiGLU (Shazeer 2020): `silu(gate) * up`.

use crate::device::{Device, Region};

/// `out` [T, I] from `gate_up` [T, 2·I]: gate in columns 0..I, up in I..2I. `width` is I.
pub fn forward(dev: &mut Device, gate_up: Region, width: usize, out: Region) {
    let _ = (dev, gate_up, width, out);
    todo!()
}

/// Replaces `gate_up` by its gradient, given `dout` [T, I].
pub fn backward(dev: &mut Device, gate_up: Region, width: usize, dout: Region) {
    let _ = (dev, gate_up, width, dout);
    todo!()
}
