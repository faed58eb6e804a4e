//! The commands that messages offer. They work when pasted.

use crate::checkpoint::inspect::path_of_step;
use crate::config::Settings;
use std::path::{Path, PathBuf};

/// What a user of the run may do next.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    program: String,
    folder: PathBuf,
    /// The run's rows are in memory, where no command line finds them.
    in_memory: bool,
    learning_rate: f64,
    branch: PathBuf,
}

impl Commands {
    /// Those of the run in `folder`; `branch` is a folder that is not there yet.
    #[must_use]
    pub fn new(program: &str, folder: &Path, in_memory: bool, settings: &Settings, branch: PathBuf) -> Self {
        let learning_rate = settings.learning_rate;
        Commands { program: program.to_owned(), folder: folder.to_owned(), in_memory, learning_rate, branch }
    }

    /// How it is continued.
    #[must_use]
    pub fn resume(&self) -> String {
        self.resume_with(&[])
    }

    /// What shows its checkpoints.
    #[must_use]
    pub fn look_in(&self) -> String {
        format!("{} checkpoint show {}", shell_word(&self.program), shell_path(&self.folder))
    }

    /// How it is trained on to another length.
    #[must_use]
    pub fn longer(&self, max_steps: u64) -> String {
        self.resume_with(&[("max_steps", max_steps.to_string())])
    }

    /// How it is trained on after evaluations stopped improving.
    #[must_use]
    pub fn more_patience(&self, evaluations: u64) -> String {
        self.resume_with(&[("early_stopping_patience", evaluations.to_string())])
    }

    /// How a run ends with the adapter of its last step after all.
    #[must_use]
    pub fn last_instead_of_best(&self) -> String {
        self.resume_with(&[("load_best_model_at_end", "false".into())])
    }

    fn resume_with(&self, changes: &[(&str, String)]) -> String {
        if self.in_memory {
            let changes: Vec<String> =
                changes.iter().map(|(key, value)| format!(" and {key} {value}")).collect();
            return format!(
                "the same request with resume_from_checkpoint: Some(ResumeFrom::Auto){}",
                changes.concat()
            );
        }
        let flags: Vec<String> =
            changes.iter().map(|(key, value)| format!(" --{} {value}", key.replace('_', "-"))).collect();
        format!("{} resume {}{}", shell_word(&self.program), shell_path(&self.folder), flags.concat())
    }

    /// How a run of its own goes on with a tenth of the learning rate from the state of step `good`, or where none is
    /// known to be good, how the run begins again with it.
    #[must_use]
    pub fn after_divergence(&self, good: Option<u64>) -> String {
        let rate = self.learning_rate / 10.0;
        let [run, new] = [&self.folder, &self.branch].map(|path| shell_path(path));
        let program = shell_word(&self.program);
        let state = good.map(|step| (step, path_of_step(&self.folder, step)));
        match (state, self.in_memory) {
            (Some((step, path)), false) => format!(
                "go on from the good state of step {step} with a lower rate: {program} train --branch --resume-from-checkpoint {} --output-dir {new} --learning-rate {rate:e}",
                shell_path(&path)
            ),
            (Some((step, path)), true) => format!(
                "go on from the good state of step {step} with a lower rate: the same request with branch: true, resume_from_checkpoint: Some(ResumeFrom::Path({})), another output_dir and learning_rate: {rate:e}",
                path.display()
            ),
            (None, false) => format!(
                "no state is known to be good; start over with a lower rate: {program} train --config {run}/run.json --overwrite-output-dir --learning-rate {rate:e}"
            ),
            (None, true) => format!(
                "no state is known to be good; start over with overwrite_output_dir: true and learning_rate: {rate:e}"
            ),
        }
    }
}

/// A path as a shell takes it, and no command takes it for a flag.
fn shell_path(path: &Path) -> String {
    let text = path.display().to_string();
    shell_word(&if text.starts_with('-') { format!("./{text}") } else { text })
}

/// A word as a shell takes it.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c) || !c.is_ascii();
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
