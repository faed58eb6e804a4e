"""The two sides of a training benchmark on a GPU, qwentune and PEFT, on the same rows and from the same adapter; and a run that
is killed and resumed. `tools/gpu/proof` runs them. Whatever takes long is a process of its own, which ends when the time of
its part has run out."""
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benches" / "peers"))
from cpu_peft import CONFIG, LINEAR, write_rows  # noqa: E402

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 1000, "max_window_layers": 2},
    "0.5b": {},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "max_window_layers": 28},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "max_window_layers": 28},
}
# Tokens of a row, rows of a step. All tokens but the first of a row are scored.
BATCHES = {"tiny": (64, 2), "0.5b": (1024, 8), "1.5b": (2048, 4), "7b": (4096, 2)}
LEARNING_RATE = 1e-4
WARMUP = 5


class NotFinished(Exception):
    """A part's time ran out."""


def ask(args, name, command, environment=None):
    """A command's output, which also goes to a file; it is stopped when the part's time is over."""
    command, log = [str(word) for word in command], args.work / f"{name}.log"
    variables = dict(os.environ, **(environment or {}))
    with log.open("w") as file:
        print(*command, file=file, flush=True)
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables)
        wait(args, name, process)
    text = log.read_text(errors="replace").partition("\n")[2]
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}: {text[-2000:]}")
    return text


