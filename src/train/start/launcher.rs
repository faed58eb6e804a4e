//! Launchers that start one process for each of several GPUs. There is no training on several yet, so that every one of
//! their processes would do the same run in the same folder.

use crate::error::{Error, Result};

/// What the launchers set for the processes of one step. `SLURM_NTASKS` is not among them: it also stands in plain batch
/// scripts.
const SIZES: [(&str, &str); 4] = [
    ("WORLD_SIZE", "torchrun or accelerate"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
    ("OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("PMI_SIZE", "mpiexec or srun"),
];

/// Refuses to be one of several processes.
///
/// # Errors
/// Usage, naming the launcher.
pub fn refuse_several(variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    for (name, launcher) in SIZES {
        let size = variable(name).and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(size) = size.filter(|size| *size > 1) {
            return Err(Error::usage(format!(
                "{name} is {size}: {launcher} started {size} processes, and a run is one process on one device"
            ))
            .hint(format!("start it once, without the launcher; in a job that sets {name}: env -u {name} qwentune ...")));
        }
    }
    Ok(())
}
