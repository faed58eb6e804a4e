"""What the kernels ask of memory and tensor cores, counted on the emulated device (kernels/host/count.cpp)."""
import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import emulated_library as emulated  # noqa: E402

# The level decides which accesses the compiler merges, so it is fixed; the sanitizer puts in the calls.
OF_KERNELS = ["-O1", "-g1", "-fsanitize=thread", "-Wno-tsan"]
OF_EMULATOR = ["-O2", "-g1", "-DQT_COUNT"]
# What is counted, in the order of the table. Sectors are 32 bytes of global memory, wavefronts 128 of shared memory.
COLUMNS = ["blocks", "warps", "mma", "ldmatrix", "shuffle", "block_barrier", "copy_group",
           "sectors_read", "sectors_written", "sectors_ideal", "wavefronts", "wavefronts_ideal"]
# Above this many times the ideal a place is called by name.
WASTE = 1.1


class Library:
    """The kernels, compiled to be counted, and where each place of the code stands in the source."""

    def __init__(self, folder, root=ROOT):
        self.path = pathlib.Path(folder) / "count.so"
        kernels = [s for s in emulated.sources(root) if s.suffix == ".cu"]
        host = root / "kernels" / "host"
        objects = emulated.compile_all(kernels, folder / "kernels", OF_KERNELS)
        objects += emulated.compile_all([host / "emulator.cpp", host / "count.cpp"], folder / "host", OF_EMULATOR)
        emulated.link(objects, self.path, ["-Wl,-z,defs", "-ldl"])

    def launches(self, binary, test):
        """One entry for each launch that the test makes."""
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "counts.jsonl"
            passed, output = emulated.test(binary, self.path, (test,), QT_COUNTS=str(out), EMULATED_ONCE="1")
            if not passed or not out.exists():
                sys.exit(f"{test} did not pass while it was counted:\n{output}")
            return [json.loads(line) for line in out.read_text().splitlines()]

    def places(self, addresses):
        """{address of a call: "file:line" of the kernel, innermost call first}."""
        addresses = sorted(set(addresses))
        # A call returns to the instruction after it.
        asked = [hex(address - 1) for address in addresses]
        out = emulated.run("addr2line", "-a", "-i", "-e", self.path, *asked)
        stacks = [part.split("\n")[1:] for part in re.split(r"^(?=0x)", out, flags=re.M) if part]
        return {address: self.shown(stack) for address, stack in zip(addresses, stacks)}

    @staticmethod
    def shown(stack):
        lines = [re.sub(r" \(discriminator \d+\)", "", line) for line in stack if ":" in line]
        names = [str(pathlib.Path(line).name) for line in lines]
        # The vocabulary itself is no place in a kernel.
        return " < ".join(name for name in names if not name.startswith("shim.h")) or " < ".join(names)


def totals(launches):
    """{kernel: {column: count}} over all its launches."""
    table = collections.defaultdict(lambda: collections.Counter({column: 0 for column in COLUMNS}))
    for launch in launches:
        row = table[launch["kernel"]]
        row.update({"blocks": launch["blocks"], "warps": launch["warps"], **launch["events"]})
        for line in launch["lines"]:
            row.update(of_line(line))
    return {kernel: {c: row[c] for c in COLUMNS} for kernel, row in sorted(table.items())}


def of_line(line):
    if line["space"] == "shared":
        return {"wavefronts": line["wavefronts"], "wavefronts_ideal": line["ideal"]}
    return {"sectors_written" if line["write"] else "sectors_read": line["sectors"], "sectors_ideal": line["ideal"]}


def places(launches):
    """{(kernel, address, kind, space): (instructions, cost, ideal)} over all launches."""
    table = collections.defaultdict(lambda: [0, 0, 0])
    for launch in launches:
        for line in launch["lines"]:
            entry = table[launch["kernel"], line["at"], line["kind"], line["space"]]
            cost = line["wavefronts"] if line["space"] == "shared" else line["sectors"]
            for index, value in enumerate((line["instructions"], cost, line["ideal"])):
                entry[index] += value
    return table
