"""Keys and values of the tokens so far, so that a new token computes itself alone.

Rows lie in slots. What a pass computes is a pack: one new token of every row that goes on, each a document
of length 1 that sees its slot, then whole prompts, each a document. Slots in use are the first ones, so that a step reads
one contiguous block; a row that ends gives its slot to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from nemoalign.model.attention import CoreAttention, Documents
from nemoalign.model.rotation import Rotation
from nemoalign.parallel.cpu_bf16 import lacks_bf16_products

_STEP = 64
"""Positions by which a cache grows at least."""


class KeyValueCache:
    """Of every layer of this rank keys and values, [slots, groups, capacity, d]."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.capacity = 0
        self._layers: dict[int, Tensor] = {}

    def reserve(self, length: int) -> None:
        """Make room for rows of ``length`` positions."""
        if length <= self.capacity:
            return
        capacity = -(-max(length, self.capacity * 5 // 4) // _STEP) * _STEP
        for number, old in self._layers.items():
            new = old.new_zeros(*old.shape[:3], capacity, old.shape[-1])
            new[..., : self.capacity, :] = old
            self._layers[number] = new
        self.capacity = capacity

    def move(self, source: int, target: int) -> None:
        """Give the row of one slot to another."""
        for both in self._layers.values():
            both[:, target] = both[:, source]

    def of_layer(self, number: int, like: Tensor) -> Tensor:
        """Return keys and values of a layer, [2, slots, groups, capacity, d], for tensors [..., groups, d]."""
        if number not in self._layers:
            # Attention on a CPU without such products would widen the whole cache at every token.
            widens = like.dtype is torch.bfloat16 and like.device.type == "cpu"
            dtype = torch.float32 if widens and lacks_bf16_products() else like.dtype
            shape = (2, self.slots, like.shape[-2], self.capacity, like.shape[-1])
            # Not empty: what nobody sees is still multiplied by 0, and must be finite.
            self._layers[number] = torch.zeros(shape, dtype=dtype, device=like.device)
        return self._layers[number]


@dataclass
class CachedDocuments(Documents):
    """The documents of a pack, each the row of a slot: the newest token of rows that go on, then whole prompts."""

    cache: KeyValueCache = field(default_factory=lambda: KeyValueCache(0))
    slots: Sequence[int] = ()
    starts: Sequence[int] = ()
    """Positions each row has in the cache already: at least one, of prompts none."""
    prompts: Documents | None = None
    _rotation: Rotation | None = None
    _targets: Tensor | None = None
    _visible: dict[int | None, Tensor | None] = field(default_factory=dict)
    """By window, which positions the newest tokens see; these three are the same in all layers."""

    @classmethod
    def in_slots(
        cls,
        cache: KeyValueCache,
        rows: Sequence[tuple[int, int, int]],
        padding: int,
        device: torch.device,
    ) -> CachedDocuments:
        """Return documents for ``rows`` of (slot, start, length); ``padding`` positions belong to none."""
        slots, starts, lengths = zip(*rows, strict=True)
        documents = cls.of((*lengths, *([padding] if padding else [])), device)
        documents.cache, documents.slots, documents.starts = cache, slots, starts
        going = documents.going
        assert all(starts[:going]), "prompts come last"
        if going < len(rows):
            documents.prompts = Documents.of(lengths[going:], device)
        # megatron-core's rotary table is as long as this, and made anew where it changes.
        documents.max_seqlen_kv = cache.capacity
        return documents

    @property
    def going(self) -> int:
        """Rows that go on, one token each."""
        return sum(start > 0 for start in self.starts)

    def rotation(self, angles: Tensor, dtype: torch.dtype, *, interleaved: bool) -> Rotation:
        """Return what turns the pack's queries and keys by ``angles`` [s, 1, 1, r]."""
        if self._rotation is None:
            self._rotation = Rotation.of(angles, dtype, interleaved=interleaved)
        return self._rotation

    def attend(self, core: CoreAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the context [s, 1, heads * d] of a pack [s, 1, n, d]; its keys and values are kept."""
        both = self.cache.of_layer(core.layer_number, key)
        self._keep(both, key, value)
        going, count = self.going, sum(self.lengths[: len(self.slots)])
        missing = len(query) - count
        contexts: list[Tensor] = []
        if going:
            contexts.append(self._continue_rows(both, core, query[:going]))
        if self.prompts is not None:
            query, key, value = (part[going:count] for part in (query, key, value))
            contexts.append(core.attend_documents(query, key, value, self.prompts))
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
        return functional.pad(context, (0, 0, 0, 0, 0, missing)) if missing else context

    def _keep(self, both: Tensor, key: Tensor, value: Tensor) -> None:
        """Write the pack's keys and values to their slots."""
        if self._targets is None:
            self._targets = self._rows_of(both)
        count = sum(self.lengths[: len(self.slots)])
        new = torch.stack((key[:count, 0], value[:count, 0])).to(both.dtype)
        both.view(-1, both.shape[-1]).index_copy_(0, self._targets, new.view(-1, both.shape[-1]))

    def _rows_of(self, both: Tensor) -> Tensor:
        """Return where a layer's keys and values go, [2 * tokens * groups], in a cache of rows of width d."""
        kinds, slots, groups, capacity, _ = both.shape
        rows = zip(self.slots, self.starts, self.lengths, strict=False)
        places = [
            slot * groups * capacity + place
            for slot, start, length in rows
            for place in range(start, start + length)
        ]
        each = (
            torch.arange(kinds).view(-1, 1, 1) * (slots * groups * capacity)
            + torch.tensor(places).view(1, -1, 1)
            + torch.arange(groups) * capacity
        )
        return each.flatten().to(both.device)

    def _continue_rows(self, both: Tensor, core: CoreAttention, query: Tensor) -> Tensor:
        """Return the context of one token a row, [rows, 1, heads * d]."""
        count, groups = len(query), both.shape[2]
        slots, longest = self.slots[:count], max(self.starts[:count]) + 1
        first, last = slots[0], slots[-1] + 1
        keys, values = (
            both[:, first:last, :, :longest]
            if last - first == count
            else both[:, slots, :, :longest]
        )
        # Heads of one group see the same keys: as queries of one row they need no copy of them.
        grouped = query[:, 0].reshape(count, groups, -1, query.shape[-1]).to(keys.dtype)
        visible = self._seen(count, longest, core.window, query.device)
        context = core.attend_keys(grouped, keys, values, visible).to(query.dtype)
        return context.reshape(count, 1, -1)

    def _seen(
        self, count: int, longest: int, window: int | None, device: torch.device
    ) -> Tensor | None:
        """Return which positions each row's newest token sees, [rows, 1, 1, longest]; None for all."""
        if window not in self._visible:
            starts = self.starts[:count]
            places = torch.tensor(starts, device=device)[:, None]
            positions = torch.arange(longest, device=device)
            seen = positions <= places
            if window is not None:
                seen &= positions >= places - window
            hides_nothing = min(starts) + 1 == longest and (window is None or longest <= window + 1)
            self._visible[window] = None if hides_nothing else seen[:, None, None]
        return self._visible[window]
