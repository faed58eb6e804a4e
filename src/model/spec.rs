//! A model as data: its layers, each with a mixer and an MLP, their tensors' names and shapes, and its constants. `arch`
//! makes it of a `config.json`; weights, adapters, plans and passes follow it.

use super::arch;
use super::config::Config;
use super::rotary::Rotary;
use crate::error::Result;
use crate::formats::json::Object;
use std::path::Path;

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Name of its family, as `model_type` has it.
    pub family: &'static str,
    /// Hidden size H.
    pub hidden: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Tensor of the embedding table [V, H].
    pub embedding: String,
    /// Layers, from the embedding to the head.
    pub layers: Vec<LayerSpec>,
    /// Norm before the head.
    pub norm: NormSpec,
    /// Output head is the embedding table.
    pub tied: bool,
    /// Longest position trained on.
    pub max_positions: usize,
    /// Longest text that can be generated, where that is more.
    pub longest_text: Option<usize>,
    /// `eos_token_id`: ids that end a text; empty when the file names none.
    pub eos: Vec<u32>,
    /// `pad_token_id`, where the file has one.
    pub pad: Option<u32>,
}

/// One layer: `x += mixer(norm(x))`, then `x += mlp(norm(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Norm before the mixer.
    pub mixer_norm: NormSpec,
    /// What mixes tokens.
    pub mixer: MixerSpec,
    /// Norm before the MLP.
    pub mlp_norm: NormSpec,
    /// What is done to each token alone.
    pub mlp: MlpSpec,
}

/// The kinds of mixers; layers of one model may differ.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    /// Softmax attention with rotary positions.
    Attention(AttentionSpec),
}

/// The kinds of MLPs.
#[derive(Clone, Debug, PartialEq)]
pub enum MlpSpec {
    /// Dense SwiGLU.
    SwiGlu(SwiGluSpec),
}

/// Causal grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size D.
    pub head_dim: usize,
    /// Rotary positions of q and k.
    pub rotary: Rotary,
    /// In generation, queries beyond this position, the trained length, grow with its logarithm (Qwen v1).
    pub logn: Option<usize>,
    /// Norms of each head of q and of k.
    pub qk_norm: Option<[NormSpec; 2]>,
    /// Layers that make q|k|v side by side of the normalised input.
    pub input: Vec<LinearSpec>,
    /// Output projection.
    pub output: LinearSpec,
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct SwiGluSpec {
    /// Inner width I.
    pub width: usize,
    /// Gate in columns 0..I, up in I..2I, in the order of the module's definition.
    pub input: Vec<LinearSpec>,
    /// Down projection.
    pub output: LinearSpec,
}

/// A small tensor that is kept in f32: norm weights, for example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// An RMSNorm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Scale, one vector.
    pub weight: TensorSpec,
    /// Added to the mean square.
    pub eps: f32,
}

impl NormSpec {
    /// A norm of rows of `len` elements.
    #[must_use]
    pub fn new(name: String, len: usize, eps: f32) -> Self {
        NormSpec { weight: TensorSpec { name, shape: vec![len] }, eps }
    }
}

/// A linear layer that an adapter may be added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path without `.weight`, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Output and input features.
    pub shape: [usize; 2],
    /// Whether it has a bias (`module.bias`).
    pub bias: bool,
    /// First column of its output in the output rows of the layers that read the same input, side by side.
    pub column: usize,
}

impl LinearSpec {
    /// A layer without bias, whose output begins at column 0.
    #[must_use]
    pub fn new(module: String, shape: [usize; 2]) -> Self {
        LinearSpec { module, shape, bias: false, column: 0 }
    }

    /// The same with a bias or without.
    #[must_use]
    pub fn with_bias(self, bias: bool) -> Self {
        LinearSpec { bias, ..self }
    }

    /// The same, whose output begins at `column`.
    #[must_use]
    pub fn at(self, column: usize) -> Self {
        LinearSpec { column, ..self }
    }

    /// Name and shape of its weight, and of its bias.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let tensor = |part: &str, shape: &[usize]| TensorSpec {
            name: format!("{}.{part}", self.module),
            shape: shape.to_vec(),
        };
        let bias = self.bias.then(|| tensor("bias", &self.shape[..1]));
        std::iter::once(tensor("weight", &self.shape)).chain(bias).collect()
    }
}

