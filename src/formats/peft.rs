//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.

use crate::error::Result;
use std::path::Path;

/// One adapter tensor, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// PEFT's name, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// [r, in] or [out, r].
    pub shape: [usize; 2],
    /// Elements, row-major.
    pub values: Vec<f32>,
}

/// What `adapter_config.json` says that matters to training.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// Alpha.
    pub lora_alpha: f64,
    /// Dropout.
    pub lora_dropout: f64,
    /// Module names, sorted.
    pub target_modules: Vec<String>,
    /// Scale by alpha / sqrt(r).
    pub use_rslora: bool,
    /// The base as written; never followed.
    pub base_model_name_or_path: String,
}

/// An adapter folder's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The configuration.
    pub config: AdapterConfig,
    /// Tensors sorted by name.
    pub tensors: Vec<AdapterTensor>,
}

/// Reads an adapter folder strictly.
///
/// # Errors
/// Names the file and field or tensor.
pub fn read(folder: &Path) -> Result<Adapter> {
    let _ = folder;
    todo!()
}

/// Writes the folder; bytes are a function of the adapter alone. Files are atomic, the config last.
///
/// # Errors
/// I/O errors, naming the path.
pub fn write(folder: &Path, adapter: &Adapter) -> Result<()> {
    let _ = (folder, adapter);
    todo!()
}
