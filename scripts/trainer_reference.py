"""Hugging Face's Trainer on a LoRA adapter, in float32 on the CPU, rows in file order: what the golden checkpoints are
made with, and what resumes the checkpoints this program exports."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from qwen_reference import logits_of, pad_batch


def read_rows(path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    return [{"input_ids": row["input_ids"], "labels": row.get("labels", row["input_ids"])} for row in rows]


def collate(rows):
    ids, labels = pad_batch(rows)
    return {"input_ids": ids, "labels": labels}


class StepLosses(TrainerCallback):
    """The loss and the learning rate of each optimizer step, unrounded."""

    def __init__(self):
        self.loss, self.lr, self.running = [], [], 0.0

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.lr.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **_):
        self.loss.append(self.running)
        self.running = 0.0


class SequentialTrainer(Trainer):
    """Trainer whose loss is the sum over the scored tokens divided by their number in the whole step, which is what
    transformers' own causal models compute; Qwen v1's plain module gives logits only. `lora_plus` is the ratio."""

    def __init__(self, *args, lora_plus=None, **kwargs):
        self.losses, self.lora_plus = StepLosses(), lora_plus
        super().__init__(*args, callbacks=[self.losses], data_collator=collate, **kwargs)
        self.model_accepts_loss_kwargs = True  # gives num_items_in_batch, and no second division

    def create_optimizer(self, *args, **kwargs):
        if self.lora_plus is None or self.optimizer is not None:
            return super().create_optimizer(*args, **kwargs)
        from peft.optimizers import create_loraplus_optimizer

        self.optimizer = create_loraplus_optimizer(
            self.model, torch.optim.AdamW, lr=self.args.learning_rate, loraplus_lr_ratio=self.lora_plus,
            loraplus_weight_decay=self.args.weight_decay, eps=self.args.adam_epsilon,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
        )
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = logits_of(model, inputs["input_ids"])[:, :-1].flatten(0, 1)
        total = F.cross_entropy(logits, inputs["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum")
        loss = total / num_items_in_batch
        self.losses.running += loss.item()
        return loss

    def get_batch_samples(self, *args, **kwargs):
        batches, _ = super().get_batch_samples(*args, **kwargs)
        scored = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        return batches, torch.tensor(scored)


def arguments(folder, **kwargs):
    return TrainingArguments(
        output_dir=str(folder), use_cpu=True, train_sampling_strategy="sequential", logging_steps=1, report_to=[],
        disable_tqdm=True, save_strategy="steps", dataloader_pin_memory=False, gradient_checkpointing=False,
        remove_unused_columns=False, **kwargs,
    )


def trained_model(base, adapter):
    """The base model with the adapter of a folder on it, trainable."""
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)
