//! The least time that a known GPU needs for some work: its bytes at the full rate of its memory, its products at the full
//! rate of its tensor cores (Williams et al. 2009, "Roofline"). `tools/kernels/count` counts what the kernels add to that.

/// `kernels/devices.tsv`: names, rates, and where each figure comes from.
const TABLE: &str = include_str!("../../kernels/devices.tsv");

/// A GPU whose rates are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its name in the table.
    pub name: String,
    /// Operations of its tensor cores in a second, as `mma.sync` reaches them in bf16.
    pub flops: f64,
    /// Bytes of its memory in a second.
    pub bytes: f64,
}

/// A least time, and what it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Seconds.
    pub seconds: f64,
    /// `tensor` or `DRAM`.
    pub limiter: &'static str,
}

/// The GPU that its driver calls `name`.
#[must_use]
pub fn card(name: &str) -> Option<Card> {
    let mut lines =
        TABLE.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect::<Vec<_>>());
    let head = lines.next()?;
    let place = |wanted: &str| head.iter().position(|column| *column == wanted);
    let row = lines.find(|row| place("driver_name").and_then(|at| row.get(at)) == Some(&name))?;
    let number = |wanted: &str| row.get(place(wanted)?)?.parse::<f64>().ok();
    let cycles = number("multiprocessors")? * number("mhz")? * 1e6;
    Some(Card {
        name: (*row.get(place("device")?)?).to_owned(),
        flops: 2.0 * cycles * number("tensor")? * number("mma_share")?,
        bytes: number("dram_gb_s")? * 1e9,
    })
}

/// The least time for so many floating-point operations of products and bytes of memory.
#[must_use]
pub fn least(card: &Card, flops: f64, bytes: f64) -> Bound {
    let (tensor, memory) = (flops / card.flops, bytes / card.bytes);
    if tensor > memory {
        Bound { seconds: tensor, limiter: "tensor" }
    } else {
        Bound { seconds: memory, limiter: "DRAM" }
    }
}
