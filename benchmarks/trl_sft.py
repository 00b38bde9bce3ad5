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
from typing import Any

import torch
from datasets import Dataset
from plain_transformers import held_out, side_parser
from rows import IGNORED, Row, read_rows
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl_common import Clock, in_steps, load_model, lora, losses, shared_settings


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
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            load_model(options),
            args=settings(options, folder),
            train_dataset=Dataset.from_list([record(row) for row in used]),
            processing_class=tokenizer,
            peft_config=lora(options),
            callbacks=[clock],
        )
        result: dict[str, Any] = {"val_before": held_out(trainer.model, options, tokenizer)}
        trainer.train()
    result["losses"] = losses(trainer)
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
    """Return TRL's settings: what every side shares, and how its rows become steps."""
    if options.packing:
        amount = {"packing": True, "max_length": options.packing, "num_train_epochs": 1}
        amount |= {"per_device_train_batch_size": 1}
    else:
        amount = {"max_length": None, **in_steps(options)}
    return SFTConfig(**amount, **shared_settings(options, folder), loss_type=options.loss_type)


def record(row: Row) -> dict[str, list[int]]:
    """Return a row as TRL's pre-tokenized form."""
    hidden = len(row.tokens) - row.targets
    return {"input_ids": row.tokens, "labels": [IGNORED] * hidden + row.tokens[hidden:]}


if __name__ == "__main__":
    main()
