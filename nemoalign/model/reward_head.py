"""The head of a reward model or critic: what it is worth that an answer ends, or stands, in these states.

It is NeMo-Aligner's ``RewardModelHead`` in float32. There its columns are shared out over the
tensor-parallel ranks; so few numbers are kept whole on each of them here, and archives hold the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from nemoalign.archive.dtypes import Array, cast
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.checkpoint.settings.reward import BIAS, WEIGHT
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD
from nemoalign.checkpoint.sources.stores import Made, MadeStore, Place, PlacedStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ConfigError


@dataclass(frozen=True)
class Answers:
    """Where the answers of a batch are: below each other, or end to end in one row."""

    lengths: Tensor
    """Tokens of each, [documents]."""
    documents: Sequence[int] | None
    """The same of a pack, with those at its end that hold only padding."""
    averages: bool
    """True for the mean over an answer's tokens, False for its last one."""

    def states(self, hidden: Tensor) -> Tensor:
        """Return one state for each answer, [documents, h] in fp32, of hidden states [s, b, h]."""
        lengths = self.lengths.long()
        flat = hidden.flatten(0, 1)
        count = len(lengths)
        if not self.averages:
            ends = lengths - 1
            rows = torch.arange(count, device=ends.device)
            places = ends * count + rows if self.documents is None else lengths.cumsum(0) - 1
            return flat.index_select(0, places).float()
        owner = self._owners(hidden)
        sums = flat.new_zeros((count + 1, flat.shape[1]), dtype=torch.float32)
        sums = sums.index_add(0, owner, flat[: len(owner)].float())
        return sums[:count] / lengths[:, None]

    def _owners(self, hidden: Tensor) -> Tensor:
        """Return the number of the answer each position belongs to; one too many for padding."""
        count = len(self.lengths)
        rows = torch.arange(count, device=hidden.device)
        if self.documents is not None:
            owner = torch.full((hidden.shape[0],), count, device=hidden.device)
            owner[: sum(self.documents[:count])] = rows.repeat_interleave(
                self.lengths.long(), output_size=sum(self.documents[:count])
            )
            return owner
        places = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return torch.where(places < self.lengths, rows, count).flatten()


class RewardHead(nn.Module):
    """A linear layer in float32, whatever the model computes in."""

    def __init__(self, hidden_size: int, outputs: int, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, hidden_size, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device))

    def forward(self, hidden: Tensor, answers: Answers) -> Tensor:
        """Return the rewards of the answers, [documents, outputs], of hidden states [s, b, h]."""
        return functional.linear(answers.states(hidden), self.weight, self.bias)

    def values(self, hidden: Tensor, group: ProcessGroup | None = None) -> Tensor:
        """Return the value of every position, [b, s], of hidden states [s, b, h]; of a head of one output.

        With ``group`` hidden states [s/tp, b, h] are this rank's share under sequence parallelism:
        not they are gathered, but their values. Collective over it then, backwards too.
        """
        assert len(self.weight) == 1, "a position has one value"
        if group is None:
            values = functional.linear(hidden.float(), self.weight, self.bias)
            return values.squeeze(-1).t()
        # A rank's gradient of the head is of its own positions; all of them learn the sum.
        weight, bias = (
            copy_to_tensor_model_parallel_region(part, group) for part in (self.weight, self.bias)
        )
        share = functional.linear(hidden.float(), weight, bias)
        # Each rank computes the whole loss from the values, so its gradient is whole already.
        values = gather_from_sequence_parallel_region(
            share, tensor_parallel_output_grad=False, group=group
        )
        return values.squeeze(-1).t()


def with_reward_head(weights: TensorStore, arch: Architecture, *, seed: int | None) -> TensorStore:
    """Return the tensors of a model as a reward model of ``arch`` has them.

    With ``seed`` its head is new and depends on the seed alone: normal with the model's own spread,
    no bias. As NeMo-Aligner's its output layer, which it does not use, is a tensor of its own.
    """
    places = {name: Place(weights, name) for name in weights.tensors}
    places.setdefault(HEAD, places[EMBEDDING])
    if seed is not None:
        fresh = _fresh_head(arch, seed)
        places |= {name: Place(fresh, name) for name in fresh.tensors}
    return PlacedStore(places)


def folded_head(
    weights: TensorStore,
    *,
    attribute_weights: Sequence[float] | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> TensorStore:
    """Return the tensors of a reward model with a head of one output, ``(sum_i w_i * output_i - mean) / std``.

    So a reward is a linear layer of one state whatever was merged and standardized, as NeMo-Aligner does
    both in its forward passes. Without ``attribute_weights`` every w is one over their number. Training
    moves the folded head, where NeMo-Aligner's critic moves the one that is merged and standardized.

    Raises:
        ConfigError: when there are not as many weights as outputs.
    """
    outputs, hidden_size = weights.tensors[WEIGHT].shape
    shares = np.array(attribute_shares(outputs, attribute_weights)) / std

    def merged(name: str) -> np.ndarray:
        rows = cast(weights.read(name), weights.tensors[name].dtype, "float32")
        return shares @ rows.astype(np.float64)

    made = MadeStore(
        {
            WEIGHT: Made(
                TensorInfo((1, hidden_size), "float32"),
                (WEIGHT,),
                lambda: merged(WEIGHT)[None].astype(np.float32),
            ),
            BIAS: Made(
                TensorInfo((1,), "float32"),
                (BIAS,),
                lambda: (merged(BIAS) - mean / std)[None].astype(np.float32),
            ),
        }
    )
    places = {name: Place(weights, name) for name in weights.tensors}
    return PlacedStore(places | {name: Place(made, name) for name in made.tensors})


def attribute_shares(outputs: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    """Return what each of an answer's rewards counts in the one they are merged to: the same without weights.

    Raises:
        ConfigError: when there are not as many weights as rewards.
    """
    if weights is None:
        return (1 / outputs,) * outputs
    if len(weights) != outputs:
        raise ConfigError(
            f"attribute_weights has {len(weights)} weights for {outputs} attributes. Give one for each."
        )
    return tuple(weights)


def _fresh_head(arch: Architecture, seed: int) -> TensorStore:
    shape = arch.num_attributes, arch.hidden_size

    def weight() -> Array:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 4)
        return torch.empty(shape).normal_(0.0, arch.init_method_std, generator=generator).numpy()

    return MadeStore(
        {
            WEIGHT: Made(TensorInfo(shape, "float32"), (), weight),
            BIAS: Made(TensorInfo(shape[:1], "float32"), (), lambda: torch.zeros(shape[0]).numpy()),
        }
    )
