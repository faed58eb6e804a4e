"""The instructions that a warp must at least issue: from a kernel's machine code and what was counted of its run.

The machine code's control flow is a graph; how often each of its blocks ran is not known, but how often the run used the
tensor cores, memory, barriers and shuffles is. The least number of instructions that any flow through the graph needs for
these counts is a linear program (the flow into a block is the flow out of it; the events of all blocks add up to those
counted). No loop has to be named, and the true number can only be larger."""
import collections
import pathlib
import re
import sys

import numpy
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

# Which events an instruction is, as a warp's own counts have them; loads and stores of shared memory are compared by their
# bytes, since either compiler may merge neighbours.
EVENTS = {"HMMA": "mma", "LDSM": "ldmatrix", "LDGSTS": "copy", "SHFL": "shuffle", "BAR": "block_barrier",
          "LDG": "global_load", "STG": "global_store", "LDS": "shared_load", "STS": "shared_store"}
# Events that both compilers are bound to: there is one instruction for each. What may be merged or moved costs less to miss.
FIRM = {"mma", "ldmatrix", "copy", "block_barrier"}
PENALTY = {True: 1e4, False: 50.0}
# Pipes beside the tensor cores. What is not named here is issued, and that is all.
PIPES = {
    "fma": ("FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "FFMA2"),
    "alu": ("IADD3", "LOP3", "SHF", "ISETP", "FSETP", "SEL", "FSEL", "FMNMX", "IMNMX", "VIMNMX", "VIADD", "LEA", "PRMT",
            "MOV", "PLOP3", "BREV", "IABS", "SGXT", "POPC", "FLO"),
    "special": ("MUFU", "F2F", "F2I", "I2F", "F2FP", "FCHK"),
    "memory": ("LDG", "STG", "LDS", "STS", "LDSM", "LDGSTS", "SHFL", "LDC", "ATOM", "RED"),
    "tensor": ("HMMA",),
}

LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z0-9_]+)((?:\.[A-Za-z0-9_]+)*)\s*([^;]*);")
LABEL = re.compile(r"^(\.L_x_\d+|\$[^:]+):")
SOURCE = re.compile(r"^\s*//## File \"([^\"]*)\", line (\d+)")


class Instruction:
    """One line of machine code: name, suffixes, whether a predicate may switch it off, and its source."""

    def __init__(self, match, source):
        predicate, self.name, self.suffix, self.operands = match.groups()
        self.predicated = predicate is not None and predicate not in ("PT", "UPT")
        self.source = source

    def bytes(self):
        width = re.search(r"\.(8|16|32|64|128)\b", self.suffix.replace("U", "").replace("S", ""))
        return int(width[1]) // 8 if width else 4


def functions(disassembly):
    """{kernel: [basic blocks]} of nvdisasm's text."""
    found = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", disassembly, flags=re.M)[1:]:
        found[part.split(",")[0]] = blocks(part.splitlines())
    return found


class Block:
    def __init__(self):
        self.instructions = []
        self.next = []  # numbers of blocks that may follow
        self.ends = False  # whether a warp may end here


def blocks(lines):
    """The basic blocks of one function; the first is where warps begin."""
    all_blocks, labels, jumps, source = [Block()], {}, [], None
    for line in lines:
        at = SOURCE.match(line)
        if at:
            source = (pathlib.Path(at[1]).name, int(at[2]))
            continue
        label = LABEL.match(line)
        if label:
            if all_blocks[-1].instructions:
                all_blocks.append(Block())
                jumps.append((len(all_blocks) - 2, None))
            labels[label[1]] = len(all_blocks) - 1
            continue
        match = LINE.match(line)
        if not match:
            continue
        one = Instruction(match, source)
        here = len(all_blocks) - 1
        all_blocks[here].instructions.append(one)
        if one.name == "EXIT":
            all_blocks[here].ends = True
        elif one.name in ("BRA", "JMP"):
            jumps.append((here, re.search(r"\((\.L_x_\d+)\)", one.operands)[1]))
        elif one.name in ("RET", "BRX", "JMX"):
            # Calls are slow paths of divisions and roots; they are taken as not entered, which only lowers the bound.
            all_blocks[here].ends = True
        else:
            continue
        all_blocks.append(Block())
        if one.predicated:
            jumps.append((here, None))
    for here, target in jumps:
        all_blocks[here].next.append(here + 1 if target is None else labels[target])
    # Behind a jump that is always taken only padding follows, or a block that something jumps to.
    return all_blocks


