"""Where every rank stands: pure arithmetic on the sizes of the parallel axes.

Ranks are ordered as megatron-core orders them (``tp-cp-ep-dp-pp``): tp varies fastest, pp slowest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ConfigError

MAX_SUGGESTIONS = 8


@dataclass(frozen=True)
class Coordinates:
    """A rank's place on each axis."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class ParallelLayout:
    """Sizes of the parallel axes; what is left of ``world_size`` is data parallel.

    ``vp`` is the number of model chunks per pipeline stage, None without interleaving.

    Raises:
        ConfigError: when a size is below 1 or ``world_size`` does not divide.
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    vp: int | None = None
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        sizes = {"--tp": self.tp, "--pp": self.pp, "--cp": self.cp, "--ep": self.ep}
        for flag, size in {**sizes, "--devices": self.world_size}.items():
            if size < 1:
                raise ConfigError(f"{flag} is {size}; it counts ranks, so it is at least 1.")
        if self.vp is not None and (self.vp < 1 or self.pp == 1):
            raise ConfigError(
                f"--vp {self.vp} interleaves the stages of a pipeline, so it needs --pp 2 or more "
                f"and at least 1 chunk; --pp is {self.pp}."
            )
        if self.world_size % self.ranks_per_replica:
            below = self.world_size // self.ranks_per_replica * self.ranks_per_replica
            works = [n for n in (below, below + self.ranks_per_replica) if n]
            raise ConfigError(
                f"{self.world_size} ranks cannot hold whole copies of the model at --tp {self.tp} x "
                f"--pp {self.pp} x --cp {self.cp} = {self.ranks_per_replica} ranks each; "
                f"use --devices {choices(works)}."
            )

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.tp * self.pp * self.cp

    @property
    def dp(self) -> int:
        """Copies of the model; each computes its share of the global batch."""
        return self.world_size // self.ranks_per_replica

    @property
    def splits_sequence(self) -> bool:
        """True when activations between tensor-parallel regions are cut along the sequence."""
        return self.sequence_parallel and self.tp > 1

    def coordinates(self, rank: int) -> Coordinates:
        """Return the place of global ``rank`` on each axis. Inverse of ``rank_of``."""
        assert 0 <= rank < self.world_size, f"rank {rank} is not below {self.world_size}"
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Coordinates(tp=tp, cp=cp, dp=dp, pp=pp)

    def rank_of(self, place: Coordinates) -> int:
        """Return the global rank at ``place``. Inverse of ``coordinates``."""
        return place.tp + self.tp * (place.cp + self.cp * (place.dp + self.dp * place.pp))

    def layers_of(self, pp_rank: int, num_layers: int, vp_rank: int = 0) -> range:
        """Return the layers, counted from 0, of one pipeline stage (of its chunk ``vp_rank``).

        Interleaved chunks go round the stages: chunk 1 of stage 0 follows chunk 0 of the last one.
        """
        chunks = self.pp * (self.vp or 1)
        assert num_layers % chunks == 0, "check(arch) refuses layers that do not divide"
        size = num_layers // chunks
        start = (vp_rank * self.pp + pp_rank) * size
        return range(start, start + size)

    def num_microbatches(self, global_batch_size: int, micro_batch_size: int) -> int:
        """Return how many micro-batches every data-parallel rank computes for one step.

        Raises:
            ConfigError: when the global batch does not divide; names the sizes that work.
        """
        if micro_batch_size < 1 or global_batch_size < 1:
            raise ConfigError(
                f"--gbs is {global_batch_size} and --mbs is {micro_batch_size}; both count samples, "
                "so both are at least 1."
            )
        unit = micro_batch_size * self.dp
        if global_batch_size % unit:
            below = global_batch_size // unit * unit
            works = [n for n in (below, below + unit) if n]
            raise ConfigError(
                f"--gbs {global_batch_size} is not divisible by --mbs {micro_batch_size} x dp "
                f"{self.dp} = {unit}. Use --gbs {choices(works)}."
            )
        return global_batch_size // unit

    def check(self, arch: Architecture) -> None:
        """Refuse a layout that cannot hold ``arch``, naming the sizes that can.

        Raises:
            ConfigError: when heads, the MLP or the layers do not divide, or an axis is not offered.
        """
        self._check_axes(arch)
        check_tensor_parallel(arch, self.tp)
        chunks = self.pp * (self.vp or 1)
        if arch.num_layers % chunks:
            if self.vp:
                raise ConfigError(
                    f"{arch.num_layers} layers cannot be split over --pp {self.pp} x --vp {self.vp}; "
                    f"their product must be {choices(divisors(arch.num_layers))}."
                )
            works = choices(divisors(arch.num_layers))
            raise ConfigError(
                f"{arch.num_layers} layers cannot be split over --pp {self.pp}; use --pp {works}."
            )

    def _check_axes(self, arch: Architecture) -> None:
        if self.cp > 1:
            raise ConfigError(
                f"--cp {self.cp}: context parallelism is not offered; use --cp 1, and --tp with "
                "--sequence-parallel for long sequences."
            )
        if arch.has_experts and self.tp > 1 and not self.sequence_parallel:
            raise ConfigError(
                f"This checkpoint has experts, which megatron-core trains over --tp {self.tp} only "
                "together with --sequence-parallel; add it."
            )
        if self.ep > 1:
            instead = ""
            if arch.has_experts:
                instead = (
                    "; --tp with --sequence-parallel and --pp spread the experts over ranks too"
                )
            raise ConfigError(
                f"--ep {self.ep}: training over expert-parallel ranks is not offered, and this checkpoint "
                f"has {arch.num_moe_experts or 'no'} experts. Use --ep 1{instead}."
            )


def check_tensor_parallel(arch: Architecture, tp: int) -> None:
    """Refuse a tensor-parallel size that cuts through a head, a query group or the MLP unevenly.

    Raises:
        ConfigError: naming the sizes that work.
    """
    heads, groups = arch.num_attention_heads, arch.query_groups
    works = choices(divisors(math.gcd(heads, groups, arch.ffn_hidden_size)))
    if heads % tp or groups % tp:
        raise ConfigError(
            f"{heads} attention heads and {groups} query groups cannot be split over "
            f"--tp {tp}; use --tp {works}."
        )
    if arch.ffn_hidden_size % tp:
        raise ConfigError(
            f"The MLP's {arch.ffn_hidden_size} rows (ffn_hidden_size) cannot be split over "
            f"--tp {tp}; use --tp {works}."
        )


def divisors(number: int) -> list[int]:
    """Return every size that divides ``number``, from 1 on."""
    return [n for n in range(1, number + 1) if number % n == 0]


def choices(values: list[int]) -> str:
    """Return "1", "1 or 3", "1, 2 or 4"; only the smallest few of many."""
    words = [str(value) for value in values[:MAX_SUGGESTIONS]]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
