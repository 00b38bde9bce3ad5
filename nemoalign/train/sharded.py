"""Weights and optimizer of a learner as megatron-core's sharded state: given out, and taken back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.core import dist_checkpointing

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.errors import SourceError
from nemoalign.train.optimizer_state import restore_optimizer, sharded_optimizer

if TYPE_CHECKING:
    from nemoalign.train.learner import Learner


TRAINED_WITH_LORA = ("adapter_layer.", "rm_head.", "value_head.")


def sharded_state(
    learner: Learner, *, adapters_only: bool, is_loading: bool = False
) -> dict[str, Any]:
    """Return weights and optimizer as megatron-core's sharded state.

    For LoRA adapters alone, with the reward or value head that was trained beside them.
    """
    state = _sharded_weights(learner, adapters_only=adapters_only)
    optimizer = sharded_optimizer(learner.optimizer, state, is_loading=is_loading)
    if optimizer:
        state["optimizer"] = optimizer
    state["updates"] = learner.updates
    return state


def load_sharded(learner: Learner, folder: Path, *, adapters_only: bool) -> None:
    """Fill the learner from the sharded state below ``folder``. Collective.

    Raises:
        SourceError: when it is not of this model, or its pickles name anything that is not data.
    """
    # megatron-core unpickles .metadata and common.pt: our allow-list reads both first.
    DistStore(open_container(folder))
    wanted = sharded_state(learner, adapters_only=adapters_only, is_loading=True)
    with quietly():
        state: Any = dist_checkpointing.load(wanted, str(folder))
    for name, chunk in _named_chunks(learner):
        missing, unexpected = chunk.load_state_dict(state[name], strict=False)
        wrong = [key for key in unexpected if not key.endswith("_extra_state")]
        if wrong or (missing and not adapters_only):
            raise SourceError(f"{folder.parent} does not fit this model: {wrong or missing}.")
    if "updates" not in state:
        raise SourceError(
            f"{folder.parent} is of an earlier nemoalign, whose optimizer state is not read. Start "
            f"from its weights: --ckpt {folder.parent}, and another directory with -o."
        )
    learner.updates = state["updates"]
    weights = _sharded_weights(learner, adapters_only=adapters_only)
    restore_optimizer(learner.optimizer, weights, state.get("optimizer", {}), learner.updates)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hide what megatron-core's checkpointing makes torch say about its own coming changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _sharded_weights(learner: Learner, *, adapters_only: bool) -> dict[str, Any]:
    """Return the weights of every chunk, each of them the parameter itself."""
    state: dict[str, Any] = {}
    for name, chunk in _named_chunks(learner):
        sharded = chunk.sharded_state_dict(prefix="model.")
        state[name] = {
            key.removeprefix("model."): value
            for key, value in sharded.items()
            if not key.endswith("_extra_state")
            and (not adapters_only or any(part in key for part in TRAINED_WITH_LORA))
        }
    return state


def _named_chunks(learner: Learner) -> list[tuple[str, Any]]:
    chunks = learner.modules
    return [("model" if len(chunks) == 1 else f"model{i}", c) for i, c in enumerate(chunks)]
