"""Where else the metrics of a run go when asked: TensorBoard and Weights & Biases, both optional packages."""

from __future__ import annotations

import importlib
import importlib.util
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nemoalign.errors import ResourceError

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.config.trainer import ExpManager

WANDB_ID = "wandb_id"
"""In the run directory: the W&B run that a resumed run goes on with."""


class Sink(Protocol):
    """One more reader of a run's metrics."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Take one line of metrics."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take what the run ended with, and close."""
        ...


def check_packages(manager: ExpManager) -> None:
    """Refuse a run whose sinks cannot be imported, before anything is computed.

    Raises:
        ResourceError: naming the package and the line that installs it.
    """
    for asked, package, flag in (
        (manager.create_tensorboard_logger, "tensorboard", "--tensorboard"),
        (manager.create_wandb_logger, "wandb", "--wandb"),
    ):
        # A folder of that name in the working directory, as W&B leaves one, is found without an origin.
        found = importlib.util.find_spec(package) if asked else None
        if asked and (found is None or found.origin is None):
            raise ResourceError(
                f"{flag} needs the package {package}, which is not installed. "
                f"Type: pip install 'nemoalign[{package}]', or leave {flag} out."
            )


def open_sinks(merged: Merged, directory: Path, step: int) -> list[Sink]:
    """Return the sinks a run asks for; ``step`` is where it goes on, 0 for a new one.

    Raises:
        ResourceError: when W&B cannot start, for want of a login for instance.
    """
    manager = merged.config.exp_manager
    sinks: list[Sink] = []
    if manager.create_tensorboard_logger:
        sinks.append(TensorBoard(directory / "tensorboard", merged.to_yaml(), step))
    if manager.create_wandb_logger:
        sinks.append(Wandb(merged, directory))
    return sinks


class TensorBoard:
    """Scalars by step; settings and summary as text."""

    def __init__(self, directory: Path, config_yaml: str, step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        # What a killed run logged after its last checkpoint is computed, and logged, again.
        self._writer = writer(str(directory), purge_step=step + 1 if step else None)
        self._writer.add_text("config", _code(config_yaml), step)
        self._step = step

    def log(self, values: Mapping[str, Any]) -> None:
        """Add one line of metrics."""
        self._step = int(values["step"])
        for name, value in named(values).items():
            self._writer.add_scalar(name, value, self._step)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary and close."""
        self._writer.add_text("summary", _code(json.dumps(summary, indent=2)), self._step)
        self._writer.close()


class Wandb:
    """One W&B run for a run directory, however often it is resumed; ``WANDB_MODE=offline`` is obeyed."""

    def __init__(self, merged: Merged, directory: Path) -> None:
        wandb = importlib.import_module("wandb")
        asked = merged.config.exp_manager.wandb_logger_kwargs
        try:
            self._run = wandb.init(
                project=asked.project,
                entity=asked.entity,
                name=asked.name or directory.name,
                id=_wandb_id(directory),
                resume="allow",
                dir=str(directory),
                config=merged.tree,
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            raise ResourceError(
                f"W&B could not start: {error}. Type: wandb login, or set WANDB_MODE=offline."
            ) from error
        # W&B's own count refuses a step it has seen; a resumed run repeats those after its checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, Any]) -> None:
        """Send one line of metrics."""
        self._run.log({**named(values), "step": values["step"]})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary and close."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary.get("state") == "finished" else 1)


def named(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics as ``split/metric``, so that splits share a picture."""
    split = values["split"]
    return {
        f"{split}/{name.removeprefix(f'{split}_')}": value
        for name, value in values.items()
        if name not in ("split", "step")
    }


def _wandb_id(directory: Path) -> str:
    path = directory / WANDB_ID
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _code(text: str) -> str:
    """Return text as a block of code in TensorBoard's Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines())
