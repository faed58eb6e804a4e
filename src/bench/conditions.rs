//! What the machine did while a sample was taken: other work on the processors, and the state of the GPU.

use super::report::{Conditions, GpuState};
use std::process::Command;
use std::time::Instant;

/// Looks at the machine before and after a sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// Number of the GPU that is used.
    pub gpu: Option<u32>,
}

/// What was seen before a sample.
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    at: Instant,
    processors: Option<Processors>,
}

/// Processor time since the machine started, in ticks of the system's clock.
#[derive(Clone, Copy, Debug)]
struct Processors {
    all: u64,
    idle: u64,
    steal: u64,
    own: u64,
}

impl Watch {
    /// Call before a sample.
    #[must_use]
    pub fn begin(&self) -> Begin {
        Begin { processors: Processors::now(), at: Instant::now() }
    }

    /// Call after it.
    #[must_use]
    pub fn end(&self, begin: Begin) -> Conditions {
        let seconds = begin.at.elapsed().as_secs_f64();
        let shares = begin.processors.zip(Processors::now()).and_then(|(before, now)| now.since(&before));
        let gpu = self.gpu.and_then(gpu_state);
        Conditions { seconds, others: shares.map(|s| s[0]), steal: shares.map(|s| s[1]), gpu }
    }
}

impl Processors {
    /// From `/proc`, where the system has it (proc(5): `/proc/stat` and `/proc/self/stat`).
    fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let first = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = first.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guest time behind them is part of user.
        let [.., steal] = ticks.get(..8)? else { return None };
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name in brackets may hold anything; user and system time are the 12th and 13th word behind it.
        let words: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let time = |index: usize| words.get(index)?.parse::<u64>().ok();
        Some(Processors {
            all: ticks[..8].iter().sum(),
            idle: ticks[3] + ticks[4],
            steal: *steal,
            own: time(11)? + time(12)?,
        })
    }

    /// Fractions of the time since `before` that other processes and the hypervisor took; nothing where less than ten
    /// ticks passed, of which no fraction can be told.
    fn since(&self, before: &Processors) -> Option<[f64; 2]> {
        let all = self.all.saturating_sub(before.all);
        if all < 10 {
            return None;
        }
        let steal = self.steal.saturating_sub(before.steal);
        let busy = all.saturating_sub(self.idle.saturating_sub(before.idle)).saturating_sub(steal);
        let others = busy.saturating_sub(self.own.saturating_sub(before.own));
        Some([others as f64 / all as f64, steal as f64 / all as f64])
    }
}

/// What is asked of `nvidia-smi`, in the order of [`parse_gpu_state`].
const QUERY: &str = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active";

/// Bits of the reasons why a clock is lowered (NVML's `nvmlClocksEventReasons`); an idle GPU and clocks that an application
/// set are none.
const REASONS: [(u64, &str); 5] = [
    (0x4, "power cap"),
    (0x8, "hardware slowdown"),
    (0x20, "too warm (software)"),
    (0x40, "too warm (hardware)"),
    (0x80, "power brake"),
];

/// State of GPU `index` as `nvidia-smi` tells it; nothing where there is no such program.
fn gpu_state(index: u32) -> Option<GpuState> {
    let ask = |query: &str| {
        let output = Command::new("nvidia-smi")
            .args([query, "--format=csv,noheader,nounits", "-i", &index.to_string()])
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut state = parse_gpu_state(&ask(&format!("--query-gpu={QUERY}"))?)?;
    let own = std::process::id().to_string();
    state.other_processes = ask("--query-compute-apps=pid")
        .map(|text| text.lines().map(str::trim).filter(|pid| !pid.is_empty() && *pid != own).count());
    Some(state)
}

/// A line that `nvidia-smi` printed for [`QUERY`]; what a card does not tell stays empty.
fn parse_gpu_state(text: &str) -> Option<GpuState> {
    let words: Vec<&str> = text.lines().next()?.split(',').map(str::trim).collect();
    let [sm, memory, celsius, watts, reasons] = words.as_slice() else { return None };
    let reasons = reasons.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    Some(GpuState {
        sm_mhz: sm.parse().ok(),
        memory_mhz: memory.parse().ok(),
        celsius: celsius.parse().ok(),
        watts: watts.parse().ok(),
        throttled: REASONS.iter().filter(|(bit, _)| reasons & bit != 0).map(|r| r.1.to_owned()).collect(),
        other_processes: None,
    })
}

/// The power limit of GPU `index`, watts.
#[must_use]
pub fn power_limit(index: u32) -> Option<u32> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=power.limit", "--format=csv,noheader,nounits", "-i", &index.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse::<f64>().ok().map(|watts| watts.round() as u32)
}

/// The processor's name, where the system tells it.
#[must_use]
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Largest resident memory of this process so far, bytes, where the system tells it.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}
