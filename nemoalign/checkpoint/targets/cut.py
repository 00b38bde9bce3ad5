"""The layout a checkpoint is written for: how many ranks share each tensor, and who holds which layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nemoalign.checkpoint.sources.source import Source
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ConfigError
from nemoalign.parallel.layout import check_tensor_parallel, choices, divisors
from nemoalign.parallel.stages import UnevenStages, stage_layers
from nemoalign.weights.names import layer_of

FORMATS = ("auto", "dist", "ranks")
"""What ``--format`` takes; ``auto`` is the source's own."""


@dataclass(frozen=True, kw_only=True)
class ReshardOptions:
    """How a checkpoint is resharded: the flags of ``reshard``."""

    tp: int
    pp: int = 1
    ep: int = 1
    vp: int | None = None
    format: str = "auto"
    with_optimizer: bool = False
    verify: str = "hash"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"--format is {self.format}; use one of {', '.join(FORMATS)}.")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Sizes of the axes; ``stages`` are the layers of each pipeline stage."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    vp: int | None = None
    stages: tuple[range, ...] = ()

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what model_config.yaml says of the layout, to be set over ``config``."""
        said: dict[str, Any] = {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "virtual_pipeline_model_parallel_size": self.vp,
        }
        if self.ep > 1 or "expert_model_parallel_size" in config:
            said["expert_model_parallel_size"] = self.ep
        if self.tp == 1 and config.get("sequence_parallel"):
            said["sequence_parallel"] = False
        return said

    def stage_of(self, name: str) -> int:
        """Return the pipeline stage that holds a canonical tensor."""
        layer = layer_of(name)
        if layer is not None:
            return next(stage for stage, layers in enumerate(self.stages) if layer in layers)
        return 0 if name.startswith("embedding.") else self.pp - 1

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return names as stages hold them: embeddings, layer after layer, the rest."""
        return sorted(names, key=_place_in_model)


WHOLE = Cut()
"""One rank holds everything."""


def cut_for(source: Source, *, tp: int, pp: int, ep: int, vp: int | None) -> Cut:
    """Return the layout with these sizes, which ``source`` can be cut into.

    Raises:
        ConfigError: when a size does not fit; the sizes that do are named.
    """
    sizes = {"--tp": tp, "--pp": pp, "--ep": ep, "--vp": 1 if vp is None else vp}
    for flag, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{flag} is {size}; it counts ranks, so it is at least 1.")
    check_tensor_parallel(source.arch, tp)
    _check_adapter(source, tp)
    _check_experts(source.arch, ep)
    stages = stage_layers(source.arch.num_layers, pp, UnevenStages.from_nemo(source.config))
    if vp is not None:
        _check_chunks(source.arch, pp, vp)
    return Cut(tp=tp, pp=pp, ep=ep, vp=vp, stages=stages)


def _check_adapter(source: Source, tp: int) -> None:
    rank = source.adapter.dim if source.adapter else tp
    if rank % tp:
        raise ConfigError(
            f"The LoRA adapter has rank {rank}, which cannot be split over --tp {tp}; use --tp "
            f"{choices(divisors(rank))}."
        )


def _check_experts(arch: Architecture, ep: int) -> None:
    experts = arch.num_moe_experts or 1
    if experts % ep:
        held = f"{experts} experts" if experts > 1 else "no experts"
        raise ConfigError(
            f"The model has {held}, which cannot be split over --ep {ep}; use --ep "
            f"{choices(divisors(experts))}."
        )


def _check_chunks(arch: Architecture, pp: int, vp: int) -> None:
    if pp == 1:
        raise ConfigError(f"--vp {vp} interleaves the stages of a pipeline; give --pp 2 or more.")
    if arch.num_layers % (pp * vp):
        raise ConfigError(
            f"{arch.num_layers} layers cannot be split over --pp {pp} x --vp {vp}; their product "
            f"must be {choices(divisors(arch.num_layers))}."
        )


def _place_in_model(name: str) -> tuple[int, int]:
    layer = layer_of(name)
    if layer is not None:
        return 1, layer
    return (0, 0) if name.startswith("embedding.") else (2, 0)
