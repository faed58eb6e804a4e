"""A training step of a model on a device, part by part, as far as counts tell: the operations' own launches, counted on the
emulated device in the model's size, and kernels/devices.tsv. All of it is modelled; nothing is measured."""
import collections
import json
import pathlib
import sys

import bound
import sass
from counts import emulated, of_line

TEST = "emulated::view::counts_of_a_model"

# A call of an operation: how often a step does it, what it is, its least work, its launches.
Part = collections.namedtuple("Part", "name case times flops bytes works")
# One launch: kernel, threads, shared bytes, and what `bound.launch` reads.
Work = collections.namedtuple("Work", "kernel threads shared counts")


def parts(library, binary, folder, shape, tokens, rank, layers, code, exact):
    """The parts of a step; `exact`: by all blocks of each launch, not by those that the others follow from."""
    out = pathlib.Path(folder) / "view.jsonl"
    variables = {"QT_VIEW": f"{shape},{tokens},{rank},{layers}", "QT_COUNTS": str(out)}
    if not exact:
        variables["QT_SAMPLE"] = "1"
    passed, output = emulated.test(binary, library.path, (TEST,), **variables)
    if not passed:
        sys.exit(f"{TEST} did not pass:\n{output}")
    found = []
    for line in map(json.loads, out.read_text().splitlines()):
        if "part" in line:
            found.append((line["part"], []))
        elif line["kernel"] in code:
            found[-1][1].append(work(line, code[line["kernel"]]))
    return merged(found)


def work(launch, code):
    """A launch with the least instructions that its machine code needs for what was counted."""
    counts = collections.Counter({"mma": launch["events"].get("mma", 0), "blocks": launch["blocks"]})
    for line in launch["lines"]:
        columns = of_line(line)
        counts["wavefronts"] += columns.get("wavefronts", 0)
        counts["sectors"] += columns.get("sectors_read", 0) + columns.get("sectors_written", 0)
    least = sass.Least(launch["kernel"], code, sass.measured([launch]))
    counts["instructions"] = least.issued()
    counts.update({f"pipe {pipe}": n for pipe, n in least.pipes().items()})
    return Work(launch["kernel"], launch["threads"], launch["shared_bytes"], counts)


def merged(found):
    """Parts in the order of the registry. Those of two small vocabularies give the one of the model: all of it is affine."""
    result, waiting = [], {}
    for part, works in found:
        name = f"{part['operation']} {part['call']}"
        entry = Part(name, part["case"], part["times"], part["flops"], part["bytes"], works)
        if part["vocab"] == 1:
            result.append(entry)
        elif name not in waiting:
            waiting[name] = (part["vocab"], entry)
        else:
            first, other = waiting.pop(name)
            share = (part["of_vocab"] - first) / (part["vocab"] - first)
            result.append(extended(other, entry, share))
    return result


def extended(a, b, share):
    """What lies at `share` on the line from a to b."""
    at = lambda x, y: x + (y - x) * share
    works = []
    for one, two in zip(a.works, b.works, strict=True):
        counts = {key: at(one.counts[key], two.counts[key]) for key in one.counts.keys() | two.counts.keys()}
        works.append(one._replace(counts=collections.Counter(counts)))
    return b._replace(flops=at(a.flops, b.flops), bytes=at(a.bytes, b.bytes), works=works)


def judged(part, card, target):
    """(ideal, bound, limiter, no overlap) of a part, milliseconds of all its times in a step."""
    tensor = part.flops / (2 * card["multiprocessors"] * card["mhz"] * 1e6 * card["tensor"] * card["mma_share"]) * 1e3
    memory = part.bytes / (card["dram_gb_s"] * 1e9) * 1e3
    registers, by_limiter, no_overlap = bound.registers(target), collections.Counter(), 0.0
    for launch in part.works:
        counts = launch.counts
        pipes = {key.removeprefix("pipe "): n for key, n in counts.items() if key.startswith("pipe ")}
        work = {**counts, "pipes": collections.Counter(pipes)}
        one = bound.launch(card, work, launch.threads, launch.shared, registers[launch.kernel])
        by_limiter[one.limiter] += one.ms
        no_overlap += one.no_overlap_ms
    units = sum(by_limiter.values())
    limiter = "DRAM" if memory >= units else by_limiter.most_common(1)[0][0]
    figures = (max(tensor, memory), max(units, memory), max(no_overlap, memory))
    ideal, least, apart = (part.times * ms for ms in figures)
    return ideal, least, limiter, apart


def show(all_parts, card, target, title, tokens):
    rows = [(part, *judged(part, card, target)) for part in all_parts]
    print(f"{title}\nMODELLED from counts and {bound.DEVICES.name}; nothing here was measured. Milliseconds of a step.\n")
    head = f"{'part':<32}{'times':>6}{'ideal':>9}{'bound':>9}  {'limiter':<8}{'no overlap':>11}  case"
    print(head)
    for part, ideal, least, limiter, apart in rows:
        print(f"{part.name:<32}{part.times:>6}{ideal:>9.2f}{least:>9.2f}  {limiter:<8}{apart:>11.2f}  {part.case}")
    ideal, least, apart = (sum(row[i] for row in rows) for i in (1, 2, 4))
    print(f"{'step':<38}{ideal:>9.2f}{least:>9.2f}  {'':<8}{apart:>11.2f}")
    rate = lambda ms: f"{tokens / ms * 1e3:,.0f}"
    print(f"{'tokens/s':<38}{rate(ideal):>9}{rate(least):>9}  {'':<8}{rate(apart):>11}")


def layers_of(shape):
    """A released size's layers: src/bench/shape.rs knows them."""
    text = (bound.ROOT / "src" / "bench" / "shape.rs").read_text()
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == f'"{shape}"':
            return int(words[4])
    known = [line.split()[0].strip('"') for line in text.splitlines() if line.strip().startswith('"') and line.endswith(";")]
    sys.exit(f"{shape} is no released size: {', '.join(known)}")
