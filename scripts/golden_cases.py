"""The table of golden training cases: small models of the three families, and how each is trained."""

ALL = "all-linear"
BASE_FLAGS = {"shuffle": "false", "logging-steps": 1, "save-strategy": "no", "max-steps": 20, "weight-decay": 0.1}


def qwen2(hidden, inner, layers, heads, kv_heads, vocab, tied, **more):
    """config.json of Qwen1.5, Qwen2 and Qwen2.5, with the key names the released folders have."""
    config = dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", hidden_size=hidden,
        intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=512, rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        use_sliding_window=False, sliding_window=512, max_window_layers=layers, attention_dropout=0.0,
    )
    return config | more


def qwen3(hidden, inner, layers, heads, kv_heads, head_dim, vocab, tied, **more):
    """config.json of the dense Qwen3 models."""
    config = qwen2(hidden, inner, layers, heads, kv_heads, vocab, tied)
    config |= dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=head_dim, attention_bias=False,
        sliding_window=None,
    )
    return config | more


def qwen1(hidden, inner, layers, heads, vocab):
    """config.json of Qwen v1; `intermediate_size` is twice the width of w1."""
    return dict(
        architectures=["QWenLMHeadModel"], model_type="qwen", hidden_size=hidden, intermediate_size=2 * inner,
        num_hidden_layers=layers, num_attention_heads=heads, kv_channels=hidden // heads, layer_norm_epsilon=1e-6,
        rotary_emb_base=10000, rotary_pct=1.0, seq_length=512, max_position_embeddings=512, use_dynamic_ntk=True,
        use_logn_attn=True, no_bias=True, scale_attn_weights=True, tie_word_embeddings=False, vocab_size=vocab,
        attn_dropout_prob=0.0, emb_dropout_prob=0.0, initializer_range=0.02, bf16=False, fp16=False, fp32=False,
        use_flash_attn="auto", tokenizer_class="QWenTokenizer",
    )


def case(name, config, dtype, rows, flags, **more):
    """One case. `flags` are those of `qwentune train` without their dashes."""
    return dict(name=name, config=config, dtype=dtype, rows=rows, flags=BASE_FLAGS | flags) | more


CASES = [
    case(
        "qwen2-gqa-tied-bf16", qwen2(64, 160, 2, 4, 2, 320, True, torch_dtype="bfloat16"), "bf16", 14,
        {"per-device-train-batch-size": 2, "gradient-accumulation-steps": 2, "learning-rate": 1e-3,
         "lr-scheduler-type": "linear", "warmup-steps": 5, "max-grad-norm": 1.9,
         "lora-r": 8, "lora-alpha": 16, "lora-target-modules": ALL},
    ),
    case(
        "qwen2-mha-untied-f32", qwen2(96, 136, 2, 6, 6, 257, False, rope_theta=10000.0, rms_norm_eps=1e-5), "f32", 17,
        {"per-device-train-batch-size": 3, "gradient-accumulation-steps": 4, "learning-rate": 5e-4,
         "lr-scheduler-type": "cosine", "warmup-ratio": 0.15, "max-grad-norm": 1000.0,
         "lora-r": 4, "lora-alpha": 4, "lora-target-modules": "q_proj,v_proj"},
    ),
    case(
        "qwen2-mqa-rslora-f16-sharded", qwen2(128, 224, 3, 8, 1, 300, True, torch_dtype="float16"), "f16", 11,
        {"per-device-train-batch-size": 4, "learning-rate": 1e-3, "lr-scheduler-type": "cosine_with_restarts",
         "lr-scheduler-kwargs": '{"num_cycles": 2}', "warmup-steps": 3, "max-grad-norm": 1.7,
         "lora-r": 16, "lora-alpha": 8, "use-rslora": "true", "lora-target-modules": "o_proj,gate_proj,down_proj"},
        shards=3,
    ),
    case(
        "qwen2-loraplus-new-config",
        qwen2(64, 96, 3, 2, 2, 288, False, rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
              layer_types=["full_attention"] * 3, dtype="bfloat16"), "bf16", 8,
        {"per-device-train-batch-size": 1, "gradient-accumulation-steps": 3, "learning-rate": 2e-4,
         "lr-scheduler-type": "constant", "max-grad-norm": 1.0, "adam-beta2": 0.99, "loraplus-lr-ratio": 4,
         "lora-r": 6, "lora-alpha": 12, "lora-target-modules": ALL},
        drop_keys=["rope_theta"],
    ),
    case(
        "qwen3-gqa-tied-bf16", qwen3(64, 160, 2, 4, 2, 32, 320, True, torch_dtype="bfloat16"), "bf16", 13,
        {"per-device-train-batch-size": 2, "gradient-accumulation-steps": 3, "learning-rate": 1e-3,
         "lr-scheduler-type": "constant_with_warmup", "warmup-steps": 4, "max-grad-norm": 1.2,
         "lora-r": 8, "lora-alpha": 16, "lora-target-modules": ALL},
        store_tied_head=True,
    ),
    case(
        "qwen3-untied-f32", qwen3(96, 120, 2, 6, 3, 24, 256, False), "f32", 15,
        {"per-device-train-batch-size": 5, "gradient-accumulation-steps": 2, "learning-rate": 8e-4,
         "lr-scheduler-type": "polynomial", "lr-scheduler-kwargs": '{"lr_end": 1e-5, "power": 2.0}',
         "warmup-steps": 0.2,
         "max-grad-norm": 0.5, "lora-r": 3, "lora-alpha": 12, "lora-target-modules": "k_proj,up_proj,down_proj"},
    ),
    case(
        "qwen1-all-bf16", qwen1(64, 88, 2, 4, 320), "bf16", 12,
        {"per-device-train-batch-size": 2, "gradient-accumulation-steps": 2, "learning-rate": 1e-3,
         "lr-scheduler-type": "warmup_stable_decay", "lr-scheduler-kwargs": '{"num_decay_steps": 6}', "warmup-steps": 4,
         "max-grad-norm": 1.0, "lora-r": 8, "lora-alpha": 16,
         "lora-target-modules": "['c_attn', 'attn.c_proj', 'w1', 'w2', 'mlp.c_proj']"},
    ),
    case(
        "qwen1-attention-rslora-f16", qwen1(128, 96, 3, 4, 264), "f16", 10,
        {"per-device-train-batch-size": 3, "gradient-accumulation-steps": 2, "learning-rate": 6e-4,
         "lr-scheduler-type": "inverse_sqrt", "warmup-steps": 6, "max-grad-norm": 1000.0,
         "lora-r": 4, "lora-alpha": 8, "use-rslora": "true", "lora-target-modules": "c_attn"},
    ),
    case(
        "qwen2-patterns-rslora-f32", qwen2(48, 64, 4, 4, 2, 256, True), "f32", 9,
        {"per-device-train-batch-size": 3, "learning-rate": 1e-3, "lr-scheduler-type": "linear", "max-grad-norm": 1.0,
         "lora-r": 4, "lora-alpha": 8, "use-rslora": "true", "lora-target-modules": "q_proj,v_proj,up_proj,down_proj",
         "lora-rank-pattern": '{"layers.1.*.q_proj": 6, "(up|down)_proj": 2, "model.layers.3.self_attn.v_proj": 9}',
         "lora-alpha-pattern": '{"^model.layers.3.self_attn.[qv]_proj": 4.5, "up_proj": 12}',
         "layers-to-transform": "1,3"},
    ),
    case(
        "qwen3-two-folded-bf16", qwen3(64, 96, 2, 4, 2, 16, 272, True, torch_dtype="bfloat16"), "bf16", 10,
        {"per-device-train-batch-size": 2, "gradient-accumulation-steps": 2, "learning-rate": 1e-3,
         "lr-scheduler-type": "cosine", "warmup-steps": 2, "max-grad-norm": 2.0,
         "lora-r": 4, "lora-alpha": 8, "lora-target-modules": "q_proj,o_proj,down_proj"},
        folded=[
            {"lora-r": 3, "lora-alpha": 6, "lora-target-modules": ALL, "lora-rank-pattern": '{"mlp.*": 5}'},
            {"lora-r": 8, "lora-alpha": 4, "use-rslora": "true", "lora-target-modules": "q_proj,gate_proj"},
        ],
    ),
]

