#!/usr/bin/env python3
"""Trains the quickstart's model from scratch: a Qwen2 of 1.9 million weights and its own tokenizer, on invented text.

    pip install -r scripts/requirements-golden.txt
    python examples/quickstart/make_model.py

Writes model/ beside this file. It runs on the CPU; the seed and the number of threads are fixed.
"""

import json
import random
import re
import shutil
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, get_scheduler

from make_data import question
from world import choose, story

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model"
SEED = 7
VOCABULARY = 2048
HIDDEN, HEADS, HEAD = 192, 3, 64
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURNS, ROWS, STEPS, LEARNING_RATE = 4, 16, 500, 3e-3
ANSWER, TURN_END = re.escape("<|im_start|>assistant\n"), re.escape("<|im_end|>")
SYSTEM = "You are a helpful assistant."

# Qwen's pre-tokenizer: the split expression of every Qwen tokenizer.json, then bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The ChatML template that Qwen1.5 and Qwen2 folders carry.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ---- text -------------------------------------------------------------------------------------------------------


def joined(names, nothing):
    return (", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]) + "." if names else nothing


def ask_who(rng, item):
    return "Who is named in this text?", joined(item.entities["person"], "Nobody is named.")


def ask_where(rng, item):
    return "Which places does this text name?", joined(item.entities["location"], "No place is named.")


def ask_company(rng, item):
    return "Which companies does this text name?", joined(item.entities["organization"], "No company is named.")


def ask_repeat(rng, item):
    return "Repeat this text.", item.text


def ask_first_word(rng, item):
    return "What is the first word of this text?", item.text.split()[0].strip('".,')


def ask_last_word(rng, item):
    return "What is the last word of this text?", item.text.split()[-1].strip('".,')


def ask_sentence(rng, item):
    names = [name for group in item.entities.values() for name in group]
    return (f"Write about {choose(rng, names)}.", item.text) if names else ("Write something.", item.text)


def ask_json(rng, item):
    pairs = [(kind, names[0]) for kind, names in item.entities.items() if names] or [("text", item.text)]
    pairs = sorted(pairs, key=lambda _: rng.random())
    said = ", ".join(f"{key} is {value}" for key, value in pairs)
    return f"Write this as JSON: {said}", json.dumps(dict(pairs))


def ask_list(rng, item):
    words = [choose(rng, item.text.split()).strip('".,') for _ in range(3)]
    return f"Write these words as a JSON list: {', '.join(words)}", json.dumps(words)


def say_hello(rng, item):
    return choose(rng, ["Hello", "Thank you", "Good morning", "Who are you?"]), "Hello! How can I help you today?"


TASKS = [
    ask_who,
    ask_where,
    ask_company,
    ask_repeat,
    ask_repeat,
    ask_first_word,
    ask_last_word,
    ask_sentence,
    ask_json,
    ask_json,
    ask_list,
    say_hello,
]


def chat(turns):
    """(role, text) turns in ChatML, after the system turn."""
    turns = [("system", SYSTEM)] + turns
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def document(rng):
    """A short news text, or a chat: some questions, most of them about one text. The task of the rows does not occur."""
    item = story(rng)
    if rng.random() < 0.1:
        return item.text
    turns = []
    for task in rng.sample(TASKS, TURNS):
        question, answer = task(rng, item)
        turns += [("user", question if turns else f"{item.text}\n{question}"), ("assistant", answer)]
    return chat(turns)


# ---- tokenizer --------------------------------------------------------------------------------------------------


def train_tokenizer():
    """Byte-level BPE with Qwen's normaliser and pre-tokenizer. The words of the fine-tuning prompt are in its text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    rng = random.Random(SEED)
    texts = [document(rng).replace("<|im_start|>", "").replace("<|im_end|>", "") for _ in range(6000)]
    texts += [question("") + " " + json.dumps(item.entities) for item in (story(rng) for _ in range(3000))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def write_tokenizer(tokenizer):
    MODEL.mkdir()
    tokenizer.save(str(MODEL / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(text)): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for text in SPECIALS
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (MODEL / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


# ---- model ------------------------------------------------------------------------------------------------------


def start_by_copying(model):
    """Starts the attention weights as a circuit that copies, instead of as noise.

    The circuit is the induction head of Olsson et al., "In-context Learning and Induction Heads" (2022): in layer 0 a
    head passes on the token before; in layers 1 and 2 a head looks for the place whose token before is like the token
    here, and passes on what stood there. It would emerge by itself in a longer training; a model that starts with it
    learns in hundreds of steps to answer with words of the question. Everything is trained on from there.
    """
    generator = torch.Generator().manual_seed(SEED)
    embed = model.model.embed_tokens.weight.data.normal_(0.0, 0.1, generator=generator)
    basis = torch.linalg.qr(torch.randn(embed.shape[1], embed.shape[1], generator=generator))[0].T
    token, before = basis[:HEAD], basis[HEAD : 2 * HEAD]  # directions of the token here, and of the token before
    fast = torch.arange(4)  # rotary pairs (i, i + HEAD / 2) that tell neighbours apart
    slow = torch.cat((torch.arange(HEAD // 4, HEAD // 2), torch.arange(3 * HEAD // 4, HEAD)))  # that hardly rotate
    first, matching = model.model.layers[0].self_attn, [model.model.layers[i].self_attn for i in (1, 2)]
    for attention in [first] + matching:
        attention.v_proj.weight.data = token.clone()
    # Query turned back by one position: the scores peak where the distance is one.
    angles = 10000.0 ** (-2.0 * fast / HEAD)
    first.k_proj.bias.data[fast] = 6.0
    first.q_proj.bias.data[fast], first.q_proj.bias.data[fast + HEAD // 2] = 6.0 * angles.cos(), -6.0 * angles.sin()
    first.o_proj.weight.data[:, :HEAD] = 0.25 * before.T
    for attention in matching:
        attention.q_proj.weight.data[slow] = 1.7 * token[: len(slow)]
        attention.k_proj.weight.data[slow] = 1.7 * before[: len(slow)]
        attention.o_proj.weight.data[:, :HEAD] = 0.4 * token.T


def new_model(tokenizer):
    text_end, turn_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=text_end,
        eos_token_id=turn_end,
    )
    model = Qwen2ForCausalLM(config)
    start_by_copying(model)
    return model


def row_of(tokenizer, text):
    """(ids, labels) of a document and its <|endoftext|>; of a chat only the answers are scored."""
    ids, labels = [], []
    for place, part in enumerate(re.split(f"(?<={ANSWER})(.*?{TURN_END})", text + "<|endoftext|>")):
        new = tokenizer.encode(part).ids
        ids += new
        labels += new if place % 2 or "<|im_start|>" not in text else [-100] * len(new)
    return ids, labels


def batch_of(tokenizer, rng):
    """ROWS documents as two tensors [ROWS, longest], padded on the right with what is not scored."""
    rows = [row_of(tokenizer, document(rng)) for _ in range(ROWS)]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


def pretrain(model, tokenizer):
    rng = random.Random(SEED + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    scheduler = get_scheduler("warmup_stable_decay", optimizer, 40, STEPS, {"num_decay_steps": 150})
    started, losses, right = time.time(), [], []
    for step in range(1, STEPS + 1):
        ids, labels = batch_of(tokenizer, rng)
        logits, targets = model(input_ids=ids[:, :-1]).logits.flatten(0, 1), labels[:, 1:].flatten()
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        right.append((logits.argmax(-1) == targets)[targets != -100].float().mean().item())
        if step % 25 == 0:
            loss, share = (sum(values[-25:]) / 25 for values in (losses, right))
            print(f"step {step}/{STEPS}  loss {loss:.3f}  right {share:.1%}  {time.time() - started:.0f} s", flush=True)


def write_model(model, tokenizer):
    model.to(torch.bfloat16).save_pretrained(MODEL)
    config = json.loads((MODEL / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as released Qwen2 folders name it
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (MODEL / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")],
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    (MODEL / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for file in MODEL.iterdir():
        file.chmod(0o644)


def main():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    shutil.rmtree(MODEL, ignore_errors=True)
    tokenizer = train_tokenizer()
    write_tokenizer(tokenizer)
    model = new_model(tokenizer)
    print(f"{sum(weight.numel() for weight in model.parameters())} weights")
    pretrain(model, tokenizer)
    write_model(model, tokenizer)


if __name__ == "__main__":
    main()
