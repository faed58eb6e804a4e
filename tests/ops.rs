//! Every operation on the CPU, on its table of cases: against a plain f64 reference, which is itself checked
//! against numerical derivatives; the same bits for every number of threads and every instruction set.

mod attention;
mod decode;
mod delta;
mod elementwise;
mod norm_rope;
pub mod rig;
mod rounding;
mod state;
