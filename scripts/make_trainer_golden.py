#!/usr/bin/env python3
"""Writes tests/golden/trainer: checkpoints of Hugging Face's Trainer + PEFT, and the 20 losses and learning rates with
which Trainer itself goes on from each (float32, CPU, rows in file order, no dropout).

    pip install -r scripts/requirements-golden.txt
    python scripts/make_trainer_golden.py

Models and rows are those of tests/golden/train. A case named `deepke` has the files of DeepKE's time: a pickled
adapter_model.bin, the adapter_config.json of PEFT 0.4, a trainer_state.json without the newer fields.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from qwen_reference import ALL_LINEAR, load_base
from trainer_reference import SequentialTrainer, arguments, read_rows, trained_model

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
KEPT = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "optimizer.pt", "scheduler.pt"]

CASES = [
    dict(
        name="current-qwen2", source="qwen2-gqa-tied-bf16", family="qwen2", stop=6, r=4, alpha=8,
        arguments=dict(
            per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3, weight_decay=0.1,
            lr_scheduler_type="cosine", warmup_steps=3, max_grad_norm=1.9, max_steps=30,
        ),
    ),
    dict(
        name="current-qwen3-loraplus", source="qwen3-gqa-tied-bf16", family="qwen3", stop=9, r=2, alpha=8,
        targets=["q_proj", "v_proj", "down_proj"], lora_plus=4.0,
        arguments=dict(
            per_device_train_batch_size=3, gradient_accumulation_steps=3, learning_rate=5e-4, weight_decay=0.01,
            lr_scheduler_type="constant_with_warmup", warmup_steps=4, max_grad_norm=1.0, num_train_epochs=15,
            adam_beta2=0.95,
        ),
    ),
    dict(
        name="deepke-qwen1", source="qwen1-all-bf16", family="qwen", stop=7, r=4, alpha=8, old=True,
        arguments=dict(
            per_device_train_batch_size=2, gradient_accumulation_steps=4, learning_rate=5e-4, lr_scheduler_type="linear",
            max_grad_norm=0.5, num_train_epochs=15,
        ),
    ),
]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def fresh_model(case, folder):
    targets = case.get("targets", ALL_LINEAR[case["family"]])
    config = LoraConfig(task_type="CAUSAL_LM", r=case["r"], lora_alpha=case["alpha"], target_modules=targets)
    model = get_peft_model(load_base(folder / "model"), config)
    generator = torch.Generator().manual_seed(11)
    for name, value in sorted(model.named_parameters()):
        if "lora_" in name:  # B is not zero, so that A has a gradient from the first step
            spread = 1.0 / math.sqrt(value.shape[1]) if "lora_A" in name else 0.1
            value.data = torch.randn(value.shape, generator=generator) * spread
    return model


def make_old(folder):
    """The same checkpoint as PEFT 0.4 and transformers 4.33 would have written it."""
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    now = json.loads((folder / "adapter_config.json").read_text())
    old = ["base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
           "lora_dropout", "modules_to_save", "peft_type", "r", "revision", "target_modules", "task_type",
           "layers_to_transform", "layers_pattern"]
    write_json(folder / "adapter_config.json", {key: now[key] for key in old} | {"auto_mapping": None})
    state = json.loads((folder / "trainer_state.json").read_text())
    old = ["best_metric", "best_model_checkpoint", "epoch", "global_step", "is_hyper_param_search",
           "is_local_process_zero", "is_world_process_zero", "log_history", "max_steps", "num_train_epochs",
           "total_flos", "trial_name", "trial_params"]
    write_json(folder / "trainer_state.json", {key: state[key] for key in old})


def write_case(case, scratch):
    source, target = GOLDEN / "train" / case["source"], GOLDEN / "trainer" / case["name"]
    rows, stop, more = read_rows(source / "data.jsonl"), case["stop"], case["arguments"]
    trainer = SequentialTrainer(
        fresh_model(case, source), arguments(scratch, save_steps=stop, **more), train_dataset=rows,
        lora_plus=case.get("lora_plus"),
    )
    trainer.train()
    checkpoint = scratch / f"checkpoint-{stop}"
    whole = dict(loss=trainer.losses.loss[stop : stop + 20], lr=trainer.losses.lr[stop : stop + 20])
    resumed = SequentialTrainer(
        trained_model(load_base(source / "model"), checkpoint), arguments(scratch / "again", save_steps=1000, **more),
        train_dataset=rows, lora_plus=case.get("lora_plus"),
    )
    resumed.train(resume_from_checkpoint=str(checkpoint))
    following = dict(loss=resumed.losses.loss[:20], lr=resumed.losses.lr[:20])
    assert len(following["loss"]) == 20 and following == whole, "Trainer does not follow itself"
    shutil.rmtree(target, ignore_errors=True)
    kept = target / checkpoint.name
    kept.mkdir(parents=True)
    if case.get("old"):
        make_old(checkpoint)
    for name in KEPT:
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, kept / name)
    config = json.loads((kept / "adapter_config.json").read_text())
    config["target_modules"].sort()
    config["base_model_name_or_path"] = "base"
    write_json(kept / "adapter_config.json", config)
    shutil.copy(checkpoint / "trainer_state.json", kept / "trainer_state.json")
    write_json(target / "expected.json", following | {"source": case["source"], "arguments": more, "versions": VERSIONS})
    print(f"{case['name']}: step {stop}, then loss {following['loss'][0]:.4f} -> {following['loss'][-1]:.4f}")


def main():
    torch.set_num_threads(1)
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            write_case(case, Path(scratch))


if __name__ == "__main__":
    main()
