#!/usr/bin/env python3
"""Writes tests/golden/variants.json: model folders as other tools leave them, and adapters whose configuration says
which layers they adapt in PEFT's other ways. For each, what transformers and PEFT make of it, in float32 on the CPU:
the logits after a prompt, and the modules that are adapted.

    pip install -r scripts/requirements-golden.txt
    python scripts/make_variant_golden.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
PLAIN, TIED, QWEN3 = "qwen2-mha-untied-f32", "qwen2-gqa-tied-bf16", "qwen3-untied-f32"
# Model, keys removed from its config.json, keys set, what is done to the names of its tensors.
FOLDERS = [
    (PLAIN, [], {}, "as they are"),
    (PLAIN, ["rope_theta"], {"rope_scaling": {"rope_type": "default", "rope_theta": 500000.0}}, "as they are"),
    (PLAIN, ["rope_theta"], {"rope_parameters": {"rope_type": "default", "rope_theta": 30000.0}}, "as they are"),
    (PLAIN, [], {"rope_scaling": {"rope_type": "default"}}, "as they are"),
    (QWEN3, ["rope_theta"], {"rope_scaling": {"rope_type": "default", "rope_theta": 2000.0}}, "as they are"),
    (PLAIN, [], {}, "without the prefix"),
    (TIED, [], {}, "without the prefix"),
    (TIED, [], {}, "head alone"),
]
# target_modules and exclude_modules as adapter_config.json may have them.
TARGETS = [
    (["q_proj", "v_proj"], None),
    (r".*\.self_attn\.(q|v)_proj", None),
    (r"model\.layers\.[01]\.mlp\.(gate|up|down)_proj", None),
    (r"^model\.layers\.\d+\..*_proj$", ["o_proj"]),
    ("all-linear", ["q_proj", "layers.1.mlp.down_proj"]),
    ("all-linear", r".*\.layers\.0\..*"),
    (["q_proj", "k_proj", "up_proj"], r".*\.1\.self_attn\.k_proj"),
    (["q_proj", "k_proj"], ["model.layers.0.self_attn.q_proj"]),
]
PROMPT = [5, 9, 200, 31, 7, 7, 120, 64, 3]


def renamed(tensors, how):
    if how == "without the prefix":
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if how == "head alone":
        return {("lm_head.weight" if name == "model.embed_tokens.weight" else name): tensor for name, tensor in tensors.items()}
    return tensors


def logits_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.tensor([PROMPT])).logits[0, -1].tolist()


def folders():
    for name, removed, changed, tensors in FOLDERS:
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "model"
            shutil.copytree(GOLDEN / "train" / name / "model", copy)
            config = json.loads((copy / "config.json").read_text())
            config = {key: value for key, value in config.items() if key not in removed} | changed
            (copy / "config.json").write_text(json.dumps(config))
            weights = load_file(copy / "model.safetensors")
            save_file(renamed(weights, tensors), copy / "model.safetensors", metadata={"format": "pt"})
            logits = logits_of(copy)
        yield {"model": name, "removed": removed, "changed": changed, "tensors": tensors, "prompt": PROMPT, "logits": logits}


def targets():
    for name in [PLAIN, QWEN3]:
        for target_modules, exclude_modules in TARGETS:
            model = AutoModelForCausalLM.from_pretrained(GOLDEN / "train" / name / "model", dtype=torch.float32)
            config = LoraConfig(
                r=4, lora_alpha=8, target_modules=target_modules, exclude_modules=exclude_modules, task_type="CAUSAL_LM"
            )
            model = get_peft_model(model, config)
            ends = ".lora_A.default.weight"
            modules = [key.removeprefix("base_model.model.").removesuffix(ends) for key in model.state_dict() if key.endswith(ends)]
            yield {"model": name, "target_modules": target_modules, "exclude_modules": exclude_modules, "modules": sorted(modules)}


def main():
    parts = {"folders": list(folders()), "targets": list(targets())}
    lines = [
        f'"{part}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]"
        for part, rows in parts.items()
    ]
    (GOLDEN / "variants.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    first = parts["folders"][0]["logits"]
    for row in parts["folders"]:
        print(row["model"], row["changed"], row["tensors"], "as the first" if row["logits"] == first else "other logits")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main()
