#!/usr/bin/env python3
"""Writes tests/golden/text: what transformers and tokenizers make of texts and conversations.

    pip install -r scripts/requirements-golden.txt
    scripts/get-tokenizers
    python scripts/make_text_golden.py

`small` is a tokenizer of Qwen's kind with a few hundred tokens, trained here, so that the tests always have one; `real`
is Qwen3's, whose ids Qwen v1 shares where a text holds no token of Qwen3 alone. Conversations of Qwen3 go through
transformers' apply_chat_template with Qwen3's own template; the other families' rules are one line of ChatML, written
out below.
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT / ".cache" / "tokenizers" / "qwen3"
OUT = ROOT / "tests" / "golden" / "text"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WRITTEN = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nDEFAULT<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEMS = {
    "qwen": "You are a helpful assistant.",
    "qwen1.5": "You are a helpful assistant",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "qwen3-nothink": None,
}
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "    \n\n\r\t  ", ".,;:!?()[]{}<>|/\\\"'`~@#$%^&*-_=+",
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经",
    "。，、；：？！“”‘’（）《》", "あいうえおかきくけこアイウエオ", "가나다라마바사", "абвгдежзийклмн", "αβγδεζηθικλ", "אבגדהוז",
    "ابتثجحخد", "अआइईउऊकखगघ", "กขคงจฉชซ", "éèêëàâäöüßñçøåæ", "\u0301\u0300\u0308\u0323", "😀🎉👩\u200d👧🇨🇳❤\ufe0f",
    "½²³①Ⅳ", "\u00a0\u3000\u2009\u200b", "ＡＢ１２ﬁ",
]
PHRASES = ["I'm", "can't", "WE'LL", "you've", "it's", "don't", "'re", " the", "  ", "\n\n", "\r\n", " \n", "123 456", "def f(x):",
           "<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "<|im", "{\"a\": []}"]


def train_small():
    """A tokenizer.json of Qwen's kind with about 600 tokens."""
    real = json.loads((REAL / "tokenizer.json").read_text(encoding="utf-8"))
    split = real["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(random_texts(400, 1) + [text for case in conversations() for text in contents(case)] * 8,
                                  trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in WRITTEN])
    return tokenizer


def contents(messages):
    """What the messages say."""
    return [message["content"] for message in messages]


def random_texts(count, seed):
    """Texts that mix scripts, spaces, marks and tokens."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 8)):
            if rng.random() < 0.25:
                parts.append(rng.choice(PHRASES))
            else:
                alphabet = rng.choice(ALPHABETS)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9))))
            if rng.random() < 0.3:
                parts.append(" ")
        texts.append("".join(parts))
    return texts


def conversations():
    """Conversations without tokens of control in what is said."""
    user = lambda text: {"role": "user", "content": text}
    assistant = lambda text, **more: {"role": "assistant", "content": text, **more}
    system = lambda text: {"role": "system", "content": text}
    tool = lambda text: {"role": "tool", "content": text}
    return [
        [user("Hello"), assistant("Hi there!")],
        [system("Be brief."), user("你好，世界"), assistant("你好！")],
        [user("one"), assistant("1"), user("two"), assistant("2"), user("three"), assistant("3")],
        [user("\nleading"), assistant("\nline feeds")],
        [user("trailing\n"), assistant("line feeds\n\n")],
        [user("  spaces  "), assistant("  kept  ")],
        [user("think"), assistant("<think>\nfirst this\n</think>\n\nthen that")],
        [user("a"), assistant("<think>\nold\n</think>\n\nb"), user("c"), assistant("<think>\n\n</think>\n\nd")],
        [user("reason"), assistant("answer", reasoning_content="because\n")],
        [user("weather?"), assistant("<tool_call>\n{}\n</tool_call>"), tool("sunny"), tool("warm"), assistant("Nice.")],
        [system("s"), assistant("no question")],
        [system(""), user("empty system"), assistant("ok")],
        [user("e\u0301 \u00e9 ﬁ"), assistant("{\"组织机构\": []}")],
        [user("ends with a question"), assistant("yes"), user("really?")],
    ]


def chatml(tokenizer, messages, system):
    """Qwen1.5 to Qwen2.5: one line for each message, the default system message where there is none."""
    if messages[0]["role"] != "system" and system is not None:
        messages = [{"role": "system", "content": system}] + messages
    text, previous = "", None
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role != "tool":
            text += f"<|im_start|>{role}\n{content}<|im_end|>\n"
            continue
        text += "" if previous == "tool" else "<|im_start|>user"
        text += f"\n<tool_response>\n{content}\n</tool_response>"
        following = messages[index + 1]["role"] if index + 1 < len(messages) else None
        text += "" if following == "tool" else "<|im_end|>\n"
        previous = role
    return tokenizer.encode(text, add_special_tokens=False).ids


def piecewise(tokenizer, messages):
    """Qwen v1: role, line feed and content each alone."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEMS["qwen"]}] + messages
    ids = []
    for message in messages:
        for text in ["<|im_start|>", message["role"], "\n", message["content"], "<|im_end|>", "\n"]:
            ids += tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def deepke(tokenizer, messages):
    """DeepKE: each element of its template alone, no line feed after the last turn."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEMS["qwen"]}] + messages
    elements = []
    for message in messages:
        role, content = message["role"], message["content"]
        body = ["assistant\n", content] if role == "assistant" else [f"{role}\n{content}"]
        elements += ["<|im_start|>", *body, "<|im_end|>", "\n"]
    return [token for text in elements[:-1] for token in tokenizer.encode(text, add_special_tokens=False).ids]


def template_cases(tokenizer, wrapped):
    """Ids of every conversation by every template that has a place for it."""
    for messages in conversations():
        roles = [message["role"] for message in messages]
        reasons = any("reasoning_content" in message for message in messages)
        qwen3 = wrapped.apply_chat_template(messages, tokenize=True, return_dict=False)
        yield "qwen3", messages, qwen3
        for template, system in SYSTEMS.items():
            if reasons and template != "qwen3-nothink" or "tool" in roles and template in ("qwen", "qwen1.5"):
                continue
            yield template, messages, chatml(tokenizer, messages, system)
        if not reasons and "tool" not in roles:
            yield "qwen-v1", messages, piecewise(tokenizer, messages)
            talk = [role for role in roles if role != "system"]
            if len(talk) % 2 == 0 and all(role == ["user", "assistant"][i % 2] for i, role in enumerate(talk)):
                yield "deepke", messages, deepke(tokenizer, messages)


def write(name, lines, head=""):
    """One JSON value a line."""
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    (OUT / name).write_text(head + text, encoding="utf-8", newline="\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "small").mkdir(exist_ok=True)
    small = train_small()
    small.save(str(OUT / "small" / "tokenizer.json"), pretty=False)
    config = {"chat_template": CHATML.replace("DEFAULT", SYSTEMS["qwen"]), "eos_token": "<|im_end|>"}
    (OUT / "small" / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    real = Tokenizer.from_file(str(REAL / "tokenizer.json"))
    template = json.loads((REAL / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for name, tokenizer, seed in [("small", small, 2), ("real", real, 3)]:
        texts = random_texts(300, seed)
        write(f"texts-{name}.jsonl", ([text, tokenizer.encode(text, add_special_tokens=False).ids] for text in texts))
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
        cases = template_cases(tokenizer, wrapped)
        write(f"chats-{name}.jsonl", ({"template": t, "messages": m, "ids": list(i)} for t, m, i in cases))


if __name__ == "__main__":
    main()
