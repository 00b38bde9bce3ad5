"""The two sides of generation_speed.py: a model opened twice in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nemoalign.parallel.device import select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from nemoalign.checkpoint.open import open_source
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.generate import Request, generate
from nemoalign.model.load import load_weights
from nemoalign.model.spec import DTYPES
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

Asked = Sequence[tuple[list[int], int]]
Side = Callable[[Asked, int], list[list[int]]]


@contextlib.contextmanager
def opened(model: Path, precision: Any) -> Iterator[dict[str, Side]]:
    """Open the model of a folder on both sides."""
    layout, source = ParallelLayout(1), open_source(model)
    with start(layout, seed=1):
        peer = AutoModelForCausalLM.from_pretrained(model, dtype=DTYPES[precision]).eval()
        size = peer.config.vocab_size
        chunks = build_model(
            source.arch, size, layout, precision=precision, settings=ModelSettings()
        )
        load_weights(chunks, source.weights, source.arch, layout, size)
        # Every row is as long as it is asked to be: nothing ends it.
        peer.generation_config.eos_token_id = None
        peer.generation_config.pad_token_id = 0
        yield {"nemoalign": partial(_ours, chunks), "transformers": partial(_theirs, peer)}


def _ours(chunks: Any, asked: Asked, batch: int) -> list[list[int]]:
    requests = [Request(ids, (), count, number) for number, (ids, count) in enumerate(asked)]
    return generate(chunks, requests, go_on=lambda busy: busy, slots=batch)


def _theirs(model: Any, asked: Asked, batch: int) -> list[list[int]]:
    found: list[list[int]] = []
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        longest = max(len(ids) for ids, _ in part)
        missing = [longest - len(ids) for ids, _ in part]
        tokens = torch.tensor([[0] * m + ids for m, (ids, _) in zip(missing, part, strict=True)])
        mask = torch.tensor([[0] * m + [1] * (longest - m) for m in missing])
        written = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=max(count for _, count in part),
            do_sample=False,
        )
        rows = written[:, longest:].tolist()
        found += [row[:count] for row, (_, count) in zip(rows, part, strict=True)]
    return found
