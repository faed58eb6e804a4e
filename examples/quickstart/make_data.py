#!/usr/bin/env python3
"""Writes train.jsonl, dev.jsonl and test.jsonl: named-entity rows in DeepKE's instruction format. Needs only Python."""

import json
import random
from pathlib import Path

from world import TYPES, story

HERE = Path(__file__).resolve().parent
SOURCE = "quickstart-news"
# The English instruction of the InstructKGC / IEPile data format for this task.
INSTRUCTION = (
    "You are an expert in named entity recognition. Please extract entities that match the schema definition from the "
    "input. Return an empty list if the entity type does not exist. Please respond in the format of a JSON string."
)


def question(text):
    return json.dumps({"instruction": INSTRUCTION, "schema": TYPES, "input": text}, ensure_ascii=False)


def train_row(item):
    return {
        "task": "NER",
        "source": SOURCE,
        "instruction": question(item.text),
        "output": json.dumps(item.entities, ensure_ascii=False),
    }


def test_row(number, item):
    label = [{"entity": name, "entity_type": kind} for kind in TYPES for name in item.entities[kind]]
    return {
        "id": f"{number:04}",
        "task": "NER",
        "source": SOURCE,
        "instruction": question(item.text),
        "label": json.dumps(label, ensure_ascii=False),
    }


def stories(rng, count, seen_texts, reserved):
    """`count` stories none of whose texts occurred before."""
    kept = []
    while len(kept) < count:
        item = story(rng, reserved)
        if item.text not in seen_texts:
            seen_texts.add(item.text)
            kept.append(item)
    return kept


def write(name, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8")


def main():
    rng = random.Random(20240501)
    texts = set()
    write("train.jsonl", [train_row(item) for item in stories(rng, 1500, texts, False)])
    write("dev.jsonl", [train_row(item) for item in stories(rng, 100, texts, True)])
    write("test.jsonl", [test_row(number, item) for number, item in enumerate(stories(rng, 150, texts, True))])


if __name__ == "__main__":
    main()
