//! File formats: plain bytes in and out. Nothing here knows a device.

pub mod digest_cache;
pub mod gguf;
pub mod hf_trainer;
pub mod json;
pub mod lfs;
pub mod open_folder;
pub mod peft;
pub mod pickle;
pub mod publish;
pub mod safetensors;
pub mod torch_file;
pub mod weight_map;
pub mod zip;
