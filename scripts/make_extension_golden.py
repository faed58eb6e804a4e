"""Writes tests/golden/extensions.json: learning rates of runs that were made longer, from transformers.

A run of SHORT steps is made LONG steps after each of its steps, as Hugging Face's Trainer does it: the scheduler of the
new length takes over the state of the old one (`load_state_dict`), and the optimizer its learning rate. So Trainer's
first step after it still has the old rate; `extended` holds what it has, `whole` one schedule over the new length.

    python scripts/make_extension_golden.py
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import get_scheduler

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
SHORT, LONG, BASE = 8, 14, 3e-4
SCHEDULES = [
    ("linear", {}, 0),
    ("linear", {}, 3),
    ("linear", {}, 11),
    ("cosine", {}, 3),
    ("cosine", {"num_cycles": 1.5}, 0),
    ("constant", {}, 0),
    ("constant_with_warmup", {}, 5),
    ("polynomial", {"power": 2.0, "lr_end": 1e-6}, 2),
    ("cosine_with_restarts", {"num_cycles": 2}, 2),
    ("inverse_sqrt", {}, 3),
    ("inverse_sqrt", {"timescale": 5}, 0),
    ("cosine_with_min_lr", {"min_lr": 3e-5}, 3),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 1.5}, 0),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}, 3),
    ("cosine_warmup_with_min_lr", {"min_lr": 3e-5, "warmup_lr_rate": 0.2}, 2),
    ("warmup_stable_decay", {"num_decay_steps": 3}, 2),
    ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear", "min_lr_ratio": 0.1}, 1),
]


class Run:
    def __init__(self, name, kwargs, warmup, steps):
        self.optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
        self.scheduler = get_scheduler(name, self.optimizer, warmup, steps, kwargs or None)

    def steps(self, count):
        rates = []
        for _ in range(count):
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.scheduler.step()
        return rates

    def take_over(self, other):
        self.optimizer.load_state_dict(other.optimizer.state_dict())
        self.scheduler.load_state_dict(other.scheduler.state_dict())
        return self


def main():
    table = []
    for name, kwargs, warmup in SCHEDULES:
        extended = []
        for done in range(SHORT + 1):
            short = Run(name, kwargs, warmup, SHORT)
            short.steps(done)
            extended.append(Run(name, kwargs, warmup, LONG).take_over(short).steps(LONG - done))
        whole = Run(name, kwargs, warmup, LONG).steps(LONG)
        table.append({"name": name, "kwargs": kwargs, "warmup": warmup, "base_lr": BASE, "short": SHORT, "long": LONG,
                      "whole": whole, "extended": extended})
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    rows = [json.dumps(row) for row in table]
    path = GOLDEN / "extensions.json"
    path.write_text('{"versions": ' + json.dumps(versions) + ',\n"cases": [\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
