//! File formats: plain bytes in and out. Nothing here knows a device.

pub mod atomic_file;
pub mod gguf;
pub mod hf_trainer;
pub mod json;
pub mod new_folder;
pub mod peft;
pub mod pickle;
pub mod safetensors;
pub mod torch_file;
pub mod weight_map;
pub mod zip;
