"""Fine-tune with TRL's SFTTrainer: one side of ``sft_speed.py``. Runs in the environment of requirements.txt.

It gets the same token ids as the other sides, in the same order, with the same optimizer settings; no
recompute, and PEFT's LoRA on all seven linear layers of a block. With ``--packing`` TRL packs these
rows as it packs (best fit decreasing over all of them, so its order is its own) and takes one pack a
step. Prints one JSON object like ``plain_transformers.py``; a step's seconds run from the end of the
step before, so the first step counts from the start of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from plain_transformers import TARGETS, held_out, side_parser
from rows import IGNORED, Row, read_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Run the side described on the command line."""
    parser = side_parser(__doc__)
    parser.add_argument("--loss-type", choices=("nll", "chunked_nll"), default="nll")
    parser.add_argument("--packing", type=int, default=0, help="tokens of a pack; 0 packs nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train = read_rows(options.train, tokenizer)
    used = [train[i % len(train)] for i in range(options.steps * options.gbs)]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    lora = {"r": options.lora, "lora_alpha": options.lora, "target_modules": list(TARGETS)}
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            args=settings(options, folder),
            train_dataset=Dataset.from_list([record(row) for row in used]),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if options.lora else None,
            callbacks=[clock],
        )
        result: dict[str, Any] = {"val_before": held_out(trainer.model, options, tokenizer)}
        trainer.train()
    history = trainer.state.log_history
    result["losses"] = [line["loss"] for line in history if "loss" in line]
    result["tokens"] = step_tokens(trainer, used, options)
    result["seconds"] = clock.seconds
    result["val_after"] = held_out(trainer.model, options, tokenizer)
    print(json.dumps(result))


def step_tokens(trainer: SFTTrainer, used: list[Row], options: argparse.Namespace) -> list[int]:
    """Return the real tokens of every optimizer step."""
    if options.packing:
        return [sum(lengths) for lengths in trainer.train_dataset["seq_lengths"]]
    return [
        sum(len(row.tokens) for row in used[start : start + options.gbs])
        for start in range(0, len(used), options.gbs)
    ]


def settings(options: argparse.Namespace, folder: str) -> SFTConfig:
    """Return TRL's settings: what every side shares, and nothing that only costs time."""
    if options.packing:
        amount = {"packing": True, "max_length": options.packing, "num_train_epochs": 1}
        amount |= {"per_device_train_batch_size": 1}
    else:
        amount = {"max_length": None, "max_steps": options.steps}
        amount |= {"per_device_train_batch_size": options.mbs}
        amount |= {"gradient_accumulation_steps": options.gbs // options.mbs}
    return SFTConfig(
        **amount,
        output_dir=folder,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        loss_type=options.loss_type,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=options.precision == "bf16",
        use_cpu=options.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def record(row: Row) -> dict[str, list[int]]:
    """Return a row as TRL's pre-tokenized form."""
    hidden = len(row.tokens) - row.targets
    return {"input_ids": row.tokens, "labels": [IGNORED] * hidden + row.tokens[hidden:]}


class Clock(TrainerCallback):
    """Notes the seconds between the ends of optimizer steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note one step."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


if __name__ == "__main__":
    main()
