"""The rows of a JSONL file of messages as token ids, the same for every side of a comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One conversation of a question and an answer; the last ``targets`` tokens are the answer."""

    tokens: list[int]
    targets: int


def read_rows(path: Path, tokenizer: Any) -> list[Row]:
    """Return the rows of ``path`` rendered by the tokenizer's chat template."""
    return [
        to_row(json.loads(line)["messages"], tokenizer)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def to_row(messages: list[dict[str, str]], tokenizer: Any) -> Row:
    """Return the whole conversation's tokens; what follows the generation prompt is the target."""
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=False
    )
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    answer = whole.removeprefix(prompt).rstrip("\n")  # ends with the end-of-turn token
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Row(head + tail, len(tail))


def pad(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, labels and attention mask, [b, s] each, padded on the right to the longest row."""
    length = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        size = len(row.tokens)
        tokens[i, :size] = torch.tensor(row.tokens)
        labels[i, size - row.targets : size] = tokens[i, size - row.targets : size]
        mask[i, :size] = 1
    return tokens, labels, mask
