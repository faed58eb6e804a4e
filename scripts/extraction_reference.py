#!/usr/bin/env python3
"""Precision, recall and F1 of prediction files, written from the definitions of IEPile's eval_func.py alone.

  extraction_reference.py golden                 writes tests/golden/extraction: random rows and what they score
  extraction_reference.py compare PROGRAM [N]    compares `PROGRAM evaluate` with this file on N random files
  extraction_reference.py score FILE TASK        prints the scores of a file

Plain Python, no packages.
"""
import collections
import json
import pathlib
import random
import subprocess
import sys
import tempfile

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "extraction"
TASKS = {"NER": ["entity"], "RE": ["relation"], "EE": ["event", "argument"], "EET": ["trigger"], "EEA": ["event", "argument"]}

# ---- the definitions ----


def as_list(value):
    return value if isinstance(value, list) else [value]


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def predicted(task, answer):
    """Lists of items by what is counted, or None when the answer is not a JSON object."""
    try:
        # RFC 8259: without this, Python would take NaN and Infinity.
        answer = json.loads(answer, parse_constant=refuse_constant)
    except ValueError:
        return None
    if not isinstance(answer, dict):
        return None
    first, second = [], []
    for key, values in answer.items():
        for value in values if isinstance(values, list) else []:
            if task in ("NER", "EET"):
                if isinstance(value, str):
                    first.append((value, key))
            elif not isinstance(value, dict):
                continue
            elif task == "RE":
                subject, thing = value.get("subject", ""), value.get("object", "")
                if isinstance(subject, str) and isinstance(thing, str):
                    first.append((subject, key, thing))
            else:
                roles = value.get("arguments")
                if not isinstance(roles, dict):
                    roles = {} if task == "EE" else value
                trigger = value.get("trigger", "") if task == "EE" else ""
                if not isinstance(trigger, str):
                    continue
                first.append((key, trigger))
                for role, arguments in roles.items():
                    second.extend((key, json.dumps(a), role) for a in as_list(arguments) if a != "NAN")
    return [first, second]


def gold(task, label):
    if task == "NER":
        return [[(it["entity"], it["entity_type"]) for it in label], []]
    if task == "EET":
        return [[(it["event_trigger"], it["event_type"]) for it in label], []]
    if task == "RE":
        return [[(it["head"], it["relation"], it["tail"]) for it in label], []]
    events = [(it["event_type"], it["event_trigger"] if task == "EE" else "") for it in label]
    arguments = [(it["event_type"], json.dumps(a["argument"]), a["role"]) for it in label for a in it["arguments"]]
    return [events, arguments]


def score(task, rows, mode):
    texts = {}
    unparsable = 0
    for row in rows:
        text = texts.setdefault(row.get("source", "None") + row["id"], (gold(task, json.loads(row["label"])), [[], []]))
        found = predicted(task, row["output"])
        if found is None:
            unparsable += 1
            continue
        for kind in (0, 1):
            text[1][kind].extend(found[kind])
    result = {"texts": len(texts), "unparsable": unparsable}
    for kind, name in enumerate(TASKS[task]):
        wanted = said = both = 0
        for gold_items, said_items in texts.values():
            bags = [collections.Counter(items[kind]) for items in (gold_items, said_items)]
            if mode == "set":
                bags = [collections.Counter(set(bag)) for bag in bags]
            wanted += sum(bags[0].values())
            said += sum(bags[1].values())
            both += sum((bags[0] & bags[1]).values())
        p = round(both / said * 100, 2) if said else 0.0
        r = round(both / wanted * 100, 2) if wanted else 0.0
        f1 = round(2 * p * r / (p + r), 2) if p + r else 0.0
        result[name] = {"matched": both, "gold": wanted, "predicted": said, "precision": p, "recall": r, "f1": f1}
    return result


# ---- random files ----

NAMES = ["胡老", "北京大学", "Mara Carstad", "Oslo", "Raven \"Mini\"", "千与千寻", "NAN", "", "Zoë\tK", "a", "b"]
TYPES = ["人物", "组织机构", "person", "location", "灾害/意外-坍/垮塌", "作者"]
ROLES = ["时间", "地点", "agent", "victim"]
BROKEN = ["", "no entities", "{\"a\": [", "[]", "\"x\"", "null", "3", "{\"a\": [NaN]}", "{'a': []}", "{\"a\": []} end"]
ODD = [None, 5, 1.5, True, ["a"], {"x": "y"}, {}]


def some(draw, things, most):
    return [draw.choice(things) for _ in range(draw.randint(0, most))]


