"""Tokens after prompts: a pass computes one token of every row, from cached keys, and the prompts that are new.

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
from nemoalign.model.sampling import GREEDY, Draw, Sampling, choose
from nemoalign.model.schedule import schedule

SLOTS = 32
"""Rows that are continued together."""
PREFILL_TOKENS = 4096
"""Tokens of prompts computed together, unless one prompt alone has more."""
PASSES = 8
"""Between two questions whether to go on: they are a sum over all ranks."""


@dataclass(frozen=True)
class Request:
    """A prompt, and when its answer ends."""

    ids: Sequence[int]
    """At least one."""
    stop_ids: Collection[int]
    max_new_tokens: int
    number: int = 0
    """For its draws; each row of a data set has its own."""
    has_ended: Callable[[Sequence[int]], bool] | None = None
    """Told all tokens of the answer after each of them; must answer alike on every rank."""


@dataclass
class _Row:
    """A row so far, and how many of its tokens are in the cache."""

    request: Request
    tokens: list[int]
    limit: int
    """Tokens it may have in all."""
    cached: int = 0

    @classmethod
    def of(cls, request: Request, longest: int) -> _Row:
        """Return a row that has its prompt alone and gets no longer than ``longest``."""
        limit = min(longest, len(request.ids) + request.max_new_tokens)
        return cls(request, list(request.ids), limit)

    @property
    def answer(self) -> list[int]:
        """The tokens after its prompt."""
        return self.tokens[len(self.request.ids) :]

    @property
    def draw(self) -> Draw:
        """What the choice of its next token depends on."""
        asked, length = self.request, len(self.tokens)
        return Draw(asked.number, length, length - len(asked.ids), asked.stop_ids)

    @property
    def is_done(self) -> bool:
        """True when nothing follows any more."""
        asked, written = self.request, len(self.tokens) - len(self.request.ids)
        if len(self.tokens) >= self.limit or (written and self.tokens[-1] in asked.stop_ids):
            return True
        return bool(written) and asked.has_ended is not None and asked.has_ended(self.answer)


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
    draws: Sequence[Draw]

    @classmethod
    def of(
        cls, cache: KeyValueCache, slots: Sequence[tuple[int, _Row]], device: torch.device
    ) -> _Pack:
        rows = [(slot, row.cached, len(row.tokens) - row.cached) for slot, row in slots]
        tokens = [token for _, row in slots for token in row.tokens[row.cached :]]
        places = [place for _, row in slots for place in range(row.cached, len(row.tokens))]
        ends = torch.tensor([length for *_, length in rows], device=device).cumsum(0) - 1
        packed, positions = (torch.tensor([x], device=device) for x in (tokens, places))
        return cls(cache, rows, packed, positions, ends, [row.draw for _, row in slots])

    def cached(self, padding: int) -> CachedDocuments:
        """Return what attention needs to know of the rows."""
        return CachedDocuments.in_slots(self.cache, self.rows, padding, self.tokens.device)


class _Engine:
    """Rows in slots, the first ones in use."""

    def __init__(
        self, chunks: Sequence[GPTModel], waiting: Sequence[_Row], slots: int, sampling: Sampling
    ) -> None:
        self.chunks, self.sampling = chunks, sampling
        self.device = next(chunks[0].parameters()).device
        self.waiting = deque(waiting)
        self.active: list[_Row] = []
        self.cache = KeyValueCache(min(slots, max(1, len(waiting))))

    @property
    def is_busy(self) -> bool:
        """True while rows wait or are continued."""
        return bool(self.waiting or self.active)

    def advance(self) -> None:
        """Compute the next token of every row, together with the prompts that found a slot."""
        self._admit()
        rows = list(enumerate(self.active))
        self.cache.reserve(max(len(row.tokens) for _, row in rows))
        for (_, row), token in zip(rows, self._next_tokens(rows), strict=True):
            row.cached = len(row.tokens)
            row.tokens.append(token)
        self._leave()

    def _admit(self) -> None:
        """Give free slots to rows that wait."""
        tokens = 0
        while self.waiting and len(self.active) < self.cache.slots:
            length = len(self.waiting[0].tokens)
            if tokens and tokens + length > PREFILL_TOKENS:
                return
            tokens += length
            self.active.append(self.waiting.popleft())

    def _leave(self) -> None:
        """Let rows that are done go; the last slot's row moves to the slot that is free."""
        for slot in reversed(range(len(self.active))):
            if self.active[slot].is_done:
                last = self.active.pop()
                if slot < len(self.active):
                    self.active[slot] = last
                    self.cache.move(len(self.active), slot)

    def _next_tokens(self, rows: Sequence[tuple[int, _Row]]) -> list[int]:
        """Return the next token of each row, on every rank of the replica."""
        parts = _parts(rows, len(self.chunks))
        packs = [_Pack.of(self.cache, part, self.device) for part in parts]
        forward_step = partial(_forward_step, sampling=self.sampling)
        found: list[Tensor] = schedule(
            self.chunks, packs, forward_step, forward_only=True, collect_non_loss_data=True
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
def generate(
    chunks: Sequence[GPTModel],
    requests: Sequence[Request],
    *,
    go_on: Callable[[bool], bool],
    sampling: Sampling = GREEDY,
    slots: int = SLOTS,
) -> list[list[int]]:
    """Return the tokens after each prompt, up to and with one of its ``stop_ids``.

    Collective over a model replica, whose ranks bring the same prompts; replicas may bring different
    ones, or none. No row gets longer than the model has positions.

    Args:
        chunks: this rank's part of the model.
        requests: what is asked for.
        go_on: told before every ``PASSES`` passes whether this replica has rows to continue; it must
            answer alike on all ranks of all replicas.
        sampling: how tokens are chosen.
        slots: rows that are continued together.
    """
    for chunk in chunks:
        chunk.eval()
    longest = chunks[0].max_sequence_length
    rows = [_Row.of(request, longest) for request in requests]
    engine = _Engine(chunks, [row for row in rows if not row.is_done], slots, sampling)
    while go_on(engine.is_busy):
        for _ in range(PASSES):
            if engine.is_busy:
                engine.advance()
    return [row.answer for row in rows]


def _parts(rows: Sequence[tuple[int, _Row]], chunks: int) -> list[Sequence[tuple[int, _Row]]]:
    """Return the micro-batches: one; for interleaved stages as many as there are stages."""
    if chunks == 1:
        return [rows]
    count = parallel_state.get_pipeline_model_parallel_world_size()
    each = -(-len(rows) // count)
    filled = [*rows, *([rows[-1]] * (each * count - len(rows)))]
    return [filled[start : start + each] for start in range(0, len(filled), each)]


def _forward_step(
    iterator: Iterator[_Pack], model: nn.Module, *, sampling: Sampling
) -> tuple[Tensor, Any]:
    pack = next(iterator)

    def chosen(logits: Tensor, *, non_loss_data: bool = True) -> Tensor:
        assert non_loss_data, "the schedule collects tokens, not losses"
        # [rows, 1, v/tp]; columns that only pad the vocabulary are no tokens.
        whole = gather_from_tensor_model_parallel_region(logits[:, 0].contiguous())
        return choose(whole[:, : model.real_vocab_size].float(), pack.draws, sampling)

    return forward_last_logits(model, pack), chosen
