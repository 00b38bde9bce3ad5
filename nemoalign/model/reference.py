"""The policy as it was before its first step, computed by the model in training.

Only parameters that learn can differ from the start, so only they are kept twice: all weights of a full
run, the adapters alone with LoRA. While the reference computes, the start's values take their place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Reference:
    """Copies of the parameters that learn, as they are now."""

    parameters: Sequence[nn.Parameter]
    start: Sequence[Tensor]
    is_start: bool = True
    """The policy begins here, so that both must agree before the first step."""

    @classmethod
    def of(cls, chunks: Sequence[nn.Module], *, is_start: bool = True) -> Reference:
        """Return the reference that ``chunks`` are at this moment."""
        learning = [p for chunk in chunks for p in chunk.parameters() if p.requires_grad]
        return cls(learning, [p.detach().clone() for p in learning], is_start)

    @property
    def size(self) -> int:
        """Bytes the copies take."""
        return sum(copy.numel() * copy.element_size() for copy in self.start)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute what it computed at the start; without gradients."""
        now = [p.data for p in self.parameters]
        try:
            for parameter, copy in zip(self.parameters, self.start, strict=True):
                parameter.data = copy
            with torch.no_grad():
                yield
        finally:
            for parameter, data in zip(self.parameters, now, strict=True):
                parameter.data = data