def measured(launches):
    """The events of launches of one kernel, as warps' instructions; those of shared memory in bytes of a lane."""
    events = collections.Counter()
    for launch in launches:
        events["warps"] += launch["warps"]
        for event in ("mma", "ldmatrix", "shuffle", "block_barrier"):
            events[event] += launch["events"].get(event, 0)
        for line in launch["lines"]:
            if line["kind"] == "copy":
                events["copy"] += line["instructions"] if line["space"] == "shared" else 0
            elif line["kind"] != "matrix":
                scale = line["bytes"] if line["space"] == "shared" else 1
                events[f"{line['space']}_{line['kind']}"] += scale * line["instructions"]
    return events


class Least:
    """The least flow through a kernel's code for what was counted."""

    def __init__(self, kernel, code, events):
        edges = [(here, there) for here, block in enumerate(code) for there in block.next if there < len(code)]
        exits = [here for here, block in enumerate(code) if block.ends]
        names = sorted(set(EVENTS.values()))
        # Variables: flow of each edge, flow that ends in each exit, events too few and too many.
        count = len(edges) + len(exits) + 2 * len(names)
        visits = [collections.Counter() for _ in code]  # block: the edges into it
        rows, values, size = [], [], len(code)
        incoming = collections.defaultdict(list)
        for variable, (here, there) in enumerate(edges):
            rows.append((here, variable, -1.0))
            rows.append((there, variable, 1.0))
            incoming[there].append(variable)
        for index, here in enumerate(exits):
            rows.append((here, len(edges) + index, -1.0))
        values = [-float(events["warps"]) if here == 0 else 0.0 for here in range(size)]
        cost = numpy.zeros(count)
        for here, block in enumerate(code):
            for variable in incoming[here]:
                cost[variable] += len(block.instructions)
        slack = len(edges) + len(exits)
        limits = []
        for index, name in enumerate(names):
            sure, may = collections.Counter(), collections.Counter()
            base_sure = base_may = 0.0
            for here, block in enumerate(code):
                weights = [self.weight(one, name) for one in block.instructions]
                certain = sum(w for w, one in zip(weights, block.instructions) if not one.predicated)
                for variable in incoming[here]:
                    sure[variable] += certain
                    may[variable] += sum(weights)
                if here == 0:
                    base_sure, base_may = certain * events["warps"], sum(weights) * events["warps"]
            few, many = slack + 2 * index, slack + 2 * index + 1
            cost[few] = cost[many] = PENALTY[name in FIRM]
            # sure - many <= counted <= may + few
            limits.append((dict(sure) | {many: -1.0}, events[name] - base_sure))
            limits.append(({v: -w for v, w in may.items()} | {few: -1.0}, base_may - events[name]))
        balance = csr_matrix(([v for _, _, v in rows], ([r for r, _, _ in rows], [c for _, c, _ in rows])), (size, count))
        upper = csr_matrix((
            [w for row, _ in limits for w in row.values()],
            ([i for i, (row, _) in enumerate(limits) for _ in row], [v for row, _ in limits for v in row])),
            (len(limits), count))
        done = linprog(cost, A_ub=upper, b_ub=[limit for _, limit in limits], A_eq=balance, b_eq=values, method="highs")
        if done.status != 0:
            sys.exit(f"{kernel}: no flow through its code fits what was counted: {done.message}")
        self.visits = numpy.zeros(size)
        self.visits[0] = events["warps"]
        for here in range(size):
            self.visits[here] += sum(done.x[v] for v in incoming[here])
        self.code = code
        # Counted events that no flow explains, each with the code's too few or too many.
        self.unexplained = {name: float(done.x[slack + 2 * i] - done.x[slack + 2 * i + 1]) for i, name in enumerate(names)
                            if max(done.x[slack + 2 * i], done.x[slack + 2 * i + 1]) > 0.5}

    @staticmethod
    def weight(one, name):
        if EVENTS.get(one.name) != name:
            return 0
        return one.bytes() if name.startswith("shared_") else 1

    def issued(self):
        """Instructions of all warps."""
        return int(round(sum(n * len(block.instructions) for n, block in zip(self.visits, self.code))))

    def pipes(self):
        """{pipe: instructions}."""
        of = {name: pipe for pipe, names in PIPES.items() for name in names}
        table = collections.Counter({pipe: 0.0 for pipe in PIPES})
        for n, block in zip(self.visits, self.code):
            for one in block.instructions:
                if one.name in of:
                    table[of[one.name]] += n
        return {pipe: int(round(n)) for pipe, n in table.items()}
