"""Checkpoints of a run: an unpacked ``.nemo`` that also holds the optimizer and the run's position.

megatron-core's ``dist_checkpointing`` writes the tensors, every rank its own; the rest (config,
tokenizer, ``progress.json``) makes the directory a source for every other command. A checkpoint is
written beside its final name and renamed when whole, so a kill at any instant leaves the last one.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import dist_checkpointing

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.errors import SourceError
from nemoalign.log import speaking_rank
from nemoalign.train.randomness import restore_streams, save_streams
from nemoalign.train.sums import find_damage, write_sums

if TYPE_CHECKING:
    from nemoalign.archive.files import Region
    from nemoalign.train.learner import Learner
    from nemoalign.train.progress import Progress

WEIGHTS = "model_weights"
PROGRESS = "progress.json"
LAST = "-last.ckpt"
BEST = "best"
_STEP = re.compile(r"-step=(\d+)-")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside tensors: everything that makes it readable on its own."""

    model_config_yaml: str
    files: Mapping[str, Region]
    adapters_only: bool


class Checkpointer:
    """Saves and restores one run's checkpoints; keeps the best ``keep_top`` and the last."""

    def __init__(
        self, directory: Path, learner: Learner, contents: Contents, *, monitor: str, keep_top: int
    ) -> None:
        self.directory = directory
        self.learner = learner
        self.contents = contents
        self.monitor = monitor
        self.keep_top = keep_top
        self.saved_step = -1

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint for ``progress`` and return its directory. Collective.

        The name is NeMo's: ``megatron_gpt--val_loss=0.432-step=1000-consumed_samples=32000.0-
        epoch=0.ckpt``; only people and rotation read it, the truth is in ``progress.json``.
        """
        value = (progress.val_metrics or {}).get(self.monitor)
        score = f"{self.monitor}={value:.3f}-" if value is not None else ""
        name = (
            f"megatron_gpt--{score}step={progress.step}"
            f"-consumed_samples={float(progress.consumed_samples)}-epoch={progress.epoch}"
        )
        temporary = self.directory / f".{name}.tmp"
        if speaking_rank():
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / WEIGHTS).mkdir(parents=True)
        torch.distributed.barrier()
        with _quietly():
            dist_checkpointing.save(self._sharded_state(), str(temporary / WEIGHTS))
        save_streams(temporary)
        torch.distributed.barrier()
        final = self.directory / f"{name}{LAST}"
        if speaking_rank():
            self._describe(temporary, progress)
            write_sums(temporary)
            self._publish(temporary, final)
        torch.distributed.barrier()
        self.saved_step = progress.step
        return final

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights and optimizer from ``checkpoint``; return its progress. Collective."""
        progress = read_progress(checkpoint)
        # megatron-core unpickles .metadata and common.pt: our allow-list reads both first.
        _vet(checkpoint / WEIGHTS)
        with _quietly():
            state: Any = dist_checkpointing.load(
                self._sharded_state(is_loading=True), str(checkpoint / WEIGHTS)
            )
        for name, chunk in self._named_chunks():
            missing, unexpected = chunk.load_state_dict(state[name], strict=False)
            wrong = [key for key in unexpected if not key.endswith("_extra_state")]
            if wrong or (missing and not self.contents.adapters_only):
                raise SourceError(f"{checkpoint} does not fit this model: {wrong or missing}.")
        self.learner.optimizer.load_state_dict(state["optimizer"])
        restore_streams(checkpoint)
        self.saved_step = progress["step"]
        return progress

    def _named_chunks(self) -> list[tuple[str, Any]]:
        chunks = self.learner.modules
        return [("model" if len(chunks) == 1 else f"model{i}", c) for i, c in enumerate(chunks)]

    def _sharded_state(self, *, is_loading: bool = False) -> dict[str, Any]:
        """Return weights and optimizer as megatron-core's sharded state; adapters alone for LoRA."""
        state: dict[str, Any] = {}
        for name, chunk in self._named_chunks():
            sharded = chunk.sharded_state_dict(prefix="model.")
            state[name] = {
                key.removeprefix("model."): value
                for key, value in sharded.items()
                if not key.endswith("_extra_state")
                and (not self.contents.adapters_only or "adapter_layer" in key)
            }
        weights = state.get("model", state)
        with self.learner.backend.optimizer_scope():
            state["optimizer"] = self.learner.optimizer.sharded_state_dict(
                weights, is_loading=is_loading
            )
        return state

    def _describe(self, directory: Path, progress: Progress) -> None:
        (directory / "model_config.yaml").write_text(
            self.contents.model_config_yaml, encoding="utf-8"
        )
        (directory / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for name, region in self.contents.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(region.read(region.size))

    def _publish(self, temporary: Path, final: Path) -> None:
        """Make the checkpoint visible, demote the one that was last, and rotate."""
        previous = max(self.directory.glob(f"*{LAST}"), key=_step, default=None)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        if previous is not None and previous != final and previous.exists():
            previous.rename(previous.with_name(previous.name.removesuffix(LAST) + ".ckpt"))
        self._rotate()

    def _rotate(self) -> None:
        """Remove all but the ``keep_top`` best of the checkpoints that are not the last."""
        old = [path for path in self.directory.glob("*.ckpt") if not path.name.endswith(LAST)]
        old.sort(key=lambda path: (_score(path, self.monitor), -_step(path)))
        for path in old[self.keep_top :]:
            shutil.rmtree(path)
        self._link_best()

    def _link_best(self) -> None:
        """Let ``best`` name the checkpoint with the lowest monitored value, the newest of equals."""
        found = _complete(self.directory)
        best = min(found, key=lambda path: (_score(path, self.monitor), -_step(path)))
        link = self.directory / BEST
        making = self.directory / f".{BEST}.tmp"
        making.unlink(missing_ok=True)
        making.symlink_to(best.name)
        if link.is_dir() and not link.is_symlink():  # a copy of a run may have followed links
            shutil.rmtree(link)
        making.replace(link)


def find_last(directory: Path) -> Path | None:
    """Return the newest complete checkpoint of a run's ``checkpoints`` directory, if there is one."""
    return max(_complete(directory), key=_newness, default=None)


def set_damaged_aside(directory: Path) -> list[str]:
    """Rename newest checkpoints whose files are not what was written; return what was found, in words.

    Collective: rank 0 looks, the others hear of it.
    """
    words: list[str] = []
    if speaking_rank():
        while (newest := find_last(directory)) is not None:
            damage = find_damage(newest)
            if damage is None:
                break
            # No reader takes a name that begins with a dot for a checkpoint.
            aside = newest.with_name(f".{newest.name}.damaged")
            newest.rename(aside)
            words.append(f"{newest} is damaged ({damage}); it was renamed to {aside.name}")
    told = [words]
    torch.distributed.broadcast_object_list(told)
    return told[0]


def _complete(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("*.ckpt") if (path / PROGRESS).exists()]
    return [path for path in found if not path.is_symlink()]


def _newness(path: Path) -> tuple[int, bool]:
    return _step(path), path.name.endswith(LAST)


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Return the position a checkpoint was saved at, as ``Progress``'s fields."""
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))


def _step(path: Path) -> int:
    found = _STEP.search(path.name)
    return int(found.group(1)) if found else -1


def _score(path: Path, monitor: str) -> float:
    progress = read_progress(path)
    return (progress.get("val_metrics") or {}).get(monitor, float("inf"))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide what megatron-core's checkpointing makes torch say about its own coming changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _vet(weights: Path) -> None:
    """Let our allow-list read ``.metadata`` and ``common.pt`` before megatron-core unpickles them."""
    DistStore(open_container(weights))
