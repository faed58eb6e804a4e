#!/usr/bin/env python3
"""Takes the golden checkpoints of Hugging Face's Trainer through qwentune and back, and asks the real PEFT and Trainer
what they think of it. scripts/check-exchange runs it in an environment of its own.

For each checkpoint: imported and exported at once, its optimizer, schedule and adapter are those of the original, bit
for bit, and Trainer goes on from it with the 20 losses it has from the original. Trained further here and exported,
Trainer's losses are those of qwentune from there on. The same for a run that began here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from check_adapter_with_peft import differences
from qwen_reference import load_base
from trainer_reference import SequentialTrainer, arguments, read_rows, trained_model

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
TOLERANCE = 1e-4
FAILED = []


def check(what, holds):
    print(f"  {'ok  ' if holds else 'FAIL'} {what}")
    if not holds:
        FAILED.append(what)


def check_losses(what, found, expected, count):
    pairs = list(zip(found, expected))[:count]
    worst = max(abs(a - b) / abs(b) for a, b in pairs)
    check(f"{what}: {len(pairs)} losses, largest relative difference {worst:.1e}", len(pairs) == count and worst <= TOLERANCE)


def flags(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def adapter_of(folder):
    if (folder / "adapter_model.safetensors").exists():
        return load_file(folder / "adapter_model.safetensors")
    return torch.load(folder / "adapter_model.bin", weights_only=True)


def same(a, b):
    """Equal values; `fused` only says which code computes them."""
    if isinstance(a, dict):
        ours, theirs = a.keys() - {"fused"}, b.keys() - {"fused"}
        return ours == theirs and all(same(a[key], b[key]) for key in ours)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def check_content(exported, original):
    for name in ["optimizer.pt", "scheduler.pt"]:
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (exported, original))
        check(f"{name} holds what the original holds", same(ours, theirs))
    ours, theirs = adapter_of(exported), adapter_of(original)
    check("the adapter is the original", ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours))
    ours, theirs = (json.loads((folder / "trainer_state.json").read_text()) for folder in (exported, original))
    kept = ["global_step", "epoch", "max_steps", "num_train_epochs"]
    check("trainer_state.json is as far", all(ours[key] == theirs[key] for key in kept))


def check_with_peft(base, exported):
    model = PeftModel.from_pretrained(load_base(base), exported)
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    check("PEFT takes every tensor", not differences(load_file(exported / "adapter_model.safetensors"), loaded))


def resumed(case, checkpoint, scratch):
    """The losses with which Trainer goes on from a checkpoint."""
    source = GOLDEN / "train" / case["source"]
    trainer = SequentialTrainer(
        trained_model(load_base(source / "model"), checkpoint),
        arguments(scratch / "trainer", save_steps=1000, **case["arguments"]),
        train_dataset=read_rows(source / "data.jsonl"), lora_plus=case.get("lora_plus"),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer.losses.loss


class Program:
    def __init__(self, path, scratch):
        self.path, self.scratch = path, scratch

    def run(self, *words):
        words = [str(word) for word in words]
        done = subprocess.run([self.path, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"qwentune {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def inputs(self, case):
        source = GOLDEN / "train" / case["source"]
        return ["--model", source / "model", "--train-file", source / "data.jsonl", "--shuffle", "false",
                "--cache-dir", self.scratch / "cache"]

    def losses(self, run):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines}


def check_later(program, case, run, step, name):
    """A run of ours, whole and saved at `step` too: Trainer goes on from there as we did."""
    out = program.scratch / f"{name}-later"
    program.run("export", run / "checkpoints" / f"step-{step:08}.qckpt", out, "--format", "hf-trainer")
    ours = program.losses(run)
    count = max(ours) - step
    theirs = resumed(case, out, program.scratch)
    check_losses(f"exported at step {step}, Trainer goes on as qwentune did", theirs, [ours[step + 1 + i] for i in range(count)], count)


def check_golden(program, folder):
    print(folder.name)
    case = json.loads((folder / "expected.json").read_text())
    if "loraplus" in folder.name:
        case["lora_plus"] = 4.0
    original = next(folder.glob("checkpoint-*"))
    run, out = program.scratch / folder.name, program.scratch / f"{folder.name}-out"
    # What the checkpoint does not say, and nothing else, has to be told.
    told = ["gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "per_device_train_batch_size"]
    told = {key: value for key, value in case["arguments"].items() if key in told}
    print("  " + program.run("import", original, run, *program.inputs(case), *flags(told)).strip().replace("\n", "\n  "))
    program.run("export", run, out, "--format", "hf-trainer")
    check_content(out, original)
    check_with_peft(GOLDEN / "train" / case["source"] / "model", out)
    check_losses("Trainer goes on from the export", resumed(case, out, program.scratch), case["loss"], 20)
    program.run("resume", run, "--save-steps", 15)
    step = int(original.name.removeprefix("checkpoint-"))
    ours = program.losses(run)
    check_losses("qwentune goes on from the import", [ours[step + 1 + i] for i in range(20)], case["loss"], 20)
    check_later(program, case, run, 15, folder.name)


def check_own(program):
    print("a run that began here")
    case = dict(
        source="qwen3-untied-f32",
        arguments=dict(
            per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=2e-3, weight_decay=0.1,
            lr_scheduler_type="cosine", warmup_steps=4, max_grad_norm=1.0, max_steps=25, adam_beta2=0.99,
        ),
    )
    run = program.scratch / "own"
    program.run("train", *program.inputs(case), *flags(case["arguments"]), "--output-dir", run, "--lora-r", 4, "--save-steps", 10)
    check_later(program, case, run, 10, "own")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=ROOT / "target" / "release" / "qwentune", help="the built program")
    program = parser.parse_args().program
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        program = Program(program, Path(scratch))
        for folder in sorted((GOLDEN / "trainer").iterdir()):
            check_golden(program, folder)
        check_own(program)
    print(f"{len(FAILED)} checks failed" if FAILED else "all checks hold")
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
