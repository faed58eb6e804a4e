#!/usr/bin/env python3
"""Loads an adapter folder with PEFT itself, on its base model in float32, and says whether it means the same there.

    pip install -r scripts/requirements-golden.txt
    python scripts/check_adapter_with_peft.py --model MODEL --adapter RUN/adapter [--rows ROWS.jsonl [--loss 1.234]]

Checks that PEFT takes every tensor of the file, none is missing, and the values are those of the file; with rows
({"input_ids", "labels"?}), computes their loss, the sum over all scored tokens divided by their number, and compares it
with --loss. Exit status 1 when something does not hold.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from qwen_reference import load_base, summed_loss


def differences(written, loaded):
    """What is not the same in the adapter file and in the model PEFT made of it."""
    found = [f"PEFT did not take {name}" for name in sorted(written.keys() - loaded.keys())]
    found += [f"the file lacks {name}" for name in sorted(loaded.keys() - written.keys())]
    for name in sorted(written.keys() & loaded.keys()):
        ours, theirs = written[name], loaded[name]
        if ours.shape != theirs.shape:
            found.append(f"{name} is {list(ours.shape)} in the file, {list(theirs.shape)} in PEFT")
        elif not torch.equal(ours.float(), theirs.float()):
            found.append(f"{name} has other values in PEFT than in the file")
    return found


@torch.no_grad()
def loss_of(model, path):
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    parts = [summed_loss(model, [row]) for row in rows]
    return sum(loss.item() for loss, _ in parts) / sum(scored for _, scored in parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--adapter", type=Path, required=True, help="the folder with adapter_model.safetensors")
    parser.add_argument("--rows", type=Path, help="JSON Lines with input_ids and, optionally, labels")
    parser.add_argument("--loss", type=float, help="what the loss on the rows should be")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative (default 1e-5)")
    args = parser.parse_args()
    if args.loss is not None and args.rows is None:
        parser.error("--loss needs --rows")
    model = PeftModel.from_pretrained(load_base(args.model), args.adapter).eval()
    written = load_file(args.adapter / "adapter_model.safetensors")
    found = differences(written, get_peft_model_state_dict(model, save_embedding_layers=False))
    print(f"{len(written)} tensors, {sum(tensor.numel() for tensor in written.values())} values")
    if args.rows:
        loss = loss_of(model, args.rows)
        print(f"loss {loss!r}")
        if args.loss is not None and not abs(loss - args.loss) <= args.tolerance * abs(args.loss):
            found.append(f"loss {loss!r} is not {args.loss!r} within {args.tolerance}")
    for line in found:
        print(line, file=sys.stderr)
    print("differs" if found else "the same")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
