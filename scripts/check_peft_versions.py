#!/usr/bin/env python3
"""Reads adapters that qwentune wrote with several versions of PEFT, and compares every layer with W + scale B A.

    scripts/check_peft_versions.py PROGRAM PYTHON...

PYTHON are interpreters with torch and one PEFT each (0.5, 0.8, 0.12, 0.15 and the current one were tried). For each case
of CASES, PROGRAM trains one step on a tiny model and writes an adapter; each PEFT reads it onto linear layers with the
model's names, and each layer's output must be that of the base's weight and the case's own scale and rank to 1e-6. A
version that cannot read a case must say so by an error, but for those of KNOWN, which are told in docs/adapters.md.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests" / "golden" / "train" / "qwen3-untied-f32" / "model"
# Name, flags; rank and alpha of a layer by its module's name; whether the scale is alpha / sqrt(r).
CASES = {
    "plain": (["--lora-r", "4", "--lora-alpha", "8"], lambda name: (4, 8.0), False),
    "all linear": (["--lora-target-modules", "all"], lambda name: (4, 8.0), False),
    "blocks": (["--layers-to-transform", "1"], lambda name: (4, 8.0), False),
    "excluded": (["--lora-exclude-modules", "k_proj", "--lora-target-modules", "q_proj,k_proj"], lambda name: (4, 8.0), False),
    "ranks": (["--lora-rank-pattern", '{"q_proj": 2}'], lambda name: (2 if "q_proj" in name else 4, 8.0), False),
    "both": (["--lora-rank-pattern", '{"q_proj": 2}', "--lora-alpha-pattern", '{"^model.layers.0.self_attn.q_proj": 3}'],
             lambda name: (2 if "q_proj" in name else 4, 3.0 if "layers.0.self_attn.q_proj" in name else 8.0), False),
    "rslora": (["--use-rslora", "true"], lambda name: (4, 8.0), True),
}
# PEFT before 0.6 knows neither tables nor rsLoRA and passes keys over that it does not know; before 0.15 it looked one
# key up in both tables and matched it behind a dot only.
KNOWN = {("0.5", "ranks"), ("0.5", "both"), ("0.5", "rslora"), ("0.8", "both"), ("0.12", "both")}
READER = '''
import json, sys, torch, peft
from peft import PeftModel
from safetensors.torch import load_file
folder, shapes, scales = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
torch.manual_seed(0)
class Base(torch.nn.Module):
    config = type("Config", (), {"to_dict": lambda self: {"model_type": "qwen3"}, "get": lambda self, *a: None})()
    def prepare_inputs_for_generation(self, *arguments, **more): pass
base = Base()
for name, (out, width) in shapes.items():
    at = base
    *path, last = name.split(".")
    for step in path:
        if not hasattr(at, step):
            at.add_module(step, torch.nn.Module())
        at = getattr(at, step)
    at.add_module(last, torch.nn.Linear(width, out, bias=False))
weights = {name: base.get_submodule(name).weight.detach().clone() for name in shapes}
written = load_file(folder + "/adapter_model.safetensors")
model = PeftModel.from_pretrained(base, folder).eval()
worst = 0.0
for name, weight in weights.items():
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
    keys = ["base_model.model." + name + ".lora_" + side + ".weight" for side in "AB"]
    wanted = weight.double()
    if keys[0] in written:
        wanted = wanted + scales[name] * written[keys[1]].double() @ written[keys[0]].double()
    wanted = x.double() @ wanted.T
    with torch.no_grad():
        given = model.base_model.model.get_submodule(name)(x).double()
    worst = max(worst, ((given - wanted).norm() / wanted.norm()).item())
print(json.dumps([peft.__version__, worst]))
'''


def written(program, flags, folder):
    """The adapter of one step."""
    rows = folder / "rows.jsonl"
    rows.write_text('{"input_ids": [1, 2, 3, 4, 5, 6]}\n')
    flags = dict(zip(flags[::2], flags[1::2]))
    given = {"--lora-r": "4", "--lora-alpha": "8", "--lora-target-modules": "q_proj,up_proj", **flags}
    command = [program, "train", "--model", str(MODEL), "--train-file", str(rows), "--output-dir", str(folder / "run"),
               "--max-steps", "1", "--learning-rate", "0.1", "--device", "cpu", *[one for pair in given.items() for one in pair]]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "run" / "adapter"


def layers():
    """The linear layers of the model's blocks: name to [out, in]."""
    from safetensors import safe_open  # pylint: disable=import-outside-toplevel

    with safe_open(MODEL / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if ".layers." in name and name.endswith("_proj.weight")]
        return {name.removesuffix(".weight"): file.get_slice(name).get_shape() for name in names}


def main():
    """Compares, and prints a line for each version and case."""
    program, *pythons = sys.argv[1:]
    shapes, wrong = layers(), False
    for case, (flags, numbers, rslora) in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            adapter = written(program, flags, Path(name))
            scales = {layer: numbers(layer)[1] / numbers(layer)[0] ** (0.5 if rslora else 1) for layer in shapes}
            for python in pythons:
                command = [python, "-W", "ignore", "-c", READER, str(adapter), json.dumps(shapes), json.dumps(scales)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                version = Path(python).parent.parent.name.rpartition("-")[2]
                if done.returncode:
                    print(f"{case}: PEFT {version} refuses it: {done.stderr.strip().splitlines()[-1][:120]}")
                    wrong |= (version, case) not in KNOWN
                    continue
                version, worst = json.loads(done.stdout.splitlines()[-1])
                known = (".".join(version.split(".")[:2]), case) in KNOWN
                print(f"{case}: PEFT {version}: {worst:.2e}{' (known, told in docs/adapters.md)' if known else ''}")
                wrong |= worst > 1e-6 and not known
    sys.exit(wrong)


if __name__ == "__main__":
    main()
