"""Rotary positions of a pack, worked out once and applied in every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """What turns pairs of channels: x cos + y sin, where y is the other of the pair, its sign in the sine.

    A pair is (i, i + r/2), or (2i, 2i + 1) where it is interleaved; channels from r on stay as they are.
    """

    cosine: Tensor
    """[s, 1, 1, r]."""
    sine: Tensor
    interleaved: bool

    @classmethod
    def of(cls, angles: Tensor, dtype: torch.dtype, *, interleaved: bool) -> Rotation:
        """Return the rotation by ``angles`` [s, 1, 1, r] of tensors of ``dtype``."""
        sine = angles.sin()
        first = sine[..., ::2] if interleaved else sine[..., : sine.shape[-1] // 2]
        first.neg_()
        return cls(angles.cos().to(dtype), sine.to(dtype), interleaved)

    def __call__(self, heads: Tensor) -> Tensor:
        """Return queries or keys [s, 1, n, d] turned."""
        turned = self.cosine.shape[-1]
        channels, rest = heads[..., :turned], heads[..., turned:]
        if self.interleaved:
            others = channels.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            others = channels.roll(turned // 2, -1)
        found = torch.addcmul(channels * self.cosine, others, self.sine)
        return torch.cat((found, rest), -1) if rest.shape[-1] else found
