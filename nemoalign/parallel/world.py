"""Who started this process, and what the machine offers: read from the environment, without torch.

torchrun sets RANK and WORLD_SIZE, and so do we; srun sets its own names, which become torchrun's here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nemoalign.errors import ConfigError

FIRST_PORT, PORTS = 10_000, 20_000
"""Below the range from which Linux gives ports to clients."""

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class World:
    """The ranks of a run that somebody has started, and which of them this process is."""

    size: int
    rank: int
    local_size: int
    local_rank: int
    starter: str
    master: tuple[str, str] | None = None
    """Address and port where ranks meet, unless the environment says it already."""

    def enter(self, environ: MutableMapping[str, str]) -> None:
        """Set the variables that torch reads; a meeting place that is set already stays."""
        environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_WORLD_SIZE=str(self.local_size),
        )
        if self.master is not None:
            environ.setdefault("MASTER_ADDR", self.master[0])
            environ.setdefault("MASTER_PORT", self.master[1])


def find_world(environ: Mapping[str, str]) -> World | None:
    """Return the ranks this process belongs to, or None when it was started on its own.

    Raises:
        ConfigError: when the environment says it half only.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        size = _number(environ, "WORLD_SIZE")
        if size > 1 and not ("MASTER_ADDR" in environ and "MASTER_PORT" in environ):
            raise ConfigError(
                "RANK and WORLD_SIZE are set, but MASTER_ADDR and MASTER_PORT, where ranks meet, are "
                "not. Start with torchrun or srun, or unset RANK to let nemoalign start the ranks."
            )
        return World(
            size,
            _number(environ, "RANK"),
            _number(environ, "LOCAL_WORLD_SIZE", size),
            _number(environ, "LOCAL_RANK", 0),
            "torchrun",
        )
    return _slurm_world(environ)


def _slurm_world(environ: Mapping[str, str]) -> World | None:
    """Return the ranks srun started; an sbatch script that calls us without srun is no rank."""
    size = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", 1))
    is_script = environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environ
    if size < 2 or "SLURM_PROCID" not in environ or is_script:
        return None
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job, step = _number(environ, "SLURM_JOB_ID", 0), _number(environ, "SLURM_STEP_ID", 0)
    port = FIRST_PORT + (job * 7 + step) % PORTS
    on_nodes = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "1")
    return World(
        size,
        _number(environ, "SLURM_PROCID"),
        tasks_on_node(on_nodes, _number(environ, "SLURM_NODEID", 0)),
        _number(environ, "SLURM_LOCALID", 0),
        "srun",
        (first_host(hosts), str(port)),
    )


def first_host(node_list: str) -> str:
    """Return the first machine of SLURM's ``node[003-007,12]-ib,login1`` notation: ``node003-ib``."""
    depth = 0
    for position, letter in enumerate(node_list):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            node_list = node_list[:position]
            break
    return re.sub(r"\[([^\]]*)\]", lambda inside: re.split("[-,]", inside[1])[0], node_list)


def tasks_on_node(counts: str, node: int) -> int:
    """Return the tasks of machine ``node`` from SLURM's ``4(x2),3``: 4 on each of two, then 3."""
    each: list[int] = []
    for part in counts.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found:
            each += [int(found[1])] * int(found[2] or 1)
    return each[node] if node < len(each) else 1


def visible_gpus(environ: Mapping[str, str]) -> int:
    """Return how many CUDA devices this process may use; 0 with a torch built without CUDA."""
    if metadata.version("torch").endswith("+cpu"):
        return 0
    devices = sum(1 for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal())
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or devices == 0:
        return devices
    names = [name.strip() for name in chosen.split(",")]
    wanted = names[: names.index("-1")] if "-1" in names else names
    return len([name for name in wanted if name])


def threads_per_rank(local_size: int, environ: Mapping[str, str]) -> int:
    """Return the threads each of ``local_size`` ranks should use: physical cores shared out."""
    if "SLURM_CPUS_PER_TASK" in environ:
        return max(1, _number(environ, "SLURM_CPUS_PER_TASK"))
    return max(1, _physical_cores() // local_size)


def _physical_cores() -> int:
    """Return the cores this process may run on: hyper-threads once, container limits obeyed."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    siblings = {_text(_CPUS / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in allowed}
    quota, _, period = (_text(_QUOTA) or "max").partition(" ")
    limit = int(quota) // int(period) if quota.isdecimal() and period else len(siblings)
    return max(1, min(len(siblings), limit))


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(environ: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = environ.get(name)
    if text is None and otherwise is not None:
        return otherwise
    try:
        return int(text or "")
    except ValueError as error:
        raise ConfigError(f"The environment variable {name} is {text!r}, not a number.") from error
