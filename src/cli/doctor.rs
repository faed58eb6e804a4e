//! `doctor`: what this machine has, and what is missing.

use super::training::size;
#[cfg(feature = "cuda")]
use crate::error::Error;
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
    cuda(&row);
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

/// GPUs, compiled kernels, and whether the two go together.
#[cfg(feature = "cuda")]
fn cuda(row: &dyn Fn(&str, &str)) {
    use crate::device::cuda::driver::Driver;
    use crate::device::cuda::{images, nvidia};
    let in_lines = |row_name: &str, error: &Error| {
        let text = error.to_string();
        for (number, line) in text.lines().enumerate() {
            row(if number == 0 { row_name } else { "" }, line.trim());
        }
    };
    match images::present() {
        Ok((major, minor)) => {
            let names: Vec<String> = images::TARGETS.iter().map(|name| format!("sm_{name}")).collect();
            let floor = images::TARGETS.first().unwrap_or(&"");
            let families = images::IMAGES.len();
            row("kernels", &format!("{families} families for {}, PTX compute_{floor}", names.join(", ")));
            row(
                "",
                &format!("built with CUDA {major}.{minor}: driver {}", images::needed_driver((major, minor))),
            );
            row("fingerprint", &images::fingerprint().unwrap_or_default());
        }
        Err(error) => in_lines("kernels", &error),
    }
    let found = match nvidia::list() {
        Ok(found) => found,
        Err(error) => return in_lines("gpu", &error),
    };
    for (index, facts) in (0..).zip(found) {
        let (major, minor) = facts.capability;
        let free = nvidia::Nvidia::open(index).and_then(|gpu| gpu.memory_free());
        let free = free.map_or_else(|error| error.what, |bytes| format!("{} free", size(bytes)));
        row(&format!("gpu {index}"), &format!("{}, compute capability {major}.{minor}", facts.name));
        row("", &format!("{} multiprocessors, {}, {free}", facts.multiprocessors, size(facts.memory)));
        let (major, minor) = facts.cuda;
        row("", &format!("driver {} for CUDA {major}.{minor}", facts.driver));
        match images::target_on(&facts) {
            Ok(target) => row("", &format!("runs {target}")),
            Err(error) => in_lines("", &error),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(row: &dyn Fn(&str, &str)) {
    row("kernels", "left out of this build (feature `cuda`); training runs on the CPU");
}

#[cfg(target_arch = "x86_64")]
fn vector_units() -> String {
    let found = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("F16C", std::is_x86_feature_detected!("f16c")),
        ("AVX-512F", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512-BF16", std::is_x86_feature_detected!("avx512bf16")),
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
