#!/usr/bin/env python3
"""Reads an exported GGUF adapter with ggml's `gguf` package and compares it with the PEFT folder of the same run: names by
its own map of tensor names, and what llama.cpp computes, alpha / rank * B·A, with what PEFT computes.

    pip install gguf safetensors numpy
    scripts/check_gguf.py adapter.gguf RUN/adapter
"""

import json
import math
import re
import sys
from pathlib import Path

import gguf
import numpy
from safetensors.numpy import load_file


def main(path, folder):
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    assert field("general.type") == "adapter" and field("adapter.type") == "lora"
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == field("general.architecture"))
    names = gguf.get_tensor_name_map(arch, 256)
    alpha = field("adapter.lora.alpha")
    ours = {tensor.name: tensor.data for tensor in reader.tensors}

    config = json.loads((folder / "adapter_config.json").read_text())
    theirs = load_file(folder / "adapter_model.safetensors")
    worst = 0.0
    for name, b in theirs.items():
        if ".lora_B." not in name:
            continue
        a = theirs[name.replace(".lora_B.", ".lora_A.")]
        module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        base = names.get_name(module + ".weight", try_suffixes=(".weight",))
        matched = [v for k, v in config.get("alpha_pattern", {}).items() if re.match(rf"(.*\.)?({k})$", module)]
        scale = (matched or [config["lora_alpha"]])[0] / (
            math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0]
        )
        ga, gb = ours.pop(base + ".lora_a"), ours.pop(base + ".lora_b")
        assert ga.shape == a.shape and gb.shape == b.shape, (base, ga.shape, a.shape)
        got = alpha / gb.shape[1] * (gb.astype(numpy.float64) @ ga.astype(numpy.float64))
        wanted = scale * (b.astype(numpy.float64) @ a.astype(numpy.float64))
        norm = numpy.linalg.norm(wanted)
        worst = max(worst, numpy.linalg.norm(got - wanted) / norm if norm else numpy.linalg.norm(got))
    assert not ours, f"tensors of no layer: {sorted(ours)}"
    print(f"{len(theirs)} tensors of {field('general.architecture')}; largest relative error of a layer {worst:.1e}")
    assert worst < 1e-6


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
