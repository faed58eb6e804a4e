#!/usr/bin/env python3
"""Reads the event file of a run with TensorBoard's own reader and compares it with metrics.jsonl.

    pip install tensorboard
    scripts/check_events.py RUN
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/learning_rate": "lr",
    "eval/loss": "eval_loss",
}


def as_f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def main(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    count = 0
    for tag, key in TAGS.items():
        wanted = [(line["step"], as_f32(line[key])) for line in lines if key in line]
        found = [(event.step, event.value) for event in events.Scalars(tag)] if wanted else []
        assert found == wanted, f"{tag}: {found} is not {wanted}"
        count += len(found)
    print(f"{count} scalars under {sorted(events.Tags()['scalars'])} are those of metrics.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
