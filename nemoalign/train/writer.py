"""One sharded state on its way to the disk, written by a child process while training goes on.

megatron-core plans who writes what, copies tensors off the GPU and writes a file. Its own processes and
queues around that are not used: they outlive a killed rank, wait for ever when one of them is killed,
and leave the other ranks in a broadcast when rank 0 cannot write ``.metadata``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from nemoalign.log import speaking_rank
from nemoalign.train.child import Child
from nemoalign.train.sums import sum_file

if TYPE_CHECKING:
    from nemoalign.train.agreement import Attempt

COMMON = "common.pt"
AT_ONCE = "Type --set exp_manager.checkpoint_callback_params.async_save=false to save without it."
FORMAT = CheckpointingConfig("torch_dist", 1)


class Writer:
    """This rank's part of one sharded state."""

    def __init__(
        self, state: dict[str, Any], directory: Path, attempt: Attempt, *, in_background: bool
    ) -> None:
        """Plan the writing of ``state`` below ``directory`` and begin it. Collective.

        Without ``in_background`` no process is started and this rank's files are written on return.

        Raises:
            DiskError: on every rank, when what is written at once could not be.
        """
        self.directory = directory
        sharded, common = save_preprocess(state)
        if speaking_rank():
            attempt.run(partial(self._write_common, common))
        attempt.agree()
        # Where it is None, megatron-core starts a server process for results, which we do not need.
        strategies: Any = filesystem_async
        strategies._results_queue = Queue()
        planner: Any = _Planner(FORMAT.sharded_backend, FORMAT.sharded_backend_version)
        self._plan, self._metadata = planner.async_save(sharded, directory)
        # Held until all is written: a child reads the parent's pinned memory.
        self._staged = self._plan.preload_tensors(self._plan.write_buckets)
        self._attempt = attempt
        self._child: Child | None = None
        self._written: Any = ([], {})
        if self._staged:
            work = partial(_write, [self._plan.transforms], self._staged)
            if in_background:
                self._child = attempt.run(partial(Child, work, AT_ONCE))
            else:
                self._written = attempt.run(work)

    def is_working(self) -> bool:
        """True while this rank's tensors are being written."""
        return self._child is not None and self._child.is_working()

    def finish(self) -> dict[str, list[int]]:
        """Wait for every rank and return the sums of the files by name, on rank 0. Collective.

        Raises:
            DiskError: on every rank, when one of them could not write.
        """
        if self._child is not None:
            self._written = self._attempt.run(self._child.answer)
        self._staged = None
        self._attempt.agree()
        everywhere: list[Any] | None = None
        if speaking_rank():
            everywhere = [None] * torch.distributed.get_world_size()
        torch.distributed.gather_object(self._written, everywhere)
        if everywhere is None:
            return {}
        results = [written for written, _ in everywhere]
        self._attempt.run(partial(self._plan.finish, self._metadata, results))
        return {name: one for _, sums in everywhere for name, one in sums.items()}

    def abort(self) -> None:
        """End the writing, whatever becomes of the files."""
        if self._child is not None:
            self._child.kill()

    def _write_common(self, common: dict[str, Any]) -> None:
        with (self.directory / COMMON).open("wb") as file:
            torch.save(common, file)
        save_config(FORMAT, str(self.directory))


class _Planner(TorchDistSaveShardedStrategy):
    """megatron-core's strategy, which here gives its plan away instead of carrying it out."""

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> Any:
        return writer, save_state_dict_ret[1]


def _write(transforms: list[Any], buckets: list[Any]) -> tuple[list[Any], dict[str, list[int]]]:
    """Write files side by side; return megatron-core's results, and what was written by name."""
    results: list[Any] = []
    sums: dict[str, list[int]] = {}
    with ThreadPoolExecutor(len(buckets)) as threads:
        written = threads.map(partial(_write_file, transforms), buckets)
        for (path, *_), (part, one) in zip(buckets, written, strict=True):
            results += part
            sums["/".join(Path(path).parts[-2:])] = one
    return results, sums


def _write_file(transforms: list[Any], bucket: Any) -> tuple[list[Any], list[int]]:
    results: Queue[Any] = Queue()
    counts: Queue[int] = Queue()
    counts.put(0)
    writer: Any = filesystem_async.FileSystemWriterAsync
    writer.write_preloaded_data(transforms, 0, bucket, results, counts, use_fsync=True)
    _, outcome = results.get()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, sum_file(Path(bucket[0]))
