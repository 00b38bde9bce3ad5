"""Which layers each pipeline stage holds: pure arithmetic, as megatron-core counts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemoalign.errors import ConfigError
from nemoalign.parallel.layout import choices, divisors

EMBEDDING_COUNTS = "account_for_embedding_in_pipeline_split"
LOSS_COUNTS = "account_for_loss_in_pipeline_split"
FIRST = ("num_layers_in_first_pipeline_stage", "first_pipeline_num_layers")
LAST = ("num_layers_in_last_pipeline_stage", "last_pipeline_num_layers")
"""Settings of model_config.yaml; the second spelling is that of megatron-core before 0.10."""


@dataclass(frozen=True, kw_only=True)
class UnevenStages:
    """What makes the first or last stage hold other than its equal share of the layers.

    The embedding, or the loss, may count as one layer; or a stage's layers are stated.
    """

    embedding_counts: bool = False
    loss_counts: bool = False
    first: int | None = None
    last: int | None = None

    @classmethod
    def from_nemo(cls, config: Mapping[str, Any]) -> UnevenStages:
        """Return what a model_config.yaml says; anything but a number or true counts as absent."""
        return cls(
            embedding_counts=config.get(EMBEDDING_COUNTS) is True,
            loss_counts=config.get(LOSS_COUNTS) is True,
            first=_stated(config, FIRST),
            last=_stated(config, LAST),
        )

    def sizes(self, num_layers: int, pp: int) -> list[int] | None:
        """Return the layers of each of ``pp`` stages, or None when they do not come out even."""
        if pp == 1:
            return [num_layers]
        if self.first is None and self.last is None:
            share, rest = divmod(num_layers + self.embedding_counts + self.loss_counts, pp)
            sizes = [share] * pp
            sizes[0] -= self.embedding_counts
            sizes[-1] -= self.loss_counts
            return None if rest or min(sizes) < 0 else sizes
        stated = [size for size in (self.first, self.last) if size is not None]
        between, left = pp - len(stated), num_layers - sum(stated)
        if left < 0 or (left % between if between else left):
            return None
        middle = [left // between] * between if between else []
        first = [] if self.first is None else [self.first]
        return first + middle + ([] if self.last is None else [self.last])


def stage_layers(
    num_layers: int, pp: int, uneven: UnevenStages = UnevenStages()
) -> tuple[range, ...]:
    """Return the layers, counted from 0, of every pipeline stage.

    Raises:
        ConfigError: when they cannot be shared out; names the sizes that work.
    """
    sizes = uneven.sizes(num_layers, pp)
    if sizes is None:
        works = [size for size in range(1, num_layers + 1) if uneven.sizes(num_layers, size)]
        why = "" if works == divisors(num_layers) else f" as model_config.yaml asks ({uneven})"
        raise ConfigError(
            f"{num_layers} layers cannot be split over --pp {pp}{why}; use --pp {choices(works)}."
        )
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _stated(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
