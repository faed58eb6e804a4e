#!/usr/bin/env python3
"""Training and generation on the CPU, side by side: `qwentune` in f32 and bf16, and PEFT on PyTorch in float32 and bfloat16.

    pip install -r scripts/requirements-golden.txt
    python benches/peers/cpu_peft.py --qwentune target/release/qwentune --work /tmp/peers --out result.json
    python benches/peers/cpu_peft.py --readme benches/results/cpu-peers-*.json       # writes README.md's table

All train rank 8 on all linear layers of a model of Qwen2.5-0.5B's shapes with random bfloat16 weights, one row a step, every
token scored, AdamW, no recomputation; or continue a short prompt, greedily, one token at a time. Runs are interleaved, each in
a process of its own. Seconds are told twice: by the clock, and of the processor (all threads, user and system), which a
machine that others use too disturbs less. Memory is VmHWM, the kernel's own peak of resident pages, mapped files included.
Without --qwentune only PEFT is measured; --before names an older program that knows f32 alone.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 24,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "torch_dtype": "bfloat16",
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 1e-4


# ---- what is trained --------------------------------------------------------------------------------------------


def write_model(folder, layers):
    """Random weights, normal with deviation 0.02 (norm weights: about 1). Zeros would make arithmetic look cheaper."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    config = CONFIG | {"num_hidden_layers": layers, "max_window_layers": layers}
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).state_dict()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, value in shapes.items():
        if name != "lm_head.weight":  # tied
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            tensors[name] = (torch.randn(value.shape, generator=generator) * 0.02 + centre).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def write_rows(path, count, tokens):
    import random

    rng = random.Random(2)
    rows = [{"input_ids": [int(rng.random() * 151643) for _ in range(tokens)]} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(args):
    args.work.mkdir(parents=True, exist_ok=True)
    model = args.work / f"model-{args.layers}"
    if not (model / "config.json").exists():  # written last
        shutil.rmtree(model, ignore_errors=True)
        write_model(model, args.layers)
    return model


# ---- one measured process ---------------------------------------------------------------------------------------


TICKS = os.sysconf("SC_CLK_TCK")


def observed(pid):
    """(VmHWM, seconds of processor) of a process; zeros once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return peak, (int(fields[11]) + int(fields[12])) / TICKS
    except OSError:
        return 0, 0.0


def steps_in(path):
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def run_measured(command, log, lines):
    """Runs a command that appends a line with a loss to `lines` after each step. Gives for each step (seconds by the clock,
    of the processor) and the peak memory, which only grows."""
    began, marks, peak = time.perf_counter(), [(0.0, 0.0)], 0
    with log.open("w") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT)
        while process.poll() is None:
            now, processor = observed(process.pid)
            peak = max(peak, now)
            if processor and steps_in(lines) >= len(marks):
                marks.append((time.perf_counter() - began, processor))
            time.sleep(0.01)
    if process.returncode != 0:
        sys.exit(f"{command[0]} ended with {process.returncode}; its output is in {log}:\n{log.read_text()[-2000:]}")
    return [[b[0] - a[0], b[1] - a[1]] for a, b in zip(marks[1:], marks[2:])], peak


def summary(steps, peak, tokens):
    clock, processor = [statistics.median(column) for column in zip(*steps)]
    return {
        "tokens_per_second": tokens / clock,
        "tokens_per_processor_second": tokens / processor,
        "step_seconds": [step[0] for step in steps],
        "step_processor_seconds": [step[1] for step in steps],
        "peak_bytes": peak,
        "load": os.getloadavg()[0],
    }


def run_qwentune(args, program, dtype, model, rows, tokens):
    """`dtype` is None for a program that has no choice."""
    output = args.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    command = [program, "train", "--model", model, "--train-file", rows, "--output-dir", output, "--device", "cpu"]
    command += ["--per-device-train-batch-size", 1, "--max-steps", args.steps + 1, "--shuffle", "false"]
    command += ["--cutoff-len", tokens, "--lora-r", 8, "--lora-alpha", 16, "--lora-target-modules", "all-linear"]
    command += ["--learning-rate", LEARNING_RATE, "--recompute", "none", "--save-strategy", "no", "--logging-steps", 1]
    command += ["--threads", args.threads] + (["--dtype", dtype] if dtype else [])
    return summary(*run_measured(command, args.work / "qwentune.log", output / "metrics.jsonl"), tokens)


def run_peft(args, dtype, model, rows, tokens):
    lines = args.work / "peft.jsonl"
    lines.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--peft-worker", dtype, "--worker-model", model, "--worker-rows", rows]
    command += ["--out", lines, "--threads", args.threads, "--work", args.work]
    return summary(*run_measured(command, args.work / "peft.log", lines), tokens)


def peft_model(args):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.worker_model, dtype=getattr(torch, args.peft_worker))
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=LINEAR))


def peft_worker(args):
    """The PEFT side, as its users write it; appends a line after each step, or after each token."""
    import torch

    model, lines = peft_model(args), args.out.open("a")

    def told(loss):
        print(json.dumps({"loss": loss}), file=lines, flush=True)

    if args.worker_rows is None:
        return peft_tokens(model.eval(), args, told)
    model.config.use_cache = False
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    for line in args.worker_rows.read_text().splitlines():
        ids = torch.tensor([json.loads(line)["input_ids"]])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        told(loss.item())


PROMPT = 16


def peft_tokens(model, args, told):
    """One token after the other, with the cache of keys and values. A line stands for `EVERY` of them."""
    import torch

    ids, cache = torch.arange(100, 100 + PROMPT)[None], None
    with torch.no_grad():
        for count in range(args.steps * EVERY + EVERY):
            made = model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = made.logits[:, -1].argmax(-1, keepdim=True), made.past_key_values
            if count % EVERY == EVERY - 1:
                told(0.0)


EVERY = 8


def generate_peft(args, dtype, model):
    lines = args.work / "peft.jsonl"
    lines.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--peft-worker", dtype, "--worker-model", model, "--out", lines]
    command += ["--threads", args.threads, "--work", args.work, "--steps", args.steps]
    return summary(*run_measured(command, args.work / "peft.log", lines), EVERY)


def generate_qwentune(args, dtype, model):
    """`bench generate` makes its own steps; its processor time is that of the whole process, so only the clock is told."""
    out = args.work / "generate.json"
    command = [args.qwentune, "bench", "generate", "--model", model, "--tokens", PROMPT, "--dtype", dtype]
    command += ["--device", "cpu", "--threads", args.threads, "--seconds", 10, "-o", "json", "--output", out]
    _, peak = run_measured(command, args.work / "qwentune.log", args.work / "none")
    results = json.loads(out.read_text())["results"]
    written = next(r for r in results if "decode" in r["name"] or "written" in r["name"])
    return {"tokens_per_second": written["median"], "peak_bytes": peak, "load": os.getloadavg()[0]}


# ---- the comparison ---------------------------------------------------------------------------------------------


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_bytes": total, "features": [f for f in wanted if f in flags]}


def versions(qwentune):
    import peft
    import torch
    import transformers

    found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"transformers": transformers.__version__, "peft": peft.__version__}
    if qwentune:
        found["qwentune"] = subprocess.run([qwentune, "--version"], capture_output=True, text=True).stdout.strip()
    return found


def sides(args, model, tokens):
    """What is run in turn: names and functions."""
    if tokens == "generate":
        ours = {f"qwentune {d}": lambda d=d: generate_qwentune(args, d, model) for d in ("f32", "bf16")}
        theirs = {f"PEFT {d}": lambda d=d: generate_peft(args, d, model) for d in ("float32", "bfloat16")}
    else:
        rows = args.work / f"rows-{tokens}.jsonl"
        write_rows(rows, 1 + args.steps, tokens)
        ours = {
            f"qwentune {d}": lambda d=d: run_qwentune(args, args.qwentune, d, model, rows, tokens) for d in ("f32", "bf16")
        }
        if args.before:
            ours["qwentune before"] = lambda: run_qwentune(args, args.before, None, model, rows, tokens)
        theirs = {
            f"PEFT {d}": lambda d=d: run_peft(args, d, model, rows, tokens) for d in ("float32", "bfloat16")
        }
    return (ours if args.qwentune else {}) | theirs


def medians(rounds):
    keys = ("tokens_per_second", "tokens_per_processor_second", "peak_bytes", "load")
    middle = {}
    for side in rounds[0]:
        known = [key for key in keys if key in rounds[0][side]]
        middle[side] = {key: statistics.median(entry[side][key] for entry in rounds) for key in known}
    return middle


def compare(args):
    model = prepare(args)
    report = {"machine": machine(), "versions": versions(args.qwentune), "work": {}}
    report["settings"] = {"layers": args.layers, "steps": args.steps, "threads": args.threads, "rank": 8}
    for work in args.tokens:
        tokens = work if work == "generate" else int(work)
        rounds = []
        for number in range(args.rounds):
            rounds.append({})
            for side, measure in sides(args, model, tokens).items():
                rounds[-1][side] = result = measure()
                speed, processor = result["tokens_per_second"], result.get("tokens_per_processor_second", 0)
                figures = f"{speed:7.1f} tokens/s {processor:7.1f} tokens/processor-s {result['peak_bytes'] / 1e9:6.2f} GB"
                print(f"{work} round {number + 1}  {side:16} {figures}  load {result['load']:.1f}", flush=True)
        report["work"][work] = {"rounds": rounds, "median": medians(rounds)}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


BEGIN, END = "<!-- benches/peers/cpu_peft.py --readme writes from here -->", "<!-- to here -->"


def table(files):
    rows = ["| work | side | tokens per second | per second of one core | peak memory | load |", "|---|---|---|---|---|---|"]
    for file in files:
        report = json.loads(file.read_text())
        features = report["machine"]["features"]
        isa = next(name for name in ("avx512_bf16", "avx512f", "avx2") if name in features)
        for work, measured in report["work"].items():
            name = "generation, batch 1" if work == "generate" else f"training, {work} tokens"
            for side, figures in measured["median"].items():
                processor = figures.get("tokens_per_processor_second")
                cells = [f"{name} ({isa})", side, f"{figures['tokens_per_second']:.1f}"]
                cells += [f"{processor:.1f}" if processor else "", f"{figures['peak_bytes'] / 1e9:.2f} GB", f"{figures['load']:.1f}"]
                rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def write_readme(files):
    path = Path(__file__).resolve().parents[2] / "README.md"
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table(files)}\n{END}{rest.split(END)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qwentune", type=Path, help="the binary; without it only PEFT is measured")
    parser.add_argument("--before", type=Path, help="an older binary, trained with too")
    parser.add_argument("--work", type=Path, help="a folder for the model (1 GB), rows and runs")
    parser.add_argument("--out", type=Path, default=Path("cpu_peft.json"))
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", nargs="+", default=["512", "2048", "generate"], help="tokens of a step, or generate")
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick try")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--readme", nargs="+", type=Path, metavar="RESULT", help="writes README.md's table from results")
    parser.add_argument("--peft-worker", help=argparse.SUPPRESS)
    parser.add_argument("--worker-model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker-rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.readme:
        return write_readme(args.readme)
    if args.work is None:
        parser.error("--work is missing: a folder for the model, rows and runs")
    return peft_worker(args) if args.peft_worker else compare(args)


if __name__ == "__main__":
    main()
