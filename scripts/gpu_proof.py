#!/usr/bin/env python3
"""Everything there is to prove on a GPU, in one run that is meant to take ten minutes, with a binary built elsewhere.

    python scripts/gpu_proof.py --qwentune target/release/qwentune --work /tmp/proof --out proof.json

In this order: `doctor`; `selftest` (each operation against f64, 100 times for the same bits, training beside the CPU,
resume); a model of Qwen2.5-0.5B's shapes and one of Qwen2.5-7B's, random bfloat16 weights, 20 steps each, and the same
rows and initial adapter with PEFT in bfloat16 and PyTorch's SDPA; a run that is killed with SIGKILL and resumed, byte for
byte; compute-sanitizer's memcheck and racecheck over the operations, where it is installed. Needs Python 3.10, torch,
transformers, peft and safetensors; no Rust. `--tiny --device cpu` tries the script itself, without a GPU.

The result file holds the device, the driver, both sides of each ratio and every step's loss; the last lines printed are
a table of it. A part that fails is recorded with its output, and the others still run; the exit status is then 1.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benches" / "peers"))
from cpu_peft import CONFIG, LINEAR, write_rows  # noqa: E402

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 1000, "max_window_layers": 2},
    "0.5b": {},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "max_window_layers": 28},
}
# Tokens of a row, rows of a step. All tokens but the first of a row are scored.
BATCHES = {"tiny": (64, 2), "0.5b": (1024, 8), "7b": (2048, 4)}
LEARNING_RATE = 1e-4
WARMUP = 5


def run(command, log, timeout):
    """A command's exit status and output, which also goes to `log`."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = -1, (error.stdout or b"").decode(errors="replace") + f"\nstopped after {timeout} s"
    log.write_text(" ".join(command) + "\n" + output)
    return status, output


# ---- models and adapters ---------------------------------------------------------------------------------------------


