#!/usr/bin/env python3
"""Compares qwentune's chat templates with transformers and jinja2: texts, prompts, tokens and answers.

    scripts/check_templates.py PROGRAM [--all] [--random N] [--seed S] [--only PATTERN]

The templates come out of public packages (template_sources.py). For those of Qwen's families and every fourth of the
others that write ChatML or R1's tokens (with --all: for all 946), and every conversation of template_rows.py, with
thinking unset, on and off:

- the text and the prompt are those of transformers' render_jinja_template;
- the answers that qwentune finds are those of the rule in template_oracle.py, which was written down beforehand and
  shares nothing with qwentune; what the rule cannot tell, qwentune must refuse by name;
- with {% generation %} in the template (TRL's), the answers found without it are those that transformers finds by it;
- the ids are those of the whole text by the `tokenizers` library, and the labels those of the rule's answers.

A difference ends it with status 1.
--random N adds that many random conversations for each template.
Needs jinja2, transformers (without torch) and the tokenizers that scripts/get-tokenizers fetches.
"""

import argparse
import collections
import functools
import json
import logging
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import template_oracle
import template_rows
import template_sources
from tokenizers import Tokenizer
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "tests" / "golden" / "text" / "small" / "tokenizer.json"
REAL = ROOT / ".cache" / "tokenizers" / "qwen3" / "tokenizer.json"
BEGIN = template_sources.BEGIN
FAMILY = re.compile(r"qwen|qwq|r1-distill|deepseek_r1|chatml", re.IGNORECASE)
# In what the two rules of masking differ.
BETWEEN = re.compile(r"(?:<[|｜][^|｜]*[|｜]>|<turn\|>|assistant|\s|</?think>)*")


def chosen(templates):
    """What is compared without --all."""
    related = [t for t in templates if any(mark in t.source for mark in ("<|im_start|>", "<｜Assistant｜>"))]
    return [t for number, t in enumerate(related) if FAMILY.search(t.name) or number % 4 == 0]


