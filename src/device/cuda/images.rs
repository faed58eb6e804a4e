//! The compiled kernels inside this program: which of them a GPU runs, what they need, and their fingerprint.

use super::driver::Facts;
use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// How to get kernels where there are none.
pub const REMEDY: &str =
    "build it with a CUDA compiler: scripts/get-cuda-compiler, then cargo build --release";

/// What of an image a GPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code for this architecture, as "90a".
    Machine(&'static str),
    /// PTX of this virtual architecture, compiled by the driver.
    Ptx(&'static str),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Machine(name) => write!(f, "machine code sm_{name}"),
            Target::Ptx(name) => write!(f, "PTX compute_{name}, compiled by the driver"),
        }
    }
}

/// Digest of all images, hexadecimal. `None` without kernels.
#[must_use]
pub fn fingerprint() -> Option<String> {
    if IMAGES.is_empty() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in IMAGES {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    Some(hasher.finalize().to_hex().to_string())
}

/// What decides the bits that a device computes, as it stands in checkpoints: the digest and what the device runs of the
/// images; where the driver compiles them, its version is part of it. SM count and name of the device are not.
///
/// # Errors
/// When the device cannot run the kernels ([`target_on`]).
pub fn identity_on(facts: &Facts) -> Result<String> {
    let target = target_on(facts)?;
    let digest = fingerprint().unwrap_or_default();
    Ok(match target {
        Target::Machine(name) => format!("{digest} sm_{name}"),
        Target::Ptx(name) => {
            let (major, minor) = facts.capability;
            format!("{digest} compute_{name} on {major}.{minor} by driver {}", driver_version(facts))
        }
    })
}

/// The version of the compiler of the kernels.
///
/// # Errors
/// When this program was built without one.
pub fn present() -> Result<(u32, u32)> {
    TOOLKIT.filter(|_| !IMAGES.is_empty()).ok_or_else(|| {
        Error::device("this build has no CUDA kernels").hint(format!("{REMEDY}; or train with --device cpu"))
    })
}

/// What of the images `facts`' device runs.
///
/// # Errors
/// Without kernels, on a GPU older than all targets, or with a driver older than the compiler: with both versions.
pub fn target_on(facts: &Facts) -> Result<Target> {
    let toolkit = present()?;
    let (major, minor) = facts.capability;
    let target = choose(TARGETS, facts.capability).ok_or_else(|| {
        Error::device(format!(
            "{} has compute capability {major}.{minor}; the kernels need {} or newer",
            facts.name,
            dotted(TARGETS[0])
        ))
        .hint("use an Ampere GPU or a newer one, or train with --device cpu")
    })?;
    if driver_suffices(target, toolkit, facts.cuda) {
        return Ok(target);
    }
    Err(Error::device(format!(
        "the kernels were built with CUDA {}.{}, the driver {} supports CUDA {}.{} only",
        toolkit.0,
        toolkit.1,
        driver_version(facts),
        facts.cuda.0,
        facts.cuda.1
    ))
    .hint(format!(
        "update the driver ({} is needed), or build with a CUDA compiler no newer than the driver (NVCC=...)",
        needed_driver(toolkit)
    )))
}

fn driver_version(facts: &Facts) -> &str {
    if facts.driver.is_empty() { "of unknown version" } else { &facts.driver }
}

/// "8.0" of "80", "9.0" of "90a".
fn dotted(target: &str) -> String {
    let (major, minor) = number(target);
    format!("{major}.{minor}")
}

fn number(target: &str) -> (u32, u32) {
    let digits: u32 = target.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u32::MAX);
    (digits / 10, digits % 10)
}

/// Machine code runs on devices of the same major and the same or a higher minor capability, that of a target with a
/// letter on exactly its own; PTX of the first target on everything after it (CUDA C++ Programming Guide, "Binary
/// Compatibility" and "PTX Compatibility"). The driver prefers machine code, the nearest one.
#[must_use]
pub fn choose(targets: &'static [&'static str], capability: (u32, u32)) -> Option<Target> {
    let runs = |target: &&&str| {
        let built = number(target);
        let exact = target.ends_with(|c: char| c.is_ascii_alphabetic());
        if exact { built == capability } else { built.0 == capability.0 && built.1 <= capability.1 }
    };
    let nearest = targets.iter().filter(runs).max_by_key(|target| number(target));
    let floor = targets.first().filter(|first| number(first) <= capability);
    nearest.map(|name| Target::Machine(name)).or(floor.map(|name| Target::Ptx(name)))
}

/// Machine code needs a driver of the compiler's major version, PTX one that is at least as new as the compiler (CUDA
/// Compatibility, "Minor Version Compatibility").
#[must_use]
pub fn driver_suffices(target: Target, toolkit: (u32, u32), cuda: (u32, u32)) -> bool {
    match target {
        Target::Machine(_) => cuda.0 >= toolkit.0,
        Target::Ptx(_) => cuda >= toolkit,
    }
}

/// The driver branch each toolkit came with (CUDA Toolkit Release Notes, table 3).
#[must_use]
pub fn needed_driver(toolkit: (u32, u32)) -> String {
    let branch = match toolkit {
        (12, 4) => "550",
        (12, 5) => "555",
        (12, 6) => "560",
        (12, 8) => "570",
        (12, 9) => "575",
        (13, 0) => "580",
        (major, minor) => return format!("a driver for CUDA {major}.{minor}"),
    };
    format!("{branch} or newer")
}

/// The image of a kernel family; empty in a build without kernels.
#[must_use]
pub fn find(name: &str) -> &'static [u8] {
    IMAGES.iter().find(|(image, _)| *image == name).map_or(&[], |(_, bytes)| bytes)
}
