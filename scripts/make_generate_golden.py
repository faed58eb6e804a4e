#!/usr/bin/env python3
"""Writes tests/golden/generate.json and repetition.json: what transformers generates with the models and adapters of tests/golden/train,
greedily, in float32 on the CPU; and what its warpers make of logits.

    pip install -r scripts/requirements-golden.txt
    python scripts/make_generate_golden.py [--penalties]

Qwen v1 has no transformers class: it goes through qwen_reference.py, which computes every token's whole text again.
Prompts are drawn until the likeliest token is ahead by MARGIN at every step, so that float32 cannot decide which it is.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from qwen_reference import load_base, logits_of

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
MARGIN = 2e-3
# Case, changed keys of its config.json, prompt lengths, new tokens. The last one leaves the trained length while it
# generates, and with prompts of twice and of four times that length.
CASES = [(name, {}, [1, 7, 19, 33], 16) for name in sorted(path.name for path in (GOLDEN / "train").iterdir())] + [
    ("qwen1-all-bf16", {"seq_length": 24}, [20, 40, 70], 24),
]


def load(case, overrides, adapted):
    """The base model, wrapped by its trained adapter or not."""
    folder = GOLDEN / "train" / case
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        shutil.copytree(folder / "model", copy)
        config = json.loads((copy / "config.json").read_text()) | overrides
        (copy / "config.json").write_text(json.dumps(config))
        base = load_base(copy)
    model = PeftModel.from_pretrained(base, folder / "final") if adapted else base
    return base, model.eval()


def generated(base, model, prompt, count, penalty=1.0):
    """(tokens, how far the likeliest was ahead at least, logits after the prompt)."""
    ids = torch.tensor([prompt])
    if hasattr(base, "prompt_length"):
        base.prompt_length, steps = len(prompt), []
        for _ in range(count):
            steps.append(logits_of(model, ids)[:, -1])
            ids = torch.cat((ids, steps[-1].argmax(-1, keepdim=True)), dim=1)
        tokens = ids[0, len(prompt):].tolist()
    else:
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
            eos_token_id=None, pad_token_id=0, output_logits=True, output_scores=True, return_dict_in_generate=True,
            repetition_penalty=penalty,
        )
        steps, tokens = list(out.logits if penalty == 1.0 else out.scores), out.sequences[0, len(prompt):].tolist()
    best = torch.cat(steps).topk(2).values
    return tokens, float((best[:, 0] - best[:, 1]).min()), steps[0][0]


def rows_of(case, overrides, adapted, lengths, count):
    base, model = load(case, overrides, adapted)
    vocab = json.loads((GOLDEN / "train" / case / "model" / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(len(case) + adapted)
    for length in lengths:
        while True:
            prompt = torch.randint(0, vocab, (length,), generator=generator).tolist()
            tokens, margin, logits = generated(base, model, prompt, count)
            if margin > MARGIN:
                break
        first = [round(float(x), 6) for x in logits[:8]]
        yield {"prompt": prompt, "tokens": tokens, "logits": first}


def warped():
    """Probabilities of a row of logits by every setting."""
    logits = (torch.randn(40, generator=torch.Generator().manual_seed(5)) * 3).round(decimals=3)
    for temperature, top_k, top_p in [
        (1.0, 0, 1.0), (0.5, 0, 1.0), (1.7, 0, 1.0), (1.0, 5, 1.0), (0.7, 1, 1.0), (1.0, 0, 0.9), (0.8, 0, 0.5),
        (1.0, 0, 0.01), (0.7, 20, 0.8), (2.0, 12, 0.95), (1.0, 100, 1.0),
    ]:
        scores = TemperatureLogitsWarper(temperature)(None, logits[None])
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        yield {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "logits": logits.tolist(),
            "probabilities": scores.double().softmax(-1)[0].tolist(),
        }


def penalised():
    """Greedy answers under a repetition penalty, of a model with an adapter and of one without."""
    for case, adapted, penalty in [("qwen2-mha-untied-f32", False, 1.3), ("qwen3-untied-f32", True, 1.05),
                                   ("qwen2-gqa-tied-bf16", True, 5.0), ("qwen3-gqa-tied-bf16", False, 0.8)]:
        base, model = load(case, {}, adapted)
        vocab = json.loads((GOLDEN / "train" / case / "model" / "config.json").read_text())["vocab_size"]
        generator = torch.Generator().manual_seed(7)
        for length in [1, 9, 26]:
            while True:
                prompt = torch.randint(0, vocab, (length,), generator=generator).tolist()
                tokens, margin, _ = generated(base, model, prompt, 24, penalty)
                if margin > MARGIN:
                    break
            plain = generated(base, model, prompt, 24)[0]
            yield {"model": case, "overrides": {}, "adapter": adapted, "penalty": penalty, "prompt": prompt,
                   "tokens": tokens, "without": plain}


def write_penalised():
    lines = [json.dumps(row, separators=(",", ":")) for row in penalised()]
    (GOLDEN / "repetition.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main():
    write_penalised()
    if "--penalties" in sys.argv:
        return
    cases = []
    for case, overrides, lengths, count in CASES:
        for adapted in [False, True]:
            rows = list(rows_of(case, overrides, adapted, lengths, count))
            cases.append({"model": case, "overrides": overrides, "adapter": adapted, "rows": rows})
            print(case, overrides, adapted, len(set(sum((row["tokens"] for row in rows), []))), "different tokens")
    lines = [json.dumps(case, separators=(",", ":")) for case in cases]
    warps = [json.dumps(case, separators=(",", ":")) for case in warped()]
    text = '{"cases": [\n' + ",\n".join(lines) + '\n], "sampling": [\n' + ",\n".join(warps) + "\n]}\n"
    (GOLDEN / "generate.json").write_text(text)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
