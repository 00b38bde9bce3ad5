"""Which checkpoints a run's ``checkpoints`` directory holds: their names, what stays, which is best.

Only rank 0 changes anything here. A checkpoint is written under a name that begins with a dot, which
no reader takes for one, and renamed when whole.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from nemoalign.log import speaking_rank
from nemoalign.train.sums import find_damage

if TYPE_CHECKING:
    from nemoalign.train.progress import Progress

PROGRESS = "progress.json"
LAST = "-last.ckpt"
BEST = "best"
MAKING = ".tmp"
"""End of names that begin with a dot: on the way in, or on the way out."""
_STEP = re.compile(r"-step=(\d+)-")


class Rotation:
    """Publishes checkpoints; keeps the ``keep_top`` best by ``monitor`` and ``mode``, and the last.

    ``keep_top`` -1 keeps all.
    """

    def __init__(
        self, directory: Path, *, monitor: str, keep_top: int, mode: Literal["min", "max"] = "min"
    ) -> None:
        self.directory = directory
        self.monitor = monitor
        self.keep_top = keep_top
        self.mode = mode

    def paths(self, progress: Progress) -> tuple[Path, Path]:
        """Return where a checkpoint of ``progress`` is written, and where it is then published.

        The name is NeMo's: ``megatron_gpt--val_loss=0.432-step=1000-consumed_samples=32000.0-
        epoch=0-last.ckpt``; only people and rotation read it, the truth is in ``progress.json``.
        """
        value = (progress.val_metrics or {}).get(self.monitor)
        score = f"{self.monitor.replace('/', '_')}={value:.3f}-" if value is not None else ""
        name = (
            f"megatron_gpt--{score}step={progress.step}"
            f"-consumed_samples={float(progress.consumed_samples)}-epoch={progress.epoch}"
        )
        return self.directory / f".{name}{MAKING}", self.directory / f"{name}{LAST}"

    def publish(self, temporary: Path, final: Path) -> None:
        """Make a checkpoint visible, demote the one that was last, and remove what need not stay."""
        for previous in self.directory.glob(f"*{LAST}"):
            demoted = previous.with_name(previous.name.removesuffix(LAST) + ".ckpt")
            _remove(demoted)
            previous.rename(demoted)
        temporary.rename(final)
        self._rotate(_step(final))

    def sweep(self) -> None:
        """Remove what a run that was killed left half written or half removed."""
        for path in self.directory.glob(f".*{MAKING}"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _rotate(self, last_step: int) -> None:
        """Remove all but the ``keep_top`` best of the checkpoints that are not the last."""
        old = [path for path in self.directory.glob("*.ckpt") if not path.name.endswith(LAST)]
        again = [path for path in old if _step(path) == last_step]
        old = sorted(set(old) - set(again), key=self._rank)
        for path in again + (old[self.keep_top :] if self.keep_top >= 0 else []):
            _remove(path)
        self._link_best()

    def _link_best(self) -> None:
        """Let ``best`` name the checkpoint with the best monitored value, the newest of equals."""
        best = min(_complete(self.directory), key=self._rank)
        link = self.directory / BEST
        making = self.directory / f".{BEST}{MAKING}"
        if link.is_dir() and not link.is_symlink():  # a copy of a run may have followed links
            _remove(link)
        making.unlink(missing_ok=True)
        making.symlink_to(best.name)
        making.replace(link)

    def _rank(self, path: Path) -> tuple[float, int]:
        """Return what sorts checkpoints, the best first; one that says no number comes last."""
        try:
            value = (read_progress(path).get("val_metrics") or {}).get(self.monitor, math.nan)
        except (OSError, ValueError):
            value = math.nan
        sign = -1.0 if self.mode == "max" else 1.0
        return math.inf if math.isnan(value) else sign * value, -_step(path)


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


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """Return the position a checkpoint was saved at, as ``Progress``'s fields."""
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))


def _complete(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("*.ckpt") if (path / PROGRESS).exists()]
    return [path for path in found if not path.is_symlink()]


def _newness(path: Path) -> tuple[int, bool]:
    return _step(path), path.name.endswith(LAST)


def _step(path: Path) -> int:
    found = _STEP.search(path.name)
    return int(found.group(1)) if found else -1


def _remove(path: Path) -> None:
    """Remove a checkpoint that may be there; at no instant half of it is seen under its name."""
    if path.exists():
        going = path.with_name(f".{path.name}{MAKING}")
        path.rename(going)
        shutil.rmtree(going)