def write_model(folder, shape, device):
    """Random weights, normal with deviation 0.02 (norm weights: about 1), in shards; made on the device, as it is quick."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    config = CONFIG | SHAPES[shape]
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).state_dict()
    generator = torch.Generator(device=device).manual_seed(1)
    shards, shard, size, index = [], {}, 0, {}
    for name, value in shapes.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        values = torch.randn(value.shape, generator=generator, device=device) * 0.02 + centre
        shard[name] = values.to(torch.bfloat16).cpu()
        size += 2 * value.numel()
        if size > 4 << 30:
            shards.append(shard)
            shard, size = {}, 0
    shards.append(shard)
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def write_adapter(folder, shape):
    """A LoRA adapter of rank 16 on all linear layers: A as PEFT draws it, B small and not zero, so that both are at work."""
    import torch
    from safetensors.torch import save_file

    config = CONFIG | SHAPES[shape]
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv = hidden // heads * config["num_key_value_heads"]
    sizes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    sizes |= {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    generator, tensors = torch.Generator().manual_seed(3), {}
    for layer in range(config["num_hidden_layers"]):
        for name, (output, inputs) in sizes.items():
            part = "mlp" if name in ("gate", "up", "down") else "self_attn"
            stem = f"base_model.model.model.layers.{layer}.{part}.{name}_proj"
            bound = inputs**-0.5
            tensors[f"{stem}.lora_A.weight"] = (torch.rand(16, inputs, generator=generator) * 2 - 1) * bound
            tensors[f"{stem}.lora_B.weight"] = torch.randn(output, 16, generator=generator) * 0.002
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
    settings |= {"target_modules": LINEAR, "bias": "none", "inference_mode": False, "base_model_name_or_path": ""}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


# ---- the two sides ---------------------------------------------------------------------------------------------------


def train_command(args, case, output, *more):
    tokens, rows = BATCHES[case["shape"]]
    command = [args.qwentune, "train", "--model", case["model"], "--init-adapter", case["adapter"]]
    command += ["--train-file", case["rows"], "--output-dir", output, "--device", args.device, "--shuffle", "false"]
    command += ["--per-device-train-batch-size", rows, "--max-steps", args.steps, "--cutoff-len", tokens]
    command += ["--learning-rate", LEARNING_RATE, "--lr-scheduler-type", "constant", "--logging-steps", 1]
    return command + ["--cache-dir", args.work / "cache", *more]


def figures(case, seconds, losses):
    tokens, rows = BATCHES[case["shape"]]
    measured = seconds[min(WARMUP, len(seconds) - 1) :]
    rate = tokens * rows / statistics.median(measured)
    return {"tokens_per_second": rate, "step_seconds": seconds, "losses": losses}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def train_qwentune(args, case):
    output = args.work / f"run-{case['shape']}"
    shutil.rmtree(output, ignore_errors=True)
    command = train_command(args, case, output, "--save-strategy", "no")
    status, text = run(command, args.work / f"train-{case['shape']}.log", 300)
    if status != 0:
        raise RuntimeError(f"training ended with {status}: {text[-1500:]}")
    lines = metrics(output)
    return figures(case, [line["seconds"] for line in lines], [line["loss"] for line in lines])


def train_peft(args, case):
    """PEFT in a process of its own: its memory is free again for what follows."""
    result = args.work / f"peft-{case['shape']}.json"
    command = [sys.executable, __file__, "--peft-worker", case["shape"], "--work", args.work, "--device", args.device]
    status, text = run([*command, "--steps", args.steps, "--out", result], args.work / f"peft-{case['shape']}.log", 300)
    if status != 0:
        raise RuntimeError(f"PEFT ended with {status}: {text[-1500:]}")
    measured = json.loads(result.read_text())
    return figures(case, measured["seconds"], measured["losses"])


def peft_worker(args):
    """The PEFT side, as its users write it: bfloat16 base, float32 adapter, autocast, SDPA."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    shape, device = args.peft_worker, "cuda" if args.device.startswith("cuda") else "cpu"
    case = paths(args, shape)
    model = AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": device}
    )
    model = PeftModel.from_pretrained(model, case["adapter"], is_trainable=True, autocast_adapter_dtype=True)
    model.config.use_cache = False
    if shape == "7b":
        # Without it the activations of 8192 tokens do not fit beside the weights on a GPU of 80 GB.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    rows = [json.loads(line)["input_ids"] for line in case["rows"].read_text().splitlines()]
    size, seconds, losses = BATCHES[shape][1], [], []
    for step in range(args.steps):
        started = time.perf_counter()
        ids = torch.tensor(rows[step * size : (step + 1) * size], device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    args.out.write_text(json.dumps({"seconds": seconds, "losses": losses}))


# ---- the parts -------------------------------------------------------------------------------------------------------


def machine(args):
    status, doctor = run([args.qwentune, "doctor"], args.work / "doctor.log", 60)
    found = {"doctor": doctor.splitlines(), "doctor_status": status, "commit": args.commit}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    if shutil.which("nvidia-smi"):
        found["nvidia_smi"] = run(query, args.work / "nvidia-smi.log", 60)[1].splitlines()
    import torch

    found["torch"] = torch.__version__
    return found


def selftest(args):
    file = args.work / "selftest.json"
    repeats = 2 if args.tiny else 100
    command = [args.qwentune, "selftest", "--device", args.device, "--repeats", repeats, "--json", file]
    status, text = run(command, args.work / "selftest.log", 240)
    report = json.loads(file.read_text()) if file.exists() else {}
    failed = [line for line in text.splitlines() if "FAILED" in line or line.startswith("error")]
    if status != 0:
        raise RuntimeError(f"selftest ended with {status}: " + "\n".join(failed[:40] or [text[-1500:]]))
    largest = {}
    for check in report["checks"]:
        if check["error"] is not None:
            largest[check["operation"]] = max(largest.get(check["operation"], 0.0), check["error"])
    found = {"checks": len(report["checks"]), "largest_error": largest, "kernels": report["kernels"]}
    return found | {"other_bits_than_emulated": other_bits(report["checks"])}


def other_bits(checks):
    """Cases of kernels without tensor cores whose bits are not those of the emulated device of the tests."""
    table = Path(__file__).resolve().parent.parent / "tests" / "golden" / "emulated_bits.tsv"
    recorded = dict(line.rsplit("\t", 1) for line in table.read_text().splitlines())
    key = [(f"{check['operation']}\t{check['case']}", check["bits"]) for check in checks]
    return [name for name, bits in key if recorded.get(name, bits) != bits]


def sanitizers(args):
    """compute-sanitizer over the operations, once each."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if args.tiny or not Path(tool).exists():
        return "compute-sanitizer is not installed" if not args.tiny else "left out"
    found = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", 9, args.qwentune, "selftest", "--device", args.device]
        command += ["--repeats", 1, "--only", "operations", "--json", args.work / f"{check}.json"]
        status, text = run(command, args.work / f"{check}.log", 150)
        if status != 0:
            raise RuntimeError(f"{check} ended with {status}: {text[-2000:]}")
        found[check] = text.strip().splitlines()[-1]
    return found


def paths(args, shape):
    stem = args.work / shape
    return {"shape": shape, "model": stem / "model", "adapter": stem / "adapter", "rows": stem / "rows.jsonl"}


def prepare(args, shape):
    case = paths(args, shape)
    if not (case["model"] / "config.json").exists():  # written last
        shutil.rmtree(case["model"], ignore_errors=True)
        write_model(case["model"], shape, "cuda" if args.device.startswith("cuda") else "cpu")
    write_adapter(case["adapter"], shape)
    tokens, rows = BATCHES[shape]
    vocab = (CONFIG | SHAPES[shape])["vocab_size"]
    write_rows(case["rows"], rows * args.steps, tokens)
    if vocab < 151643:
        lines = [json.loads(line) for line in case["rows"].read_text().splitlines()]
        text = "".join(json.dumps({"input_ids": [i % vocab for i in row["input_ids"]]}) + "\n" for row in lines)
        case["rows"].write_text(text)
    return case


def beside_peft(args, shape):
    case = prepare(args, shape)
    ours, theirs = train_qwentune(args, case), train_peft(args, case)
    pairs = list(zip(ours["losses"], theirs["losses"]))
    difference = max(abs(a - b) / abs(b) for a, b in pairs)
    ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
    found = {"qwentune": ours, "peft": theirs, "ratio": ratio, "largest_loss_difference": difference}
    if difference > 0.02:
        raise RuntimeError(f"losses differ by {difference:.3f}: {pairs}")
    return found


def killed(args, shape):
    """SIGKILL at three places of a run, then the bytes of one that was left alone."""
    case = prepare(args, shape)
    whole, cut = args.work / "whole", args.work / "cut"
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)
    save = ("--save-steps", 2, "--lora-dropout", 0.1, "--quiet", "true")
    status, text = run(train_command(args, case, whole, *save), args.work / "whole.log", 300)
    if status != 0:
        raise RuntimeError(f"training ended with {status}: {text[-1500:]}")
    kills = 0
    for step in (3, args.steps // 2, args.steps - 2):
        command = [args.qwentune, "resume", cut] if kills else train_command(args, case, cut, *save)
        process = subprocess.Popen([str(w) for w in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (cut / "metrics.jsonl").exists() and len(metrics_or_none(cut)) >= step:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    status, text = run([args.qwentune, "resume", cut], args.work / "cut.log", 300)
    if status != 0:
        raise RuntimeError(f"the resumed run ended with {status}: {text[-1500:]}")
    names = ["adapter/adapter_model.safetensors", f"checkpoints/step-{args.steps:08}.qckpt"]
    different = [name for name in names if (whole / name).read_bytes() != (cut / name).read_bytes()]
    keep = [[{k: v for k, v in line.items() if k != "seconds"} for line in metrics(f)] for f in (whole, cut)]
    if keep[0] != keep[1]:
        different.append("metrics.jsonl")
    if different:
        raise RuntimeError(f"after {kills} kills these differ: {different}")
    return {"kills": kills, "identical": [*names, "metrics.jsonl"]}


def metrics_or_none(folder):
    """Lines that are whole; the last one may be half written."""
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qwentune", type=Path, help="the binary")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models (17 GB with 7b) and runs")
    parser.add_argument("--out", type=Path, default=Path("gpu_proof.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="0.5b,7b", help="models that are trained")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--commit", default="", help="the commit of the binary, for the result file")
    parser.add_argument("--tiny", action="store_true", help="a tiny model only: to try this script")
    parser.add_argument("--peft-worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.peft_worker:
        return peft_worker(args)
    if not args.qwentune:
        parser.error("--qwentune is missing")
    args.qwentune = args.qwentune.resolve()
    shapes = ["tiny"] if args.tiny else args.shapes.split(",")
    parts = {"machine": lambda: machine(args), "selftest": lambda: selftest(args)}
    parts |= {f"train {shape}": lambda shape=shape: beside_peft(args, shape) for shape in shapes}
    parts |= {"kill and resume": lambda: killed(args, shapes[0]), "sanitizers": lambda: sanitizers(args)}
    report, failed = {"steps": args.steps, "learning_rate": LEARNING_RATE, "batches": BATCHES}, []
    for name, part in parts.items():
        begin = time.monotonic()
        try:
            report[name] = part()
            verdict = "ok"
        except Exception as error:  # whatever it is, the other parts still have something to tell
            report[name] = {"failed": f"{type(error).__name__}: {error}"}
            failed.append(name)
            verdict = f"FAILED: {error}"
        print(f"{name:<18}{time.monotonic() - begin:7.1f} s  {verdict}", flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    for shape in shapes:
        found = report[f"train {shape}"]
        if "ratio" in found:
            ours, theirs = (found[side]["tokens_per_second"] for side in ("qwentune", "peft"))
            print(f"{shape}: {ours:.0f} tokens/s, PEFT {theirs:.0f}, ratio {found['ratio']:.2f};", end=" ")
            print(f"losses differ by {found['largest_loss_difference']:.1e} at most")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
