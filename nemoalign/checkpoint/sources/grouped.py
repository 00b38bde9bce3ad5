"""Experts that megatron-core's GroupedMLP keeps in two matrices, seen as one tensor per expert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nemoalign.archive.dtypes import Array
from nemoalign.archive.store import Index, TensorInfo, TensorStore
from nemoalign.errors import ShapeError

_GROUPED = re.compile(r"(.*\.mlp\.)experts\.weight([12])")


def ungrouped(store: TensorStore) -> TensorStore:
    """Return ``store`` with grouped experts taken apart; the very store where there are none.

    Raises:
        ShapeError: when a grouped matrix does not hold its layer's experts.
    """
    grouped = {key: match for key in store.tensors if (match := _GROUPED.fullmatch(key))}
    return UngroupedStore(store, grouped) if grouped else store


@dataclass(frozen=True)
class _Expert:
    """One expert in a grouped matrix, whose memory is [experts, in, out] whatever its shape says."""

    key: str
    number: int
    rows: int
    columns: int


class UngroupedStore:
    """A store whose grouped experts appear as ``experts.local_experts.{e}.linear_fc1.weight``."""

    def __init__(self, store: TensorStore, grouped: Mapping[str, re.Match[str]]) -> None:
        self._store = store
        self._experts: dict[str, _Expert] = {}
        tensors = {key: info for key, info in store.tensors.items() if key not in grouped}
        for key, match in grouped.items():
            info = store.tensors[key]
            for name, expert in _experts_of(key, match, store.tensors):
                self._experts[name] = expert
                tensors[name] = TensorInfo((expert.columns, expert.rows), info.dtype)
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it; of a grouped matrix only the rows of one expert are read."""
        expert = self._experts.get(name)
        if expert is None:
            return self._store.read(name, index)
        width = self._store.tensors[expert.key].shape[1]
        size = expert.rows * expert.columns
        start = expert.number * size
        rows = slice(start // width, -(-(start + size) // width))
        flat = self._store.read(expert.key, (rows,)).reshape(-1)
        begin = start - rows.start * width
        matrix = flat[begin : begin + size].reshape(expert.rows, expert.columns)
        return matrix.T[index]


def _experts_of(
    key: str, match: re.Match[str], tensors: Mapping[str, TensorInfo]
) -> list[tuple[str, _Expert]]:
    """Return every expert of one grouped matrix; the router of its layer says how many there are."""
    prefix, number = match.groups()
    router = tensors.get(f"{prefix}router.weight")
    shape = tensors[key].shape
    count, hidden = router.shape if router and len(router.shape) == 2 else (0, 0)
    total = shape[0] * shape[1] if len(shape) == 2 else 0
    if not total or not count or not hidden or total % (count * hidden):
        raise ShapeError(
            f'"{key}" has shape {list(shape)}, which is no group of the {count} experts of width '
            f"{hidden} that its layer's router chooses from."
        )
    width = total // (count * hidden)
    rows, columns = (hidden, width) if number == "1" else (width, hidden)
    name = f"{prefix}experts.local_experts.{{}}.linear_fc{number}.weight"
    return [(name.format(expert), _Expert(key, expert, rows, columns)) for expert in range(count)]