def model_folder(template, folder, tokenizer):
    """A model folder whose tokenizer has the tokens that the template writes."""
    tokens = json.loads(tokenizer.read_text(encoding="utf-8"))
    known = {token["content"] for token in tokens["added_tokens"]}
    number = max([token["id"] for token in tokens["added_tokens"]] + list(tokens["model"]["vocab"].values())) + 1
    wanted = template_sources.control_tokens(template.source) | {BEGIN, template.end}
    for content in sorted(wanted - known):
        tokens["added_tokens"].append({"id": number, "content": content, "single_word": False, "lstrip": False,
                                       "rstrip": False, "normalized": False, "special": True})
        number += 1
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": template.end, "bos_token": BEGIN}))
    (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8", newline="")


def ours(program, folder, rows, thinking):
    """qwentune's view of each row, or the error that stands for all of them."""
    (folder / "rows.jsonl").write_text(template_rows.written(rows), encoding="utf-8")
    command = [program, "preview", "--model", str(folder), "--train-file", str(folder / "rows.jsonl"), "--json", "--explain",
               "--rows", str(len(rows)), "--cutoff-len", "1000000", "--format", "messages", "--threads", "1"]
    if thinking is not None:
        command += ["--thinking", str(thinking).lower()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode not in (0, 65):
        raise SystemExit(f"{' '.join(command)}: status {done.returncode}: {done.stderr}")
    if done.returncode:
        return [{"note": done.stderr.strip().splitlines()[0]}] * len(rows)
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(template, row, thinking, prompt=False, marks=False):
    """transformers' text (and the answers by its markers), or None where it fails."""
    more = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text, places = chat_template_utils.render_jinja_template(
            [row["messages"]], tools=row.get("tools"), chat_template=template.source, add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks, eos_token=template.end, bos_token=BEGIN, **more)
        return (text[0], places[0]) if marks else text[0]
    except Exception:  # A template may fail in any way.
        return None


def asked(row):
    """The row without its last answer."""
    messages = row["messages"]
    return {**row, "messages": messages[:-1] if messages[-1]["role"] == "assistant" else messages}


def alike(text, marked, found):
    """Whether two lists of places are the same but for control tokens, the role, tags of thoughts and spaces at their
    ends, in which the two rules of masking differ."""
    joined = []
    for start, stop in marked:
        if joined and joined[-1][1] == start and len(marked) != len(found):
            joined[-1][1] = stop
        elif start < stop:
            joined.append([start, stop])
    between = [text[min(one, other):max(one, other)] for pair in zip(joined, found) for one, other in zip(*pair)]
    return len(joined) == len(found) and all(BETWEEN.fullmatch(some) for some in between)


def reason(note):
    """Why a row is refused, without what differs from row to row."""
    return re.sub(r"message \d+: ", "", re.sub(r"\"[^\"]*\"|<[|｜][^|｜]*[|｜]>|\(.*?\)", "…", note))[:100]


class Check:
    """Counts what was compared, and keeps what was wrong."""

    def __init__(self, program, template):
        self.program, self.own = program, template
        self.counts, self.wrong, self.notes = collections.Counter(), [], collections.Counter()

    def differ(self, what, *facts):
        """Notes a difference."""
        self.counts[f"{what}: DIFFERENT"] += 1
        self.wrong.append((what, self.own.name, *facts))

    def text(self, what, row, thinking, mine, other, note):
        """One text against transformers'; `note` says why there is none of ours."""
        if mine == other:
            self.counts[f"{what}: equal" if mine is not None else f"{what}: both refuse"] += 1
        elif mine is None:
            self.counts[f"{what}: refused by us alone"] += 1
            self.notes[f"{what} refused by us alone: {note}"] += 1
        elif other is None:
            self.counts[f"{what}: refused by transformers alone"] += 1
        else:
            self.differ(what, thinking, row, other, mine)

    def mask(self, row, thinking, modes, view, text, render):
        """The answers found against those of the rule; gives the rule's where both are the same."""
        if not any(message["role"] == "assistant" for message in row["messages"]):
            return None
        found, note = view.get("answers"), reason(view["note"])
        marked = theirs(self.own, row, thinking, marks=True)[1] if "endgeneration" in self.own.source else []
        try:
            expected = template_oracle.read(row, text, thinking, modes, self.own.end, render, marked)
        except template_oracle.Unjudged as why:
            self.counts["mask: not judged"] += 1
            self.notes[f"mask not judged: {why}"] += 1
            return None
        except template_oracle.Unreadable as why:
            if found:
                self.differ("mask of what cannot be told", thinking, row, str(why), text, [text[a:b] for a, b in found])
            else:
                self.counts["mask: refused by name, as it must be"] += 1
            return None
        if not found:
            self.counts["mask: refused by name though it can be told"] += 1
            self.notes[f"mask refused: {note}"] += 1
            return None
        if found == expected:
            self.counts["mask: equal"] += 1
            return expected
        shown = [[text[a:b] for a, b in places] for places in (expected, found)]
        self.differ("mask", thinking, row, text, *shown)
        return None

    def tokens(self, row, view, tokenizer, control, expected):
        """Ids and labels of the whole text."""
        said = json.dumps(row, ensure_ascii=False)
        if not view.get("input_ids") or any(token in said for token in control):
            return
        encoded = tokenizer.encode(view["rendered"], add_special_tokens=False)
        touches = lambda place: any(place[0] < stop and start < place[1] for start, stop in expected)
        labels = [number if touches(place) else -100 for number, place in zip(encoded.ids, encoded.offsets)]
        if [view["input_ids"], view["labels"]] == [encoded.ids, labels]:
            self.counts["ids and labels: equal"] += 1
        else:
            self.differ("ids and labels", row, encoded.ids, view["input_ids"])

    def compare(self, rows, real):
        """All that is compared of a template."""
        template = self.own
        knows = "enable_thinking" in template.source
        modes = [None, True, False] if knows else [None]
        render = functools.lru_cache(maxsize=4096)(
            lambda row, mode, prompt: theirs(template, json.loads(row), mode, prompt=prompt))
        rendered = lambda row, mode, prompt: render(json.dumps(row), mode, prompt)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model_folder(template, folder, REAL if real else SMALL)
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            added = tokenizer.get_added_tokens_decoder().values()
            control = [t.content for t in added if t.special or (t.content in template.source and not
                                                                 template_oracle.TAG.fullmatch(t.content))]
            for thinking in modes:
                for row, view in zip(rows, ours(self.program, folder, rows, thinking)):
                    text, note = rendered(row, thinking, False), reason(view["note"])
                    self.text("text", row, thinking, view.get("rendered"), text, note)
                    prompt = rendered(asked(row), thinking, True) if asked(row)["messages"] else None
                    self.text("prompt", row, thinking, view.get("prompt"), prompt, note)
                    if text is None or view.get("rendered") != text:
                        continue
                    expected = self.mask(row, thinking, modes, view, text, rendered)
                    if expected is not None:
                        self.tokens(row, view, tokenizer, control, expected)
            if "endgeneration" in template.source:
                self.markers(rows, folder)
        return self.counts, self.wrong, self.notes

    def markers(self, rows, folder):
        """The answers found without the template's markers against those that transformers finds by them."""
        bare = re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", self.own.source)
        bare = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", bare)
        (folder / "chat_template.jinja").write_text(bare, encoding="utf-8", newline="")
        for row, view in zip(rows, ours(self.program, folder, rows, None)):
            marked = theirs(self.own, row, None, marks=True)
            if marked is None or not view.get("answers") or view["rendered"] != marked[0]:
                continue
            text, places = marked
            if alike(text, places, view["answers"]):
                self.counts["markers: agree"] += 1
            else:
                shown = [[text[a:b] for a, b in some] for some in (places, view["answers"])]
                self.differ("markers", row, *shown)


def one(job):
    """Compares one template."""
    template, arguments, real = job
    logging.disable(logging.WARNING)
    source = random.Random(f"{arguments.seed} {template.name}")
    rows = template_rows.conversations() + [template_rows.random_row(source) for _ in range(arguments.random)]
    return Check(arguments.program, template).compare(rows, real)


def main():
    """Compares, and prints what was counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    templates = template_sources.templates()
    templates = [t for t in (templates if arguments.all else chosen(templates)) if re.search(arguments.only, t.name)]
    # Every sixteenth with Qwen3's own tokenizer, the others with a small one of its kind.
    jobs = [(template, arguments, REAL.exists() and number % 16 == 0) for number, template in enumerate(templates)]
    counts, wrong, notes = collections.Counter(), [], collections.Counter()
    with multiprocessing.Pool(2) as pool:
        for some, faults, more in pool.imap(one, jobs):
            counts, notes = counts + some, notes + more
            wrong += faults
    print(f"{len(templates)} templates, {len(template_rows.conversations())} conversations and {arguments.random} random ones")
    for what, count in sorted(counts.items()):
        print(f"{count:8} {what}")
    for note, count in sorted(notes.items(), key=lambda pair: -pair[1])[:40]:
        print(f"         {count} {note}")
    for what, count in sorted(collections.Counter((facts[0], facts[1]) for facts in wrong).items()):
        print(f"         {count} DIFFERENT: {what[0]}, {what[1]}")
    for facts in wrong[:: max(1, len(wrong) // 20)]:
        print("\n" + "\n  ".join(fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False) for fact in facts))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
