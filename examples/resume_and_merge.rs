//! Goes on with the run that `embed` stopped, looks at its checkpoints and its adapter, and merges it into the base.

use qwentune::{Control, Event, Result, checkpoints, merge, read_adapter, resume};
use std::path::Path;

#[allow(dead_code)]
#[path = "embed.rs"]
pub mod embed;

/// Rows in memory are given again; everything else the run knows.
pub fn go_on_and_merge(model: &str, run: &str, out: &str) -> Result<()> {
    let request = embed::request(model, run)?;
    let mut warnings = Vec::new();
    let summary = resume(Path::new(run), request, &Control::default(), &mut |event: &Event| {
        if let Event::Warning(text) = event {
            warnings.push(text.clone());
        }
    })?;
    println!("step {} of {}, {} warnings", summary.step, summary.total_steps, warnings.len());
    for checkpoint in checkpoints(Path::new(run))? {
        println!("{}: {} bytes", checkpoint.path.display(), checkpoint.bytes);
    }
    for tensor in read_adapter(&summary.adapter)?.tensors.iter().take(2) {
        println!("{} {:?}, the first value {}", tensor.name, tensor.shape, tensor.values[0]);
    }
    let merged = merge(Path::new(model), &summary.adapter, Path::new(out), &mut |_: &Event| {})?;
    println!("{} matrices merged into {out}", merged.matrices);
    Ok(())
}

/// `resume_and_merge MODEL RUN OUT`
pub fn main() -> Result<()> {
    let [model, run, out] = [1, 2, 3].map(|n| std::env::args().nth(n).unwrap_or_default());
    go_on_and_merge(&model, &run, &out)
}