# Patterns of ranks and alphas, and module names they may match: what PEFT's rule says of each pair is written down.
PATTERNS = [
    "q_proj", "self_attn.q_proj", "attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.*.q_proj", "layers.1",
    "model.layers.1.self_attn.q_proj", "^model.layers.1.self_attn.q_proj", "^layers.1.self_attn.q_proj", "^q_proj",
    "q_proj$", "_proj", ".*_proj", ".*", "(q|v)_proj", "(?:up|down)_proj", "q_proj|v_proj", "[qkv]_proj", "[^q]_proj",
    r"layers\.1\..*", r"layers\.\d\.mlp\.up_proj", r"layers\.\d+\.mlp\.\w+", "layers.[0-9]{2}.mlp.up_proj",
    "layers.1.mlp.(gate|up)_proj", "layers.(1|11).*q_proj", "l.*p", "layers.1?1.self_attn.q_proj", "c_proj", "attn.c_proj",
    "h.1.*", "w[12]", "w1|mlp.w2", "o_proj+", "q_pro.", "Q_PROJ", "q-proj", "layers.[01].mlp.down_proj", "mlp.d*own_proj",
]
MODULES = [
    f"model.layers.{layer}.{part}" for layer in (0, 1, 11, 21) for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj",
    )
] + [f"transformer.h.1.{part}" for part in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")]

# (name, flags of `train`, warm-up steps): every schedule, and the arguments that change its shape.
SCHEDULES = [
    ("linear", {}, 7), ("linear", {}, 0), ("cosine", {}, 7), ("cosine", {"num_cycles": 1.25}, 7), ("constant", {}, 7),
    ("constant_with_warmup", {}, 7), ("polynomial", {}, 7), ("polynomial", {"lr_end": 1e-5, "power": 2.5}, 7),
    ("cosine_with_restarts", {}, 7), ("cosine_with_restarts", {"num_cycles": 3}, 7), ("inverse_sqrt", {}, 7),
    ("inverse_sqrt", {}, 0), ("inverse_sqrt", {"timescale": 20}, 7),
    ("warmup_stable_decay", {"num_decay_steps": 11}, 7),
    ("warmup_stable_decay", {"num_decay_steps": 9, "num_stable_steps": 16, "min_lr_ratio": 0.1}, 7),
    ("warmup_stable_decay", {"num_decay_steps": 12, "warmup_type": "cosine", "decay_type": "linear"}, 7),
    ("warmup_stable_decay", {"num_decay_steps": 12, "decay_type": "1-sqrt", "num_cycles": 0.5}, 5),
    ("cosine_with_min_lr", {"min_lr": 3e-5}, 7), ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 1.25}, 0),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}, 7), ("cosine_warmup_with_min_lr", {"min_lr": 3e-5}, 0),
    ("cosine_warmup_with_min_lr", {"min_lr": 2e-5, "warmup_lr_rate": 0.25, "num_cycles": 0.75}, 6),
]
