"""Keys and values of the tokens so far, so that a new token computes itself alone.

Rows lie in slots. What a pass computes is a pack: whole prompts, each a document, or one new token of every
row, each a document of length 1 that sees its slot. Slots in use are the first ones, so that a step reads
one contiguous block; a row that ends gives its slot to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from nemoalign.model.attention import CoreAttention, Documents
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
    """The documents of a pack, each the row of a slot: whole prompts, or the newest token of every row."""

    cache: KeyValueCache = field(default_factory=lambda: KeyValueCache(0))
    slots: Sequence[int] = ()
    starts: Sequence[int] = ()
    """Positions each row has in the cache already: none of prompts, at least one of others."""
    _visible: dict[int | None, Tensor | None] = field(default_factory=dict)
    """By window, which positions the newest tokens see; the same in all layers."""

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
        # megatron-core's rotary table is as long as this.
        documents.max_seqlen_kv = max(start + length for _, start, length in rows)
        return documents

    def attend(self, core: CoreAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the context [s, 1, heads * d] of a pack [s, 1, n, d]; its keys and values are kept."""
        both = self.cache.of_layer(core.layer_number, key)
        if any(self.starts):
            return self._continue_rows(both, core, query, key, value)
        place = 0
        for slot, length in zip(self.slots, self.lengths, strict=False):
            for kept, new in zip(both, (key, value), strict=True):
                kept[slot, :, :length] = new[place : place + length, 0].transpose(0, 1)
            place += length
        return core.attend_documents(query, key, value, self)

    def _continue_rows(
        self, both: Tensor, core: CoreAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Return the same for one token a row; padding gets zeros."""
        count, device = len(self.slots), query.device
        slots, places = (torch.tensor(x, device=device) for x in (self.slots, self.starts))
        for kept, new in zip(both, (key, value), strict=True):
            kept[slots, :, places] = new[:count, 0].to(kept.dtype)
        longest = max(self.starts) + 1
        first, last = self.slots[0], self.slots[-1] + 1
        keys, values = (
            both[:, first:last, :, :longest]
            if last - first == count
            else both[:, slots, :, :longest]
        )
        groups = key.shape[2]
        # Heads of one group see the same keys: as queries of one row they need no copy of them.
        grouped = query[:count, 0].view(count, groups, -1, query.shape[-1]).to(keys.dtype)
        visible = self._seen(places, longest, core.window)
        context = core.attend_keys(grouped, keys, values, visible).to(query.dtype)
        context = context.reshape(count, 1, -1)
        return functional.pad(context, (0, 0, 0, 0, 0, len(query) - count))

    def _seen(self, places: Tensor, longest: int, window: int | None) -> Tensor | None:
        """Return which positions each row's newest token sees, [rows, 1, 1, longest]; None for all."""
        if window not in self._visible:
            positions = torch.arange(longest, device=places.device)
            seen = positions <= places[:, None]
            if window is not None:
                seen &= positions >= places[:, None] - window
            hides_nothing = min(self.starts) + 1 == longest and (
                window is None or longest <= window + 1
            )
            self._visible[window] = None if hides_nothing else seen[:, None, None]
        return self._visible[window]
