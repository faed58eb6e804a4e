//! Compiles `kernels/op/*.cu`, one fat binary each, and writes the table of images that `device::cuda::images` embeds.
//! Never looks for a GPU. Without a compiler the build is for the CPU only and says so.
//!
//! `KERNELS=require` makes a missing compiler an error, `KERNELS=off` leaves the kernels out.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code for these, and PTX of the first for what comes after.
const TARGETS: &[&str] = &["80", "89", "90a"];

/// The oldest compiler that is known to take the sources.
const OLDEST: (u32, u32) = (12, 4);

/// One set for all images: ptxas records it, so other flags are other bytes. No -lineinfo, which embeds paths.
const FLAGS: &[&str] = &["-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings"];

const REMEDY: &str = "scripts/get-cuda-compiler gets one, or set NVCC or CUDA_HOME";

fn main() {
    for path in ["build.rs", "kernels/prim", "kernels/tile", "kernels/op"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "NVCC_CCBIN", "KERNELS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mode = env::var("KERNELS").unwrap_or_else(|_| "auto".into());
    if env::var_os("CARGO_FEATURE_CUDA").is_none() || mode == "off" {
        return write_table(&out, None, &[]);
    }
    match find_compiler() {
        Ok((nvcc, version)) => {
            let images = compile_all(&nvcc, &out).unwrap_or_else(|why| stop(&why));
            write_table(&out, Some(version), &images);
        }
        Err(why) if mode == "require" => stop(&format!("{why}; {REMEDY}")),
        Err(why) => {
            println!("cargo:warning={why}: this build trains on the CPU only ({REMEDY})");
            write_table(&out, None, &[]);
        }
    }
}

fn stop(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(1);
}

/// The first nvcc that is new enough, with its version; or why there is none.
fn find_compiler() -> Result<(PathBuf, (u32, u32)), String> {
    let mut why = String::from("no nvcc found");
    for path in candidates() {
        match version_of(&path) {
            Some(version) if version >= OLDEST => return Ok((path, version)),
            Some((major, minor)) => {
                why = format!(
                    "{} is version {major}.{minor}, {}.{} is needed",
                    path.display(),
                    OLDEST.0,
                    OLDEST.1
                );
            }
            None => {}
        }
    }
    Err(why)
}

fn candidates() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = env::var_os("NVCC").map(PathBuf::from).into_iter().collect();
    let mut folders: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(env::var_os)
        .map(|home| PathBuf::from(home).join("bin"))
        .collect();
    folders.push(PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join(".cuda/bin"));
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    folders.extend(["/usr/local/cuda/bin", "/opt/cuda/bin"].map(PathBuf::from));
    all.extend(folders.into_iter().map(|folder| folder.join("nvcc")));
    all
}

/// `13.0` of "Cuda compilation tools, release 13.0, V13.0.88".
fn version_of(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split("release ").nth(1)?.split(',').next()?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Name and file of each image, sorted by name.
fn compile_all(nvcc: &Path, out: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels/op")
        .map_err(|e| format!("kernels/op: {e}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    let name = |source: &Path| source.file_stem().expect("a file name").to_string_lossy().into_owned();
    let images: Vec<(String, PathBuf)> =
        sources.iter().map(|s| (name(s), out.join(format!("{}.fatbin", name(s))))).collect();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), String> {
        while let Some((source, (_, image))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((sources.get(i)?, &images[i])))
        {
            compile(nvcc, source, image)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.min(sources.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("no panic in a compiling thread"))
    })?;
    Ok(images)
}

fn compile(nvcc: &Path, source: &Path, image: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.arg("-fatbin").args(FLAGS);
    for target in TARGETS {
        command.arg(format!("-gencode=arch=compute_{target},code=sm_{target}"));
    }
    command.arg(format!("-gencode=arch=compute_{0},code=compute_{0}", TARGETS[0]));
    if let Some(compiler) = env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(compiler);
    }
    command.arg("-o").arg(image).arg(source);
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().take(40).collect();
    Err(format!("{}: nvcc failed\n{command:?}\n{}", source.display(), lines.join("\n")))
}

/// `images.rs`: compiler version, targets, and the bytes of each image.
fn write_table(out: &Path, version: Option<(u32, u32)>, images: &[(String, PathBuf)]) {
    let mut table = String::new();
    writeln!(table, "/// Version of the compiler, where there was one.").expect("a string");
    writeln!(table, "pub const TOOLKIT: Option<(u32, u32)> = {version:?};").expect("a string");
    let targets = if version.is_some() { TARGETS } else { &[] };
    writeln!(table, "/// What there is machine code for; PTX of the first.").expect("a string");
    writeln!(table, "pub const TARGETS: &[&str] = &{targets:?};").expect("a string");
    writeln!(table, "/// Name and fat binary of each kernel family.").expect("a string");
    writeln!(table, "pub const IMAGES: &[(&str, &[u8])] = &[").expect("a string");
    for (name, path) in images {
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string");
    }
    table.push_str("];\n");
    std::fs::write(out.join("images.rs"), table).expect("OUT_DIR can be written");
}
