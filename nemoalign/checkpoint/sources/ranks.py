"""From the files of tensor- and pipeline-parallel ranks to whole tensors under global layer numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nemoalign.archive.store import TensorStore
from nemoalign.checkpoint.sources.canonical import Found, without_copies
from nemoalign.checkpoint.sources.stores import JoinedStore, Place
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, SourceError
from nemoalign.weights.names import layer_of
from nemoalign.weights.tensors import split_of

Rank = tuple[int, int]
"""Pipeline and tensor-parallel rank."""

_FOLDER = re.compile(r"mp_rank_(\d{2,})|tp_rank_(\d{2,})_pp_rank_(\d{3,})")


@dataclass(frozen=True)
class Weights:
    """What a layout holds: model tensors, adapter tensors, repeated tensors, and its name."""

    layout: str
    model: TensorStore
    adapter: TensorStore
    copies: TensorStore
    is_legacy: bool = False
    """True when the names are those of NeMo's own GPT, from before megatron-core."""
    optimizer: TensorStore | None = None
    """State of the optimizer; of ranks' own files it is not read."""

    @property
    def described(self) -> str:
        """The layout in the words of a person."""
        return f"{self.layout}, legacy names" if self.is_legacy else self.layout


def rank_of(folder: str) -> Rank | None:
    """Return the rank whose files a folder with this name holds, None for any other folder."""
    match = _FOLDER.fullmatch(folder)
    if match is None:
        return None
    only_tp, tp, pp = match.groups()
    return int(pp or 0), int(only_tp or tp)


def parallel_sizes(ranks: Mapping[Rank, object], where: str) -> Rank:
    """Return (pp, tp) sizes; the folders count, since a configuration may be stale.

    Raises:
        SourceError: when a rank's file is missing.
    """
    pp, tp = (1 + max(rank[axis] for rank in ranks) for axis in (0, 1))
    if pp * tp == len(ranks):
        return pp, tp
    stage, shard = next((p, t) for p in range(pp) for t in range(tp) if (p, t) not in ranks)
    raise SourceError(
        f"{where} has files of {len(ranks)} ranks, but none of tensor-parallel rank {shard}, "
        f"pipeline rank {stage}: at TP{tp} PP{pp} there must be {pp * tp}. Fetch the missing ones."
    )


def join_ranks(
    ranks: Mapping[Rank, Sequence[Found]], arch: Architecture, where: str, layout: str
) -> Weights:
    """Return the whole of what ranks hold: of each a list, with one entry per virtual stage.

    Layers are counted per stage on disk. Stages may hold different numbers of them; the first
    virtual stages of all ranks come before the second ones.

    Raises:
        ContentError: when the ranks do not fit together.
    """
    stages = _in_order_of_layers(ranks, where)
    sizes = _layers_per_stage(stages, arch, where)
    model, adapter, copies = _Gathered(where), _Gathered(where), _Gathered(where)
    first_layer = 0
    for shards, layers in zip(stages, sizes, strict=True):
        copies.add([without_copies(shard.model, arch) for shard in shards], 0)
        model.add([shard.model for shard in shards], first_layer)
        adapter.add([shard.adapter for shard in shards], first_layer)
        first_layer += layers
    stores = (gathered.joined(arch) for gathered in (model, adapter, copies))
    legacy = any(shard.is_legacy for shards in stages for shard in shards)
    return Weights(layout, *stores, is_legacy=legacy)


def _in_order_of_layers(ranks: Mapping[Rank, Sequence[Found]], where: str) -> list[list[Found]]:
    """Return the tensor-parallel shards of every stage, in the order of the model's layers."""
    pp, tp = parallel_sizes(ranks, where)
    counts = {len(chunks) for chunks in ranks.values()}
    if len(counts) > 1:
        raise ContentError(
            f"{where}: ranks hold {min(counts)} and {max(counts)} virtual pipeline stages. They are "
            "of different saves."
        )
    return [
        [ranks[stage, shard][chunk] for shard in range(tp)]
        for chunk in range(counts.pop())
        for stage in range(pp)
    ]


def _layers_per_stage(
    stages: Sequence[Sequence[Found]], arch: Architecture, where: str
) -> list[int]:
    sizes = [shards[0].num_layers for shards in stages]
    if any(shards[0].model for shards in stages) or sum(sizes) == arch.num_layers:
        return sizes
    if arch.num_layers % len(stages):
        raise ContentError(
            f"{where} adapts some layers of a model of {arch.num_layers}, which {len(stages)} "
            "pipeline stages do not share equally, so it is unclear which ones. Save it at pipeline size 1."
        )
    return [arch.num_layers // len(stages)] * len(stages)


@dataclass
class _Gathered:
    """The places of all ranks' shards, by global name."""

    where: str
    places: dict[str, list[Place]] = field(default_factory=dict[str, list[Place]])

    def add(self, shards: Sequence[Mapping[str, Place]], first_layer: int) -> None:
        """Add one stage's tensors under global layer numbers."""
        self._check(shards)
        for name in shards[0]:
            whole = _shifted(name, first_layer)
            if whole in self.places:
                raise ContentError(
                    f'{self.where}: two pipeline stages hold "{whole}". They are of different '
                    "saves."
                )
            self.places[whole] = [shard[name] for shard in shards]

    def joined(self, arch: Architecture) -> JoinedStore:
        """Return what was gathered as whole tensors."""
        return JoinedStore(
            {name: (split_of(name, arch), found) for name, found in self.places.items()}
        )

    def _check(self, shards: Sequence[Mapping[str, Place]]) -> None:
        for rank, shard in enumerate(shards):
            for holder, other, name in (
                (0, rank, next((n for n in shards[0] if n not in shard), None)),
                (rank, 0, next((n for n in shard if n not in shards[0]), None)),
            ):
                if name is not None:
                    raise ContentError(
                        f'{self.where}: tensor-parallel rank {other} lacks "{name}", which rank '
                        f"{holder} has. The ranks are of different saves."
                    )


def _shifted(name: str, first_layer: int) -> str:
    """Layer numbers in a rank's file count from the first layer of its pipeline stage."""
    layer = layer_of(name)
    if layer is None:
        return name
    return name.replace(f"layers.{layer}.", f"layers.{layer + first_layer}.", 1)
