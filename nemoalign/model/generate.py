"""Tokens after prompts: whole prompts first, then one token of every row at a time, from cached keys.

Rows wait until a slot is free, so that one that ends makes room for the next. It runs in every layout,
inside megatron-core's schedule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor, nn

from nemoalign.model.cache import CachedDocuments, KeyValueCache
from nemoalign.model.forward import forward_last_logits
from nemoalign.model.schedule import schedule

SLOTS = 32
"""Rows that are continued together."""
PREFILL_TOKENS = 4096
"""Tokens of prompts computed together, unless one prompt alone has more."""


@dataclass
class _Row:
    """A row so far, and how many of its tokens are in the cache."""

    tokens: list[int]
    prompt: int
    """Tokens of its prompt."""
    stop_ids: Collection[int]
    limit: int
    """Tokens it may have in all."""
    cached: int = 0

    @property
    def is_done(self) -> bool:
        """True when nothing follows any more."""
        ended = len(self.tokens) > self.prompt and self.tokens[-1] in self.stop_ids
        return ended or len(self.tokens) >= self.limit


@dataclass(frozen=True)
class _Pack:
    """The tokens of some rows that are not in the cache yet, end to end."""

    cache: KeyValueCache
    rows: Sequence[tuple[int, int, int]]
    """Slot, start and length of each."""
    tokens: Tensor
    position_ids: Tensor
    last: Tensor
    """Of each row the place of its last token, [rows]."""

    @classmethod
    def of(
        cls, cache: KeyValueCache, slots: Sequence[tuple[int, _Row]], device: torch.device
    ) -> _Pack:
        rows = [(slot, row.cached, len(row.tokens) - row.cached) for slot, row in slots]
        tokens = [token for _, row in slots for token in row.tokens[row.cached :]]
        places = [place for _, row in slots for place in range(row.cached, len(row.tokens))]
        ends = torch.tensor([length for *_, length in rows], device=device).cumsum(0) - 1
        packed, positions = (torch.tensor([x], device=device) for x in (tokens, places))
        return cls(cache, rows, packed, positions, ends)

    def cached(self, padding: int) -> CachedDocuments:
        """Return what attention needs to know of the rows."""
        return CachedDocuments.in_slots(self.cache, self.rows, padding, self.tokens.device)


class _Engine:
    """Rows in slots, the first ones in use."""

    def __init__(self, chunks: Sequence[GPTModel], waiting: Sequence[_Row], slots: int) -> None:
        self.chunks = chunks
        self.device = next(chunks[0].parameters()).device
        self.waiting = deque(waiting)
        self.active: list[_Row] = []
        self.cache = KeyValueCache(min(slots, max(1, len(waiting))))

    @property
    def is_busy(self) -> bool:
        """True while rows wait or are continued."""
        return bool(self.waiting or self.active)

    def advance(self) -> None:
        """Compute the prompts that found a slot, or else the next token of every row."""
        rows = self._admitted() or list(enumerate(self.active))
        self.cache.reserve(max(len(row.tokens) for _, row in rows))
        for (_, row), token in zip(rows, self._next_tokens(rows), strict=True):
            row.cached = len(row.tokens)
            row.tokens.append(token)
        self._leave()

    def _admitted(self) -> list[tuple[int, _Row]]:
        """Give free slots to rows that wait; return them with their slots."""
        admitted: list[tuple[int, _Row]] = []
        tokens = 0
        while self.waiting and len(self.active) < self.cache.slots:
            tokens += len(self.waiting[0].tokens)
            if admitted and tokens > PREFILL_TOKENS:
                break
            admitted.append((len(self.active), self.waiting[0]))
            self.active.append(self.waiting.popleft())
        return admitted

    def _leave(self) -> None:
        """Let rows that are done go; the last slot's row moves to the slot that is free."""
        for slot in reversed(range(len(self.active))):
            if self.active[slot].is_done:
                last = self.active.pop()
                if slot < len(self.active):
                    self.active[slot] = last
                    self.cache.move(len(self.active), slot)

    def _next_tokens(self, rows: Sequence[tuple[int, _Row]]) -> list[int]:
        """Return the likeliest next token of each row, on every rank of the replica."""
        parts = _parts(rows, len(self.chunks))
        packs = [_Pack.of(self.cache, part, self.device) for part in parts]
        found: list[Tensor] = schedule(
            self.chunks, packs, _forward_step, forward_only=True, collect_non_loss_data=True
        )
        count = sum(map(len, parts))
        tokens = (
            torch.cat(found) if found else torch.zeros(count, dtype=torch.long, device=self.device)
        )
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            group: Any = parallel_state.get_pipeline_model_parallel_group()
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            torch.distributed.broadcast(tokens, last, group=group)
        return tokens.tolist()[: len(rows)]


@torch.no_grad()
def generate_greedy(
    chunks: Sequence[GPTModel],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[Collection[int]],
    go_on: Callable[[bool], bool],
    slots: int = SLOTS,
) -> list[list[int]]:
    """Return the likeliest tokens after each prompt, up to and with one of its ``stop_ids``.

    Collective over a model replica, whose ranks bring the same prompts; replicas may bring different
    ones, or none. ``go_on`` is told before each pass whether this replica has rows to continue, and
    must answer alike on all ranks of all replicas.
    """
    for chunk in chunks:
        chunk.eval()
    longest = chunks[0].max_sequence_length
    rows = [
        _Row(list(prompt), len(prompt), stops, min(longest, len(prompt) + max_new_tokens))
        for prompt, stops in zip(prompts, stop_ids, strict=True)
    ]
    engine = _Engine(chunks, [row for row in rows if not row.is_done], slots)
    while go_on(engine.is_busy):
        if engine.is_busy:
            engine.advance()
    return [row.tokens[row.prompt :] for row in rows]


def _parts(rows: Sequence[tuple[int, _Row]], chunks: int) -> list[Sequence[tuple[int, _Row]]]:
    """Return the micro-batches: one; for interleaved stages as many as there are stages."""
    if chunks == 1:
        return [rows]
    count = parallel_state.get_pipeline_model_parallel_world_size()
    each = -(-len(rows) // count)
    filled = [*rows, *([rows[-1]] * (each * count - len(rows)))]
    return [filled[start : start + each] for start in range(0, len(filled), each)]


def _forward_step(iterator: Iterator[_Pack], model: nn.Module) -> tuple[Tensor, Any]:
    output = forward_last_logits(model, next(iterator))
    return output, partial(_likeliest, vocab_size=model.real_vocab_size)


def _likeliest(logits: Tensor, *, vocab_size: Any, non_loss_data: bool = True) -> Tensor:
    """Return the likeliest token of each row from logits [rows, 1, v/tp]; padding is no token."""
    assert non_loss_data, "the schedule collects tokens, not losses"
    whole = gather_from_tensor_model_parallel_region(logits[:, 0].contiguous())
    return whole[:, :vocab_size].float().argmax(-1)
