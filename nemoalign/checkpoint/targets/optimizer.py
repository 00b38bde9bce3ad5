"""The optimizer's state of a training checkpoint, to be carried along when its layout changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemoalign.archive.dist import COMMON_NAME
from nemoalign.archive.files import Container, Region, open_container
from nemoalign.archive.store import TensorStore
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.sources.layouts import WEIGHTS_FOLDER
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.sources.stores import JoinedStore, PlacedStore
from nemoalign.checkpoint.targets.shards import all_tensors
from nemoalign.errors import ContentError
from nemoalign.weights.names import PREFIX, is_value_head, optimizer_name

STATE = "optimizer.state."
"""What every key of an optimizer's tensor begins with, then comes the slot (``exp_avg.``)."""

PROGRESS_NAME = "progress.json"
MAX_COMMON_BYTES = 256 << 20

_STARTS = ("optimizer.", "chained_")
_FOLDERS = (f"{WEIGHTS_FOLDER}/", "weights/", "")


@dataclass(frozen=True)
class OptimizerState:
    """Whole tensors of every slot (``exp_avg``) by canonical name, and what else a run needs.

    ``common`` is the torch file of steps and parameter groups, which know no layout; ``files`` say
    how far the run came.
    """

    slots: Mapping[str, TensorStore]
    common: bytes
    files: Mapping[str, Region]

    @property
    def names(self) -> list[str]:
        """The tensors of all slots, named as a report names them."""
        return [
            f"{STATE}{slot}.{name}" for slot, store in self.slots.items() for name in store.tensors
        ]


def optimizer_of(source: Source) -> OptimizerState:
    """Return the optimizer's state of a checkpoint.

    Raises:
        ContentError: when there is none, or when only the ranks that wrote it can put it together.
    """
    keys = _keys(source)
    foreign = [key for key in keys if _is_foreign(key)]
    if not isinstance(source.optimizer, PlacedStore) or foreign:
        raise ContentError(_refusal(source, keys, foreign))
    slots: dict[str, TensorStore] = {}
    places = source.optimizer
    for slot in dict.fromkeys(name.partition(".")[0] for name in places.tensors):
        own = [name for name in places.tensors if name.startswith(f"{slot}.")]
        slots[slot] = PlacedStore({name.partition(".")[2]: places.place(name) for name in own})
    container = source.container or open_container(source.path)
    progress = container.members.get(PROGRESS_NAME)
    files = {} if progress is None else {PROGRESS_NAME: progress}
    return OptimizerState(slots, _common(container), files)


def _is_foreign(key: str) -> bool:
    """True for state of what has no name; that of a value head is left out as its weights are."""
    name = key.removeprefix(STATE).partition(".")[2].removeprefix(PREFIX)
    return optimizer_name(key, has_experts=True) is None and not is_value_head(name)


def _keys(source: Source) -> list[str]:
    """Return the names of an optimizer's tensors on disk."""
    store = all_tensors(source)
    if not isinstance(store, PlacedStore) or not store.tensors:
        return []
    whole = store.place(next(iter(store.tensors))).store
    return [key for key in whole.tensors if key.startswith(_STARTS)]


def _refusal(source: Source, keys: list[str], foreign: list[str]) -> str:
    if keys:
        return (
            f'{source.path} keeps its optimizer as "{(foreign or keys)[0]}", flattened over the ranks '
            "of data parallelism by a distributed optimizer; only a run of the same layout puts it "
            "together. Leave --with-optimizer away to reshard the weights alone."
        )
    by_rank = source.kind == "lightning" and isinstance(all_tensors(source), JoinedStore)
    why = (
        "numbers its optimizer's state instead of naming it"
        if by_rank
        else "has no optimizer state"
    )
    return (
        f"{source.path} {why}: --with-optimizer is for checkpoints of a run that all ranks wrote "
        "together. Leave it away to reshard the weights alone."
    )


def _common(container: Container) -> bytes:
    """Return the torch file that every rank shares, after the allow-list has read its pickle."""
    for folder in _FOLDERS:
        region = container.members.get(f"{folder}{COMMON_NAME}")
        if region is not None:
            content = region.read(MAX_COMMON_BYTES)
            _ = TorchFile(region, f"{container.path}: {folder}{COMMON_NAME}").tree
            return content
    raise ContentError(
        f"{container.path} has no {COMMON_NAME}, in which steps and parameter groups of its "
        "optimizer would be. Leave --with-optimizer away to reshard the weights alone."
    )
