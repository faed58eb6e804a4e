//! Benchmarks: workloads that are measured in one process, the statistics of their samples, and comparisons. How they are
//! used is told in `docs/performance.md`.

pub mod against;
pub mod compare;
pub mod conditions;
pub mod format;
pub mod report;
pub mod roofline;
pub mod sampling;
pub mod shape;
pub mod statistics;
pub mod workload;
