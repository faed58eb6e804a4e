//! `doctor`: what this machine has, and what is missing.

use super::training::size;
use crate::error::Result;
use crate::report::console::say;
use std::path::Path;

/// `qwentune doctor`.
pub fn doctor() -> Result<()> {
    let row = |name: &str, value: &str| say(&format!("{name:<16}{value}"));
    row("qwentune", env!("CARGO_PKG_VERSION"));
    row("system", &format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
    row("processor", &processor());
    row("cores", &std::thread::available_parallelism().map_or_else(|e| e.to_string(), |n| n.to_string()));
    row("vector units", &vector_units());
    row("memory", &memory());
    row("disk", &disk());
    row("gpu", &gpu());
    row("cuda", "the CUDA device is not in this version yet; training runs on the CPU");
    row(
        "tokenizers",
        if cfg!(feature = "text") {
            "built in"
        } else {
            "left out (feature `text`): only input_ids rows are read"
        },
    );
    Ok(())
}

/// The first value called `name` in a `name : value` file of the system.
fn system_value(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn processor() -> String {
    system_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into())
}

fn memory() -> String {
    let kilobytes = |name| {
        let value = system_value("/proc/meminfo", name)?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    match (kilobytes("MemTotal"), kilobytes("MemAvailable")) {
        (Some(total), Some(free)) => format!("{}, {} available", size(total * 1024), size(free * 1024)),
        _ => "unknown".into(),
    }
}

fn disk() -> String {
    match rustix::fs::statvfs(Path::new(".")) {
        Ok(stat) => format!("{} free in this folder", size(stat.f_bavail * stat.f_frsize)),
        Err(error) => format!("unknown: {error}"),
    }
}

/// What NVIDIA's driver says, where there is one.
fn gpu() -> String {
    let Ok(folders) = std::fs::read_dir("/proc/driver/nvidia/gpus") else {
        return "no NVIDIA driver found".into();
    };
    let information = folders.flatten().map(|f| f.path().join("information"));
    let mut names: Vec<String> =
        information.filter_map(|file| system_value(file.to_str()?, "Model")).collect();
    names.sort();
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver =
        version.split_whitespace().find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()));
    format!("{}; driver {}", names.join(", "), driver.unwrap_or("unknown"))
}

#[cfg(target_arch = "x86_64")]
fn vector_units() -> String {
    let found = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("F16C", std::is_x86_feature_detected!("f16c")),
        ("AVX-512F", std::is_x86_feature_detected!("avx512f")),
    ];
    let list = |there: bool| {
        let names: Vec<&str> = found.iter().filter(|(_, has)| *has == there).map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    format!("{}; missing: {}", list(true), list(false))
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_units() -> String {
    "portable code is used on this processor".into()
}
