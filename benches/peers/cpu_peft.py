#!/usr/bin/env python3
"""Training speed and peak memory on the CPU, side by side: `qwentune train` and PEFT on PyTorch.

    pip install -r scripts/requirements-golden.txt
    python benches/peers/cpu_peft.py --qwentune target/release/qwentune --work /tmp/peers --out result.json

Both train rank 8 on all linear layers of a model of Qwen2.5-0.5B's shapes with random bfloat16 weights, one row of 512
tokens a step, every token scored, AdamW, no recomputation. Runs are interleaved, each in a process of its own. Memory
is VmHWM, the kernel's own peak of resident pages, mapped files included. Without --qwentune only PEFT is measured.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
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
    rows = args.work / f"rows-{args.tokens}.jsonl"
    write_rows(rows, args.warmup + args.steps, args.tokens)
    return model, rows


# ---- one measured process ---------------------------------------------------------------------------------------


def peak_bytes(pid):
    """VmHWM of a process, or 0 once it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run_measured(command, log):
    """Runs a command to its end; returns its peak memory. The peak only grows, so the last reading is the peak."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        peak = [0]

        def watch():
            while process.poll() is None:
                peak[0] = max(peak[0], peak_bytes(process.pid))
                time.sleep(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        watcher.join()
    if status != 0:
        sys.exit(f"{command[0]} ended with {status}; its output is in {log}:\n{log.read_text()[-2000:]}")
    return peak[0]


def summary(seconds, peak, args):
    measured = seconds[args.warmup :]
    return {
        "tokens_per_second": args.tokens * len(measured) / sum(measured),
        "step_seconds": seconds,
        "peak_bytes": peak,
    }


def run_qwentune(args, model, rows):
    output = args.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        str(args.qwentune),
        "train",
        "--model",
        model,
        "--train-file",
        rows,
        "--output-dir",
        output,
        "--device",
        "cpu",
    ]
    command += ["--per-device-train-batch-size", 1, "--max-steps", args.warmup + args.steps, "--shuffle", "false"]
    command += ["--cutoff-len", args.tokens, "--lora-r", 8, "--lora-alpha", 16, "--lora-target-modules", "all-linear"]
    command += ["--learning-rate", LEARNING_RATE, "--recompute", "none", "--save-strategy", "no", "--logging-steps", 1]
    command += ["--threads", args.threads]
    peak = run_measured([str(part) for part in command], args.work / "qwentune.log")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return summary([line["seconds"] for line in lines if "loss" in line], peak, args)


def run_peft(args, model, rows, dtype):
    result = args.work / "peft.json"
    command = [
        sys.executable,
        __file__,
        "--peft-worker",
        dtype,
        "--worker-model",
        model,
        "--worker-rows",
        rows,
        "--out",
        result,
    ]
    command += ["--threads", args.threads, "--work", args.work]
    peak = run_measured([str(part) for part in command], args.work / "peft.log")
    return summary(json.loads(result.read_text()), peak, args)


def peft_worker(args):
    """The PEFT side, as its users write it; writes the seconds of each step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.worker_model, dtype=getattr(torch, args.peft_worker))
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=LINEAR))
    model.config.use_cache = False
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    seconds = []
    for line in args.worker_rows.read_text().splitlines():
        started = time.perf_counter()
        ids = torch.tensor([json.loads(line)["input_ids"]])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    args.out.write_text(json.dumps(seconds))


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


def medians(rounds):
    middle = {}
    for side in rounds[0]:
        figures = {key: [entry[side][key] for entry in rounds] for key in ("tokens_per_second", "peak_bytes")}
        middle[side] = {key: statistics.median(values) for key, values in figures.items()}
    return middle


def ratios(rounds):
    """Per round: our tokens/s over theirs, our peak memory over theirs."""
    others = [side for side in rounds[0] if side != "qwentune"]
    return [
        {
            side: {key: entry["qwentune"][key] / entry[side][key] for key in ("tokens_per_second", "peak_bytes")}
            for side in others
        }
        for entry in rounds
    ]


def compare(args):
    model, rows = prepare(args)
    sides = {"qwentune": lambda: run_qwentune(args, model, rows)} if args.qwentune else {}
    sides["peft_float32"] = lambda: run_peft(args, model, rows, "float32")
    if args.bfloat16:
        sides["peft_bfloat16"] = lambda: run_peft(args, model, rows, "bfloat16")
    rounds = []
    for number in range(args.rounds):
        rounds.append({})
        for side, measure in sides.items():
            rounds[-1][side] = result = measure()
            speed, peak = result["tokens_per_second"], result["peak_bytes"] / 1e9
            print(f"round {number + 1}  {side:14} {speed:7.1f} tokens/s  {peak:6.2f} GB", flush=True)
    report = {"machine": machine(), "versions": versions(args.qwentune), "rounds": rounds, "median": medians(rounds)}
    report["settings"] = {
        "layers": args.layers,
        "tokens_per_step": args.tokens,
        "steps": args.steps,
        "warmup": args.warmup,
    }
    report["settings"] |= {"threads": args.threads, "rank": 8, "weights": "bfloat16, random"}
    if args.qwentune:
        report["qwentune_over_peer"] = ratios(rounds)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qwentune", type=Path, help="the binary; without it only PEFT is measured")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the model (1 GB), rows and runs")
    parser.add_argument("--out", type=Path, default=Path("cpu_peft.json"))
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick try")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bfloat16", action="store_true", help="measure PEFT in bfloat16 too")
    parser.add_argument("--peft-worker", help=argparse.SUPPRESS)
    parser.add_argument("--worker-model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker-rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    peft_worker(args) if args.peft_worker else compare(args)


if __name__ == "__main__":
    main()
