"""How many ranks a run takes, and the command line of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nemoalign
from nemoalign.errors import ConfigError, ResourceError
from nemoalign.parallel.world import visible_gpus

if TYPE_CHECKING:
    from nemoalign.config.schema import RunConfig
    from nemoalign.parallel.world import World

OUTPUT = "NEMOALIGN_EXP_MANAGER__EXPLICIT_LOG_DIR"


def wanted_ranks(config: RunConfig, world: World | None, environ: Mapping[str, str]) -> int:
    """Return how many ranks the run takes: those that were started, else what the settings ask for.

    Raises:
        ConfigError: when ranks were started, but not as many as the settings ask for.
        ResourceError: when there are fewer GPUs than that.
    """
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    if world is not None:
        asked = (devices or world.local_size) * (nodes or max(1, world.size // world.local_size))
        if (devices or nodes) and asked != world.size:
            raise ConfigError(
                f"{world.starter} started {world.size} ranks, but --devices and --num-nodes ask for "
                f"{asked}. Start as many, or leave both out."
            )
        return world.size
    if nodes is not None and nodes > 1:
        raise ConfigError(
            f"--num-nodes {nodes} needs somebody who starts ranks on every machine. "
            f"Type: srun nemoalign ... in a job of {nodes} nodes, or use torchrun."
        )
    gpus = visible_gpus(environ)
    if gpus and devices is not None and devices > gpus:
        raise ResourceError(f"--devices {devices} asks for more than the {gpus} GPUs there are.")
    model = config.model
    replica = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    return devices or gpus or replica * model.context_parallel_size


def rank_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a rank that repeats this program with ``arguments``."""
    # Python would look into the working directory first, where a random.py may lie.
    is_checkout = Path(nemoalign.__file__).parents[1] == Path.cwd()
    return [sys.executable, *([] if is_checkout else ["-P"]), "-m", "nemoalign", *arguments]