def random_label(draw, task):
    if task == "NER":
        return [{"entity": draw.choice(NAMES), "entity_type": draw.choice(TYPES)} for _ in range(draw.randint(0, 4))]
    if task == "RE":
        return [{"head": draw.choice(NAMES), "relation": draw.choice(TYPES), "tail": draw.choice(NAMES)} for _ in range(draw.randint(0, 4))]
    events = []
    for _ in range(draw.randint(0, 3)):
        arguments = [{"argument": draw.choice(NAMES), "role": draw.choice(ROLES)} for _ in range(draw.randint(0, 3))]
        events.append({"event_type": draw.choice(TYPES), "event_trigger": draw.choice(NAMES), "arguments": arguments})
    return events


def random_value(draw, task, kept):
    """A value of an answer; `kept` is a label's item that it may repeat."""
    if draw.random() < 0.06:
        return draw.choice(ODD)
    if task in ("NER", "EET"):
        name = kept.get("entity", kept.get("event_trigger")) if kept else None
        return name if name is not None and draw.random() < 0.7 else draw.choice(NAMES)
    if task == "RE":
        if kept and draw.random() < 0.7:
            return {"subject": kept["head"], "object": kept["tail"]}
        value = {"subject": draw.choice(NAMES), "object": draw.choice(NAMES + [7])}
        return {key: value[key] for key in value if draw.random() < 0.9}
    roles = {}
    for argument in kept["arguments"] if kept else []:
        if draw.random() < 0.7:
            roles.setdefault(argument["role"], []).append(argument["argument"])
    for role in some(draw, ROLES, 2):
        roles.setdefault(role, []).append(draw.choice(NAMES + ["NAN", "NAN", 5, None]))
    roles = {role: values[0] if len(values) == 1 and draw.random() < 0.7 else values for role, values in roles.items()}
    if task == "EEA" and draw.random() < 0.5:
        return roles
    trigger = kept["event_trigger"] if kept and draw.random() < 0.7 else draw.choice(NAMES)
    value = {"trigger": trigger, "arguments": roles}
    if draw.random() < 0.05:
        value["trigger"] = 3
    return {key: value[key] for key in value if draw.random() < 0.95}


def random_answer(draw, task, label):
    if draw.random() < 0.1:
        return draw.choice(BROKEN)
    answer = {}
    for item in label + [None] * draw.randint(0, 2):
        if draw.random() < 0.8:
            key = item.get("entity_type", item.get("relation", item.get("event_type"))) if item else draw.choice(TYPES)
            for _ in range(draw.choice([1, 1, 1, 2])):
                answer.setdefault(key, []).append(random_value(draw, task, item))
    if draw.random() < 0.05:
        answer["odd"] = draw.choice(ODD)
    return json.dumps(answer, ensure_ascii=draw.random() < 0.5)


def random_rows(seed, task, texts):
    draw = random.Random(seed)
    rows = []
    for number in range(texts):
        label = random_label(draw, task)
        for _ in range(draw.choice([1, 1, 2, 3])):
            row = {"id": f"{number:03}", "task": task, "source": draw.choice(["news", "财经"]) if number % 3 else "news"}
            if number % 7 == 0:
                del row["source"]
            row["label"] = json.dumps(label, ensure_ascii=draw.random() < 0.5)
            row["output"] = random_answer(draw, task, label)
            rows.append(row)
    # The parts of a text need not follow each other. A text's parts must agree on their source.
    sources = {}
    for row in rows:
        if "source" in row:
            row["source"] = sources.setdefault(row["id"], row["source"])
    draw.shuffle(rows)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def golden():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    expected = {}
    for seed, task in enumerate(TASKS):
        rows = random_rows(seed, task, 24)
        write(GOLDEN / f"{task.lower()}.jsonl", rows)
        expected[task] = {mode: score(task, rows, mode) for mode in ("normal", "set")}
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def compare(program, files):
    compared = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(files):
            for task in TASKS:
                rows = random_rows(1000 + seed, task, 40)
                path = pathlib.Path(folder) / f"{task}.jsonl"
                write(path, rows)
                for mode in ("normal", "set"):
                    command = [program, "evaluate", "--predictions", str(path), "--match-mode", mode, "--json"]
                    made = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                    total = {k: v for k, v in made["files"][0]["total"].items()}
                    expected = score(task, rows, mode)
                    assert total == expected, f"{task} {mode} seed {seed}:\n{total}\n{expected}"
                    compared += 1
    print(f"{compared} files scored alike")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["golden"]:
            golden()
        case ["compare", program, *number]:
            compare(program, int(number[0]) if number else 20)
        case ["score", path, task]:
            print(json.dumps({mode: score(task, read(path), mode) for mode in ("normal", "set")}, indent=1))
        case _:
            sys.exit(__doc__)
