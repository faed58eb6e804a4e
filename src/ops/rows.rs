//! Moving whole rows and regions: gather of the scored rows, its transpose, copies, fills.

use crate::device::{Device, Region};

/// `out[i] = x[index[i]]`; rows of `width` elements.
pub fn gather(dev: &mut Device, x: Region, index: &[u32], width: usize, out: Region) {
    let _ = (dev, x, index, width, out);
    todo!()
}

/// `out` = 0, then `out[index[i]] = x[i]`; indices are distinct.
pub fn scatter(dev: &mut Device, x: Region, index: &[u32], width: usize, out: Region) {
    let _ = (dev, x, index, width, out);
    todo!()
}

/// `out = x`, same length.
pub fn copy(dev: &mut Device, x: Region, out: Region) {
    let _ = (dev, x, out);
    todo!()
}

/// `out = 0`.
pub fn zero(dev: &mut Device, out: Region) {
    let _ = (dev, out);
    todo!()
}