def wait(args, name, process):
    try:
        process.wait(max(args.ends - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise NotFinished(f"{name} was stopped when the part's {args.longest} s were over") from None


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
    ask(args, f"train-{case['shape']}", train_command(args, case, output, "--save-strategy", "no"))
    lines = metrics(output)
    return figures(case, [line["seconds"] for line in lines], [line["loss"] for line in lines])


def train_peft(args, case, checkpointing):
    """PEFT in a process of its own: its memory is free again for what follows."""
    name = f"peft-{case['shape']}{'-checkpointing' if checkpointing else ''}"
    result = args.work / f"{name}.json"
    words = ["peft", case["shape"], args.work, args.device, args.steps, int(checkpointing), result]
    ask(args, name, [sys.executable, __file__, *words])
    measured = json.loads(result.read_text())
    return figures(case, measured["seconds"], measured["losses"]) | {"peak_bytes": measured["peak_bytes"]}


def peft_worker(shape, work, device, steps, checkpointing, out):
    """The PEFT side, as its users write it: bfloat16 base, float32 adapter, autocast, SDPA; with activations kept, or
    computed again in the backward pass (`checkpointing`)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    device = torch_device(device)
    case = paths(work, shape)
    model = AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": device}
    )
    model = PeftModel.from_pretrained(model, case["adapter"], is_trainable=True, autocast_adapter_dtype=True)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    rows = [json.loads(line)["input_ids"] for line in case["rows"].read_text().splitlines()]
    size, seconds, losses = BATCHES[shape][1], [], []
    for step in range(steps):
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
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    out.write_text(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}))


def torch_device(device):
    """PyTorch's name of the device: it has none for one that is only emulated."""
    import torch
    return "cuda" if device.startswith("cuda") and torch.cuda.is_available() else "cpu"


# ---- cases ------------------------------------------------------------------------------------------------------------


def paths(work, shape):
    stem = work / shape
    return {"shape": shape, "model": stem / "model", "adapter": stem / "adapter", "rows": stem / "rows.jsonl"}


def prepare(args, shape):
    case = paths(args.work, shape)
    if not (case["model"] / "config.json").exists():  # written last
        shutil.rmtree(case["model"], ignore_errors=True)
        ask(args, f"model-{shape}", [sys.executable, __file__, "model", shape, args.work, args.device])
    tokens, rows = BATCHES[shape]
    vocab = (CONFIG | SHAPES[shape])["vocab_size"]
    write_rows(case["rows"], rows * args.steps, tokens)
    if vocab < 151643:
        lines = [json.loads(line) for line in case["rows"].read_text().splitlines()]
        text = "".join(json.dumps({"input_ids": [i % vocab for i in row["input_ids"]]}) + "\n" for row in lines)
        case["rows"].write_text(text)
    return case


def beside_peft(args, shape, found):
    """All sides in turn, twice, so that a clock that falls meets all of them. What a side could not do for want of memory is
    said; `found` grows as the sides end."""
    case, skipped = prepare(args, shape), found.setdefault("skipped", {})
    found["batch"] = BATCHES[shape]
    sides = {"qwentune": lambda: train_qwentune(args, case), "peft": lambda: train_peft(args, case, False),
             "peft_checkpointing": lambda: train_peft(args, case, True)}
    rounds = found.setdefault("rounds", {})
    for _ in range(2):
        for name, side in sides.items():
            if name in skipped:
                continue
            try:
                rounds.setdefault(name, []).append(side())
            except RuntimeError as error:
                if name == "qwentune" or "out of memory" not in str(error).lower():
                    raise
                skipped[name] = "out of memory"
            compare(found, name)


def compare(found, name):
    """Speed and losses of qwentune beside PEFT's, as far as both have run."""
    ours, theirs = found["rounds"].get("qwentune"), found["rounds"].get(name)
    if name == "qwentune" or not theirs:
        return
    rates = [(a["tokens_per_second"], b["tokens_per_second"]) for a, b in zip(ours, theirs)]
    found[f"ratio_to_{name}"] = statistics.median(a / b for a, b in rates)
    pairs = list(zip(ours[-1]["losses"], theirs[-1]["losses"]))
    difference = max(abs(a - b) / abs(b) for a, b in pairs)
    found[f"largest_loss_difference_to_{name}"] = difference
    if difference > 0.02:
        raise RuntimeError(f"losses differ from {name} by {difference:.3f}: {pairs}")


def killed(args, shape, found):
    """SIGKILL at three places of a run, then the bytes of one that was left alone."""
    case = prepare(args, shape)
    whole, cut = args.work / "whole", args.work / "cut"
    for folder in (whole, cut):
        shutil.rmtree(folder, ignore_errors=True)
    save = ("--save-steps", 2, "--lora-dropout", 0.1, "--quiet", "true")
    ask(args, "whole", train_command(args, case, whole, *save))
    found["kills"] = 0
    for step in (3, args.steps // 2, args.steps - 2):
        command = [args.qwentune, "resume", cut] if found["kills"] else train_command(args, case, cut, *save)
        process = subprocess.Popen([str(w) for w in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if time.monotonic() > args.ends:
                wait(args, f"the run to be killed at step {step}", process)
            if (cut / "metrics.jsonl").exists() and len(whole_lines(cut)) >= step:
                process.send_signal(signal.SIGKILL)
                found["kills"] += 1
                break
            time.sleep(0.002)
        process.wait()
    if found["kills"] < 3:
        raise RuntimeError(f"the run ended before it was killed a third time: {found['kills']} kills")
    ask(args, "cut", [args.qwentune, "resume", cut])
    names = ["adapter/adapter_model.safetensors", f"checkpoints/step-{args.steps:08}.qckpt"]
    different = [name for name in names if (whole / name).read_bytes() != (cut / name).read_bytes()]
    keep = [[{k: v for k, v in line.items() if k != "seconds"} for line in metrics(f)] for f in (whole, cut)]
    if keep[0] != keep[1]:
        different.append("metrics.jsonl")
    if different:
        raise RuntimeError(f"after {found['kills']} kills these differ: {different}")
    found["identical"] = [*names, "metrics.jsonl"]


def whole_lines(folder):
    """Lines of the metrics; the last one may be half written."""
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def main(what, shape, work, device, *more):
    if what == "model":
        case = paths(Path(work), shape)
        write_adapter(case["adapter"], shape)
        write_model(case["model"], shape, torch_device(device))
    else:
        steps, checkpointing, out = more
        peft_worker(shape, Path(work), device, int(steps), checkpointing == "1", Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
