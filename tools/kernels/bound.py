"""How long a launch takes at least, by what was counted of it and kernels/devices.tsv. A model, never a measurement.

The bound is the largest of what each unit needs for the launch's work, all of them at work all the time; "no overlap" lets
the tensor cores and the issue of all other instructions take turns. Neither sees power, the instruction cache, or the hit
rate of L2."""
import collections
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEVICES = ROOT / "kernels" / "devices.tsv"
REGISTERS = ROOT / "kernels" / "registers.tsv"
# Blocks that a multiprocessor holds at once, whatever their size.
MOST_BLOCKS = 32
# Multiply-adds of one mma.m16n8k16.
MMA = 16 * 8 * 16

# Columns of the table that are no numbers.
WORDS = ("device", "driver_name", "capability", "sources")

Bound = collections.namedtuple("Bound", "ms limiter no_overlap_ms parts")


def devices():
    lines = [line for line in DEVICES.read_text().splitlines() if not line.startswith("#")]
    head, *rows = [line.split("\t") for line in lines]
    table = {}
    for row in rows:
        entry = dict(zip(head, row))
        table[entry["device"]] = {key: value if key in WORDS else float(value)
                                  for key, value in entry.items()}
    return table


def device(name):
    found = {key.lower(): value for key, value in devices().items()}.get(name.lower())
    return found or sys.exit(f"{name} is not in {DEVICES.relative_to(ROOT)}: {', '.join(devices())}")


def target(card):
    """The architecture whose machine code the device runs, as kernels/registers.tsv has them."""
    known = sorted({line.split("\t")[1].removeprefix("sm_") for line in REGISTERS.read_text().splitlines()[1:]})
    major, minor = card["capability"].split(".")
    same = [name for name in known if name.rstrip("a")[:-1] == major and int(name.rstrip("a")[-1]) <= int(minor)]
    return max(same, default=None) or sys.exit(f"no kernels are compiled for capability {card['capability']}")


def registers(target):
    """{kernel: registers of a thread}."""
    rows = [line.split("\t") for line in REGISTERS.read_text().splitlines()[1:]]
    return {kernel: int(count) for kernel, where, count, *_ in rows if where == f"sm_{target}"}


def blocks_at_once(card, threads, shared_bytes, registers_of_thread):
    """Blocks that one multiprocessor holds: CUDA C++ Programming Guide, "Hardware Multithreading"."""
    warps = threads // 32
    # Registers are given to a warp in units of 256.
    of_warp = math.ceil(registers_of_thread * 32 / 256) * 256
    limits = [MOST_BLOCKS, card["threads"] // threads, card["registers"] // (of_warp * warps)]
    # The system keeps 1 KiB of shared memory for each block.
    limits.append(card["shared_per_mp_kib"] * 1024 // (shared_bytes + 1024))
    return max(int(min(limits)), 1)


def launch(card, work, threads, shared_bytes, registers_of_thread):
    """The bound of a launch, memory left out, which launches of one call share. `work`: blocks, mma, wavefronts, sectors,
    instructions, pipes {pipe: instructions}."""
    multiprocessors, hertz = card["multiprocessors"], card["mhz"] * 1e6
    pipes = work["pipes"]
    parts = {
        "tensor": work["mma"] * MMA / (card["tensor"] * card["mma_share"]),
        "issue": work["instructions"] / card["issue"],
        "fma": pipes["fma"] * 32 / card["fma_lanes"],
        "alu": pipes["alu"] * 32 / card["alu_lanes"],
        "special": pipes["special"] * 32 / card["special_lanes"],
        "shared": work["wavefronts"],
        "L2": work["sectors"] * 32 / card["l2_bytes"] * multiprocessors,
    }
    at_once = blocks_at_once(card, threads, shared_bytes, registers_of_thread)
    waves = work["blocks"] / (multiprocessors * at_once)
    parts = {name: cycles / multiprocessors for name, cycles in parts.items()}
    # The last wave takes as long as the others, however few blocks it has; L2 serves those alone.
    uneven = math.ceil(waves) / waves
    for name in parts:
        if name != "L2":
            parts[name] *= uneven
    parts["latency"] = math.ceil(waves) * card["latency_cycles"]
    limiter = max(parts, key=parts.get)
    others = (work["instructions"] - pipes["tensor"]) / card["issue"] / multiprocessors * uneven
    no_overlap = max(parts[limiter], parts["tensor"] + others)
    ms = lambda cycles: cycles / hertz * 1e3
    return Bound(ms(parts[limiter]), limiter, ms(no_overlap), {name: ms(cycles) for name, cycles in parts.items()})
