#!/usr/bin/env python3
"""Writes tests/golden: what transformers, PEFT and PyTorch's AdamW compute in float32 on the CPU.

    pip install -r scripts/requirements-golden.txt
    python scripts/make_golden.py                 # everything
    python scripts/make_golden.py --noise         # how far float32 is from float64, case by case; writes nothing

A step's loss is the sum over the scored tokens of all its micro-batches divided by their number. Rows come in file
order, every epoch the same; the last, partial accumulation window of an epoch is a step.
"""

import argparse
import json
import math
import shutil
import tempfile
import zlib
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_scheduler
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from golden_cases import ALL, CASES, MODULES, PATTERNS, SCHEDULES, qwen1, qwen2, qwen3
from qwen_reference import ALL_LINEAR, build, load_base, summed_loss

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


# ---- the files of a case ----------------------------------------------------------------------------------------


def random_weights(model, generator):
    """Weights with which every part matters: activations of order one, biases and norm weights that are not trivial."""
    tensors = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 2:
            spread = 0.5 if "embed_tokens" in name or "wte" in name else 1.0
            tensors[name] = noise * spread / math.sqrt(value.shape[1])
        else:
            tensors[name] = (0.0 if name.endswith("bias") else 1.0) + 0.2 * noise
    return tensors


def write_model(folder, case, generator):
    """config.json and the weights in the case's storage type, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    config = {key: value for key, value in case["config"].items() if key not in case.get("drop_keys", [])}
    write_json(folder / "config.json", config)
    tensors = random_weights(build(config), generator)
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if not case.get("store_tied_head"):
            del tensors["lm_head.weight"]
    tensors = {name: tensor.to(DTYPES[case["dtype"]]).contiguous() for name, tensor in tensors.items()}
    count = case.get("shards", 1)
    if count == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for shard in range(count):  # dealt out in turn, so that the tensors of one layer lie in several files
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::count]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= {name: file for name in part}
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_rows(path, case, generator):
    """Pre-tokenised rows of 5 to 40 tokens. Most mask a prompt, some a gap inside as well, some have no labels."""

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    rows = []
    for index in range(case["rows"]):
        length = draw(5, 41)
        ids = torch.randint(0, case["config"]["vocab_size"], (length,), generator=generator).tolist()
        row = {"input_ids": ids}
        if index % 5 != 4:
            prompt = draw(0, length - 2)
            row["labels"] = [-100] * prompt + ids[prompt:]
            if index % 3 == 0:
                row["labels"][length - 2] = -100
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def lora_config(flags, family):
    text = flags["lora-target-modules"]
    targets = ALL_LINEAR[family] if text == ALL else [name.strip(" '") for name in text.strip("[]").split(",")]
    layers = flags.get("layers-to-transform")
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=flags["lora-r"],
        lora_alpha=flags["lora-alpha"],
        target_modules=targets,
        use_rslora=flags.get("use-rslora") == "true",
        rank_pattern=json.loads(flags.get("lora-rank-pattern", "{}")),
        alpha_pattern=json.loads(flags.get("lora-alpha-pattern", "{}")),
        layers_to_transform=layers and [int(layer) for layer in layers.split(",")],
    )


def save_adapter(model, folder):
    """As save_pretrained writes it, without the model card and without the order of a Python set."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    config["base_model_name_or_path"] = None  # PEFT writes the folder the model was loaded from
    write_json(folder / "adapter_config.json", config)


def write_random_adapter(base, folder, case, flags, generator):
    model = get_peft_model(load_base(base), lora_config(flags, case["config"]["model_type"]))
    for name, value in sorted(model.named_parameters()):
        if "lora_" in name:  # B is not zero, so that A has a gradient from the first step
            spread = 1.0 / math.sqrt(value.shape[1]) if "lora_A" in name else 0.1
            value.data = torch.randn(value.shape, generator=generator) * spread
    save_adapter(model, folder)


