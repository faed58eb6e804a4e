"""Reads a checkpoint of qwentune (docs/checkpoint-format.md) without any of its code.

    python3 scripts/read_checkpoint.py step-00001200.qckpt           prints what is inside
    python3 scripts/read_checkpoint.py step-00001200.qckpt --json    the same as one JSON object

As a module: `read(path)` returns a dictionary; `["arrays"]["W"]["<tensor name>"]` is a float32 array, "M" and "V"
are AdamW's moments. Every digest is compared and all padding checked; a wrong file raises ValueError.
Needs numpy and blake3.
"""

import json
import struct
import sys

import numpy
from blake3 import blake3

BLOCK = 4096
NAMES = ["META", "IDX", "CUR", "LOG", "W", "M", "V"]


def need(condition, what):
    if not condition:
        raise ValueError(what)


def sections(data):
    """Header, table, digests, padding and trailer; returns the header's fields and each section's bytes."""
    need(len(data) >= 2 * BLOCK and data[:8] == b"\x89QCK\r\n\x1a\n", "not a checkpoint")
    need(blake3(data[:4064]).digest() == data[4064:4096], "header: digest differs")
    major, minor, header_len, file_len, step, samples, flags, count, entry = struct.unpack_from("<HHIQQQIII", data, 8)
    need((major, minor) == (2, 0), f"format {major}.{minor}, this reads 2.0")
    need((header_len, count, entry) == (BLOCK, len(NAMES), 96), "header: lengths")
    need(flags in (0, 1) and not any(data[52:64]) and not any(data[64 + 96 * count : 4064]), "header: reserved bytes")
    need(file_len == len(data), f"length {len(data)}, the header says {file_len}")
    found, at = {}, BLOCK
    for i, name in enumerate(NAMES):
        fields = struct.unpack_from("<8sHHIQQQ32s24s", data, 64 + 96 * i)
        tag, codec, entry_flags, zero, offset, stored, raw, digest, rest = fields
        need(tag == name.encode().ljust(8, b"\0"), f"header: section {name} expected")
        need(codec == 0 and entry_flags == 0 and zero == 0 and not any(rest), f"section {name}: codec or reserved bytes")
        need(offset == at and stored == raw, f"section {name}: offset or length")
        at = (offset + stored + BLOCK - 1) // BLOCK * BLOCK
        need(at <= file_len - BLOCK, f"section {name}: longer than the file")
        body = data[offset : offset + stored]
        need(blake3(body).digest() == digest, f"section {name}: digest differs")
        need(not any(data[offset + stored : at]), f"section {name}: padding")
        found[name] = body
    trailer = b"QCKEND\0\1" + struct.pack("<Q", file_len) + data[4064:4096]
    need(at == file_len - BLOCK and data[at:] == trailer.ljust(BLOCK, b"\0"), "trailer")
    header = {"step": step, "samples": samples, "tainted": bool(flags), "digest": data[4064:4096].hex()}
    return header, found


def tensors(body):
    """Section IDX: (name, first element, rows, columns) of each tensor."""
    (count,) = struct.unpack_from("<Q", body)
    at, table = 8, []
    for _ in range(count):
        offset, rows, columns, length = struct.unpack_from("<4Q", body, at)
        name = body[at + 32 : at + 32 + length].decode()
        at += 32 + (length + 7) // 8 * 8
        table.append((name, offset, rows, columns))
    need(at == len(body), "section IDX: surplus bytes")
    return table


def cursor(body):
    """Section CUR."""
    samples, tokens, behind, stale, has_best = struct.unpack_from("<5Q", body)
    need(has_best in (0, 1) and len(body) == (88 if has_best else 40), "section CUR: length")
    best = None
    if has_best:
        loss, step, adapter = struct.unpack_from("<dQ32s", body, 40)
        best = {"loss": loss, "step": step, "adapter": adapter.hex()}
    return {"samples": samples, "tokens": tokens, "updates_behind": behind, "stale_evaluations": stale, "best": best}


KINDS = {
    1: ("<QddddQ", ["step", "epoch", "loss", "grad_norm", "lr", "tokens"]),
    2: ("<Qdd", ["step", "epoch", "eval_loss"]),
}


def log(body):
    """Section LOG: the lines of metrics.jsonl, without their clock."""
    lines, at = [], 0
    while at < len(body):
        kind, length = struct.unpack_from("<II", body, at)
        form, names = KINDS.get(kind, ("", []))
        need(names and length == struct.calcsize(form), f"section LOG: kind {kind}, length {length}")
        lines.append(dict(zip(names, struct.unpack_from(form, body, at + 8))))
        at += 8 + length
    return lines


def meta(body):
    """Section META: identity and history, in the one permitted spelling."""
    value = json.loads(body)
    spelt = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    need(spelt.encode() == body and sorted(value) == ["history", "identity"], "section META: not canonical")
    return value


def fields(value, path=""):
    """Plain values below `value`, by their path."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [field for key, item in items for field in fields(item, f"{path}.{key}".lstrip("."))]
    return [(path, value)]


def read(path):
    """Everything in the file at `path`, checked."""
    with open(path, "rb") as file:
        header, found = sections(file.read())
    table = tensors(found["IDX"])
    need(sum(rows * columns for _, _, rows, columns in table) * 4 == len(found["W"]), "section W: length")
    arrays = {}
    for section in ["W", "M", "V"]:
        flat = numpy.frombuffer(found[section], dtype="<f4")
        need(len(found[section]) == len(found["W"]) and numpy.isfinite(flat).all(), f"section {section}: values")
        arrays[section] = {n: flat[o : o + r * c].reshape(r, c) for n, o, r, c in table}
    cur = cursor(found["CUR"])
    need(cur["samples"] == header["samples"], "section CUR: samples")
    return {**header, **meta(found["META"]), "cursor": cur, "log": log(found["LOG"]), "arrays": arrays}


def summary(state):
    """`state` with the sums of its arrays (as float64 of every element in order) instead of their values."""
    sums = {
        section: {name: [list(a.shape), float(numpy.cumsum(a, dtype="<f8")[-1])] for name, a in group.items()}
        for section, group in state["arrays"].items()
    }
    return {**state, "arrays": sums}


def main():
    state = summary(read(sys.argv[1]))
    if "--json" in sys.argv[2:]:
        print(json.dumps(state))
        return
    print(f"step {state['step']}, {state['samples']} rows, digest {state['digest']}")
    for key, value in fields({"identity": state["identity"], "history": state["history"]}):
        print(f"  {key} = {value}")
    print(f"  cursor {state['cursor']}")
    print(f"  {len(state['log'])} log lines" + (f", the last {state['log'][-1]}" if state["log"] else ""))
    for name, (shape, total) in state["arrays"]["W"].items():
        print(f"  {name} {shape[0]} x {shape[1]}, sum {total:.9g}")


if __name__ == "__main__":
    main()