impl MixerSpec {
    fn linears(&self) -> Vec<&LinearSpec> {
        match self {
            MixerSpec::Attention(a) => a.input.iter().chain([&a.output]).collect(),
        }
    }

    fn tensors(&self) -> Vec<&TensorSpec> {
        match self {
            MixerSpec::Attention(a) => a.qk_norm.iter().flatten().map(|norm| &norm.weight).collect(),
        }
    }

    fn rotary(&self) -> Option<&Rotary> {
        match self {
            MixerSpec::Attention(a) => Some(&a.rotary),
        }
    }
}

impl MlpSpec {
    fn linears(&self) -> Vec<&LinearSpec> {
        match self {
            MlpSpec::SwiGlu(m) => m.input.iter().chain([&m.output]).collect(),
        }
    }
}

impl LayerSpec {
    /// The layer's linear layers in the canonical order: as the Hugging Face module defines them, which is the
    /// order of adapters in PyTorch's `named_parameters`, in optimizer state and in checkpoints.
    #[must_use]
    pub fn linears(&self) -> Vec<&LinearSpec> {
        [self.mixer.linears(), self.mlp.linears()].concat()
    }

    /// Its other tensors.
    #[must_use]
    pub fn tensors(&self) -> Vec<&TensorSpec> {
        [vec![&self.mixer_norm.weight, &self.mlp_norm.weight], self.mixer.tensors()].concat()
    }
}

/// The output head's tensor in files that store one; those of tied models may, as a copy of the embedding.
pub const STORED_HEAD: &str = "lm_head.weight";

impl Spec {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// Names the key, what is wrong with it, and what is not supported (MoE, sliding window, vision, quantised).
    pub fn read(folder: &Path) -> Result<Self> {
        Self::of(&Config::open(folder)?)
    }

    /// The shapes that the keys of a `config.json` give, without a folder; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`Spec::read`].
    pub fn given(name: &str, keys: Object) -> Result<Self> {
        Self::of(&Config::given(name, keys))
    }

    fn of(config: &Config) -> Result<Self> {
        let family = arch::family(config)?;
        let spec = (family.read)(config)?;
        config.refuse_unknown()?;
        Ok(spec)
    }

    /// The output head's tensor.
    #[must_use]
    pub fn head(&self) -> &str {
        if self.tied { &self.embedding } else { STORED_HEAD }
    }

    /// Longest text, prompt and answer together, that can be generated.
    #[must_use]
    pub fn longest_text(&self) -> usize {
        self.max_positions.max(self.longest_text.unwrap_or(0))
    }

    /// The rotary tables' level for a prompt of `len` tokens: see [`Rotary::level`].
    #[must_use]
    pub fn rotary_level(&self, len: usize) -> usize {
        let rotaries = self.layers.iter().filter_map(|layer| layer.mixer.rotary());
        rotaries.map(|rotary| rotary.level(len)).max().unwrap_or(0)
    }

    /// All linear layers of the blocks with the number of their layer, in the canonical order.
    pub fn linears(&self) -> impl Iterator<Item = (usize, &LinearSpec)> {
        let layers = self.layers.iter().enumerate();
        layers.flat_map(|(i, layer)| layer.linears().into_iter().map(move |linear| (i, linear)))
    }

    /// Every tensor that the model reads, a tied head once.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let table = |name: &str| TensorSpec { name: name.into(), shape: vec![self.vocab, self.hidden] };
        let mut all = vec![table(&self.embedding), self.norm.weight.clone()];
        all.extend((!self.tied).then(|| table(STORED_HEAD)));
        for layer in &self.layers {
            all.extend(layer.tensors().into_iter().cloned());
            all.extend(layer.linears().into_iter().flat_map(LinearSpec::tensors));
        }
        all
    }

    /// Elements of the base model's weights, a tied head counted once.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        let elements = |t: &TensorSpec| t.shape.iter().map(|n| *n as u64).product::<u64>();
        self.tensors().iter().map(elements).sum()
    }
}
