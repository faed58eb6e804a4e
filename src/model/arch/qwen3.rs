//! Qwen3 dense, `Qwen3ForCausalLM`: as Qwen2, without biases and with norms of each head.

use super::Family;
use super::qwen2::{Variant, dense};
use crate::error::Result;
use crate::model::config::Config;
use crate::model::spec::Spec;

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    architectures: &["Qwen3ForCausalLM"],
    models: "dense",
    read,
};

/// transformers' `Qwen3Config` gives 128 where the file gives nothing; Qwen2 divides.
const HEAD_DIM: usize = 128;

fn read(config: &Config) -> Result<Spec> {
    config.only("attention_bias", false, "Qwen3 with biases is not supported")?;
    dense(config, FAMILY.name, Variant { qkv_bias: false, qk_norm: true, head_dim: Some(HEAD_DIM) })
}
