"""The reference models: Qwen folders loaded as PyTorch modules, in float32 on the CPU.

Qwen2 (also 1.5 and 2.5) and Qwen3 are those of transformers. Qwen v1 (`model_type` "qwen") is not in transformers, so
it is written out here as a plain module, with the tensor names and the arithmetic of the model folder's own
modeling_qwen.py. In training that has no NTK scaling and no log-n attention; in evaluation both begin beyond
`seq_length`.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

# What each family's "all linear layers" are, as PEFT target names.
ALL_LINEAR = {
    "qwen": ["c_attn", "attn.c_proj", "w1", "w2", "mlp.c_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3_5_text": [
        "q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj",
        "gate_proj", "up_proj", "down_proj",
    ],
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the division at least in float32."""

    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        wide = x if x.dtype == torch.float64 else x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return wide.type_as(x) * self.weight


def rotate(x, cos, sin):
    """Rotary embedding, NeoX layout: element i is paired with element i + head_dim / 2."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class QWenAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["kv_channels"] * config["num_attention_heads"]
        self.head_dim = config["kv_channels"]
        self.c_attn = nn.Linear(config["hidden_size"], 3 * width, bias=True)
        self.c_proj = nn.Linear(width, config["hidden_size"], bias=False)

    def forward(self, x, cos, sin, logn):
        batch, length, _ = x.shape
        heads = [
            part.view(batch, length, -1, self.head_dim).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1)
        ]
        query, key, value = rotate(heads[0], cos, sin) * logn, rotate(heads[1], cos, sin), heads[2]
        scores = query @ key.transpose(-1, -2) / self.head_dim**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        return self.c_proj((weights @ value).transpose(1, 2).reshape(batch, length, -1))


class QWenMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"] // 2
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(hidden, inner, bias=False)
        self.c_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class QWenBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = RMSNorm(config["hidden_size"], config["layer_norm_epsilon"])
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config["hidden_size"], config["layer_norm_epsilon"])
        self.mlp = QWenMLP(config)

    def forward(self, x, cos, sin, logn):
        x = x + self.attn(self.ln_1(x), cos, sin, logn)
        return x + self.mlp(self.ln_2(x))


class QWenConfig(PretrainedConfig):
    """What PEFT asks a model about itself."""

    model_type = "qwen"


class QWenLMHeadModel(nn.Module):
    """Qwen v1: `transformer.{wte,h,ln_f}` and an untied `lm_head`. `forward` gives logits [batch, length, vocab]."""

    def __init__(self, config):
        super().__init__()
        self.config = QWenConfig(tie_word_embeddings=False)
        self.head_dim, self.rotary_base = config["kv_channels"], config["rotary_emb_base"]
        self.seq_length, self.prompt_length = config["seq_length"], 0
        self.dynamic_ntk, self.logn = config["use_dynamic_ntk"], config["use_logn_attn"]
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.transformer.h = nn.ModuleList(QWenBlock(config) for _ in range(config["num_hidden_layers"]))
        self.transformer.ln_f = RMSNorm(config["hidden_size"], config["layer_norm_epsilon"])
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def rotary_base_of(self, length):
        """get_ntk_alpha and update_rotary_pos_emb_cache. The cache of keys is filled with the prompt, whose length
        decides; what is generated after it keeps the base."""
        if self.training or not self.dynamic_ntk:
            return self.rotary_base
        context = math.log((self.prompt_length or length) / self.seq_length, 2) + 1
        alpha = max(2 ** math.ceil(context) - 1, 1)
        return self.rotary_base * alpha ** (self.head_dim / (self.head_dim - 2))

    def logn_of(self, length):
        """logn_tensor: a factor for each query, [length, 1]."""
        grows = self.logn and not self.training
        factors = [math.log(i, self.seq_length) if grows and i > self.seq_length else 1 for i in range(1, length + 1)]
        return torch.tensor(factors)[:, None]

    def forward(self, input_ids, **_):
        x = self.transformer.wte(input_ids)
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        inverse = 1.0 / (self.rotary_base_of(input_ids.shape[1]) ** exponents)
        logn = self.logn_of(input_ids.shape[1]).type_as(x)
        angles = torch.arange(input_ids.shape[1], dtype=torch.float32)[:, None] * inverse
        cos, sin = (torch.cat((part, part), dim=-1).type_as(x) for part in (angles.cos(), angles.sin()))
        for block in self.transformer.h:
            x = block(x, cos, sin, logn)
        return self.lm_head(self.transformer.ln_f(x))

    def prepare_inputs_for_generation(self, *_, **__):
        """Asked for by PEFT's causal-LM wrapper; nothing here generates."""
        raise NotImplementedError


def build(config):
    """A module with fresh weights from the contents of a config.json (a dict)."""
    if config["model_type"] == "qwen":
        return QWenLMHeadModel(config)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager")


def load_base(folder):
    """The model of a folder, weights widened to float32."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "qwen":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = QWenLMHeadModel(config)
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors.update({name: tensor.float() for name, tensor in load_file(shard).items()})
    model.load_state_dict(tensors)
    return model


def logits_of(model, input_ids):
    """Logits [batch, length, vocab] of right-padded rows; causal attention needs no padding mask."""
    out = model(input_ids=input_ids)
    return out if torch.is_tensor(out) else out.logits


def pad_batch(rows, fill_id=0):
    """Rows {"input_ids", "labels"?} as two tensors [rows, longest]; labels are padded with -100."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), fill_id)
    labels = torch.full((len(rows), longest), -100)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        labels[index, :length] = torch.tensor(row.get("labels", row["input_ids"]))
    return ids, labels


def summed_loss(model, rows):
    """(sum of the cross-entropies of the scored tokens, their number): each position predicts the next label."""
    ids, labels = pad_batch(rows)
    logits = logits_of(model, ids)[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    scored = int((targets != -100).sum())
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"), scored