def folded_base(folder, case):
    """The base in float32, with the case's folded adapters merged into it one by one in its storage type."""
    if not case.get("folded"):
        return load_base(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=DTYPES[case["dtype"]], attn_implementation="eager"
    )
    for index in range(len(case["folded"])):
        model = PeftModel.from_pretrained(model, folder / f"folded-{index}").merge_and_unload()
    return model.float()


def starting_model(folder, case):
    return PeftModel.from_pretrained(folded_base(folder, case), folder / "init", is_trainable=True)


# ---- training ---------------------------------------------------------------------------------------------------


def optimizer_of(model, flags):
    trained = [value for value in model.parameters() if value.requires_grad]
    kwargs = dict(lr=flags["learning-rate"], betas=(0.9, flags.get("adam-beta2", 0.999)), eps=1e-8)
    ratio = flags.get("loraplus-lr-ratio", 1)
    if ratio == 1:
        return torch.optim.AdamW(trained, weight_decay=flags["weight-decay"], **kwargs)
    kwargs |= dict(loraplus_lr_ratio=ratio, loraplus_weight_decay=flags["weight-decay"])
    return create_loraplus_optimizer(model, torch.optim.AdamW, **kwargs)


def scheduler_of(optimizer, flags):
    steps, warmup = flags["max-steps"], flags.get("warmup-steps", 0)
    ratio = flags.get("warmup-ratio", warmup if warmup < 1 else 0)
    warmup = math.ceil(steps * ratio) if ratio else warmup
    kwargs = json.loads(flags.get("lr-scheduler-kwargs", "null"))
    return get_scheduler(flags["lr-scheduler-type"], optimizer, warmup, steps, kwargs)


def epoch_windows(rows, flags):
    """The optimizer steps of one epoch: each a list of micro-batches, each a list of rows."""
    size, depth = flags["per-device-train-batch-size"], flags.get("gradient-accumulation-steps", 1)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [batches[start : start + depth] for start in range(0, len(batches), depth)]


def train(model, rows, flags):
    """Loss, gradient norm before clipping and learning rate of each step; the model is trained in place."""
    optimizer = optimizer_of(model, flags)
    scheduler = scheduler_of(optimizer, flags)
    trained = [value for value in model.parameters() if value.requires_grad]
    windows = epoch_windows(rows, flags)
    history = {"loss": [], "grad_norm": [], "lr": []}
    for step in range(flags["max-steps"]):
        window = windows[step % len(windows)]
        scored = sum(row.get("labels", row["input_ids"])[1:].count(-100) for batch in window for row in batch)
        scored = sum(len(row["input_ids"]) - 1 for batch in window for row in batch) - scored
        total = 0.0
        for batch in window:
            loss, _ = summed_loss(model, batch)
            (loss / scored).backward()
            total += loss.item()
        history["loss"].append(total / scored)
        history["grad_norm"].append(torch.nn.utils.clip_grad_norm_(trained, flags["max-grad-norm"]).item())
        history["lr"].append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return history


def flag_list(flags):
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def write_case(case):
    folder = GOLDEN / "train" / case["name"]
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(zlib.crc32(case["name"].encode()))
    write_model(folder / "model", case, generator)
    rows = write_rows(folder / "data.jsonl", case, generator)
    for index, flags in enumerate(case.get("folded", [])):
        write_random_adapter(folder / "model", folder / f"folded-{index}", case, flags, generator)
    write_random_adapter(folder / "model", folder / "init", case, case["flags"], generator)
    write_json(folder / "args.json", flag_list(case["flags"]))
    model = starting_model(folder, case)
    history = train(model, rows, case["flags"])
    save_adapter(model, folder / "final")
    write_json(folder / "expected.json", history | {"versions": VERSIONS})
    clipped = sum(norm > case["flags"]["max-grad-norm"] for norm in history["grad_norm"])
    print(f"{case['name']}: loss {history['loss'][0]:.4f} -> {history['loss'][-1]:.4f}, {clipped} of 20 steps clipped")


