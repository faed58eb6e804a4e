#!/usr/bin/env python3
"""The quickstart's fine-tuning with PEFT: development loss before and after, and the F1 of the extracted entities.

    python benches/peers/quickstart_peft.py [--steps 188] [--learning-rate 2e-3] ...

The same rows, template, masks and token-weighted loss as `qwentune train`; float32 on the CPU.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import get_scheduler

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from qwen_reference import ALL_LINEAR, load_base, pad_batch, summed_loss  # noqa: E402

QUICKSTART = ROOT / "examples" / "quickstart"
SYSTEM = "You are a helpful assistant."


def read_rows(name):
    return [json.loads(line) for line in (QUICKSTART / name).read_text().splitlines()]


def prompt_ids(tokenizer, instruction):
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(text).ids


def training_row(tokenizer, row):
    """Scored: the answer and its <|im_end|>."""
    prompt = prompt_ids(tokenizer, row["instruction"])
    answer = tokenizer.encode(row["output"] + "<|im_end|>").ids
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


@torch.no_grad()
def mean_loss(model, rows):
    parts = [summed_loss(model, rows[start : start + 10]) for start in range(0, len(rows), 10)]
    return sum(loss.item() for loss, _ in parts) / sum(scored for _, scored in parts)


def fine_tune(model, rows, args):
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    scheduler = get_scheduler("linear", optimizer, args.warmup, args.steps)
    order, rng, place = list(range(len(rows))), random.Random(1), len(rows)
    for _ in range(args.steps):
        if place + args.batch > len(rows):
            rng.shuffle(order)
            place = 0
        batch = [rows[index] for index in order[place : place + args.batch]]
        place += args.batch
        loss, scored = summed_loss(model, batch)
        (loss / scored).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@torch.no_grad()
def answers(model, tokenizer, rows, limit=96):
    """Greedy answers, rows of equal prompt length together."""
    stop = tokenizer.token_to_id("<|im_end|>")
    groups = {}
    for place, row in enumerate(rows):
        ids = prompt_ids(tokenizer, row["instruction"])
        groups.setdefault(len(ids), []).append((place, ids))
    out = [""] * len(rows)
    for group in groups.values():
        ids, _ = pad_batch([{"input_ids": ids} for _, ids in group])
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
        for (place, prompt), tokens in zip(group, made.tolist()):
            tokens = tokens[len(prompt) :]
            out[place] = tokenizer.decode(tokens[: tokens.index(stop)] if stop in tokens else tokens)
    return out


def pairs_of(answer):
    """(entity, type) pairs of an answer; an answer that is not a JSON object of lists has none."""
    try:
        return [(str(name), kind) for kind, names in json.loads(answer).items() for name in names]
    except (ValueError, AttributeError, TypeError):
        return []


def f1_score(rows, outputs):
    right = found = wanted = 0
    for row, output in zip(rows, outputs):
        gold = Counter((item["entity"], item["entity_type"]) for item in json.loads(row["label"]))
        predicted = Counter(pairs_of(output))
        right += sum((gold & predicted).values())
        found += sum(predicted.values())
        wanted += sum(gold.values())
    return 2 * right / max(1, found + wanted)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=188, help="of 8 rows; 188 are one epoch")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(QUICKSTART / "model" / "tokenizer.json"))
    train, dev = ([training_row(tokenizer, row) for row in read_rows(name)] for name in ("train.jsonl", "dev.jsonl"))
    test = read_rows("test.jsonl")
    lengths = sorted(len(row["input_ids"]) for row in train + dev)
    print(f"tokens a row: {lengths[0]} to {lengths[-1]}, mean {sum(lengths) / len(lengths):.0f}")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=args.rank, lora_alpha=2 * args.rank, target_modules=ALL_LINEAR["qwen2"]
    )
    model = get_peft_model(load_base(QUICKSTART / "model"), config)
    print(
        f"before: dev loss {mean_loss(model, dev):.4f}, test F1 {f1_score(test, answers(model, tokenizer, test)):.3f}"
    )
    started = time.time()
    fine_tune(model, train, args)
    seconds = time.time() - started
    outputs = answers(model, tokenizer, test)
    print(f"{args.steps} steps in {seconds:.0f} s")
    print(f"after: dev loss {mean_loss(model, dev):.4f}, test F1 {f1_score(test, outputs):.3f}")
    print(outputs[0])


if __name__ == "__main__":
    main()