# ---- schedules and names ----------------------------------------------------------------------------------------


def write_schedules(base=3e-4, steps=40):
    table = []
    for name, kwargs, warmup in SCHEDULES:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=base)
        scheduler = get_scheduler(name, optimizer, warmup, steps, kwargs or None)
        values = []
        for _ in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        table.append({"name": name, "kwargs": kwargs, "warmup": warmup, "steps": steps, "base_lr": base, "lr": values})
    path = GOLDEN / "schedules.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in table) + "\n]\n")


def write_peft_keys():
    """Names and shapes of the tensors PEFT writes for one layer of each family, all linear layers adapted."""
    configs = {"qwen": qwen1(64, 88, 1, 4, 256), "qwen2": qwen2(64, 96, 1, 4, 2, 256, True)}
    configs["qwen3"] = qwen3(64, 96, 1, 4, 2, 32, 256, True)
    table = {}
    for family, config in configs.items():
        model = get_peft_model(
            build(config),
            lora_config({"lora-r": 4, "lora-alpha": 8, "lora-target-modules": ALL}, family),
        )
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(model, Path(folder))
            tensors = load_file(Path(folder) / "adapter_model.safetensors")
            adapter_config = json.loads((Path(folder) / "adapter_config.json").read_text())
        shapes = {name: list(tensors[name].shape) for name in sorted(tensors)}
        table[family] = {"config": config, "tensors": shapes, "adapter_config": adapter_config}
    write_json(GOLDEN / "peft_keys.json", table | {"versions": VERSIONS})


def write_patterns():
    """Which module names each pattern matches by PEFT's own rule."""

    def matches(pattern, name):  # as PEFT looks up a rank
        return {pattern: True}.get(get_pattern_key([pattern], name), False)

    table = {pattern: [name for name in MODULES if matches(pattern, name)] for pattern in PATTERNS}
    write_json(GOLDEN / "peft_patterns.json", {"modules": MODULES, "matches": table, "versions": VERSIONS})


# ---- float64 ----------------------------------------------------------------------------------------------------


class TorchWithWideFloat:
    """Stands for `torch` inside a modelling file, whose norms and softmax name float32: with it they keep float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def relative(value, truth):
    return max(abs(a - b) / abs(b) for a, b in zip(value, truth))


def print_noise(case):
    folder = GOLDEN / "train" / case["name"]
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    expected = json.loads((folder / "expected.json").read_text())
    model = starting_model(folder, case).double()
    for module in (modeling_qwen2, modeling_qwen3):
        module.torch = TorchWithWideFloat()
    history = train(model, rows, case["flags"])
    for module in (modeling_qwen2, modeling_qwen3):
        module.torch = torch
    final = load_file(folder / "final" / "adapter_model.safetensors")
    wide = {
        name.replace(".default", ""): value.detach() for name, value in model.named_parameters() if value.requires_grad
    }
    assert wide.keys() == final.keys()
    adapter = max(float((final[name] - value).norm() / value.norm()) for name, value in wide.items())
    element = max(float((final[name] - value).abs().max() / value.abs().max()) for name, value in wide.items())
    print(
        f"{case['name']}: loss {relative(expected['loss'], history['loss']):.1e}, gradient norm "
        f"{relative(expected['grad_norm'], history['grad_norm']):.1e}, adapter {adapter:.1e} (norm of a tensor), "
        f"{element:.1e} (largest element)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", action="store_true", help="write the schedules alone")
    parser.add_argument("--noise", action="store_true", help="compare the written cases with float64")
    arguments = parser.parse_args()
    if arguments.schedules:
        return write_schedules()
    noise = arguments.noise
    torch.set_num_threads(1)  # one order of summation on every machine
    for case in CASES:
        print_noise(case) if noise else write_case(case)
    if not noise:
        write_schedules()
        write_peft_keys()
        write_patterns()


if __name__ == "__main__":
    main()
