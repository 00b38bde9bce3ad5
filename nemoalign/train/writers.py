"""megatron-core's checkpoint writers as threads of the rank, so that nothing of a save outlives it.

megatron-core forks a process for each file and keeps a server process for their results. When a rank is
killed they live on: the server for ever, the writers with the run directory's lock and with files that
the next start writes too. Writing releases the interpreter, so threads are as fast, and the first save
waits for no process to start. An asynchronous save may call the same from a thread of its own.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async

from nemoalign.parallel.device import check_symbols

_WRITER = "FileSystemWriterAsync"
_QUEUE = "_get_write_results_queue"


def write_in_threads() -> None:
    """Let every save of this process write in threads; harmless when called again.

    Raises:
        ResourceError: when megatron-core no longer has what this replaces.
    """
    check_symbols([(filesystem_async.__name__, name) for name in (_WRITER, _QUEUE)])
    # One queue a save: two that overlap must not take each other's results.
    strategies: Any = filesystem_async
    strategies._get_write_results_queue = queue.Queue
    strategies.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write)


def _write(
    transforms: list[Any],
    use_msc: bool,
    rank: int,
    buckets: list[Any],
    results: queue.Queue[dict[int, Any] | Exception],
) -> None:
    """Write every bucket to its file; leave one list of results a file, or the first exception."""
    del use_msc, rank
    written: dict[int, Any] | Exception = {}
    with ThreadPoolExecutor(len(buckets)) as workers:
        jobs = [workers.submit(_write_one, transforms, i, one) for i, one in enumerate(buckets)]
        for i, job in enumerate(jobs):
            outcome = job.result()
            if isinstance(outcome, Exception):
                written = outcome
            elif isinstance(written, dict):
                written[i] = outcome
    results.put(written)


def _write_one(transforms: list[Any], index: int, bucket: Any) -> Any:
    """Return what megatron-core's writer says of one file: its results, or the exception it caught."""
    said: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    count: queue.Queue[int] = queue.Queue()
    count.put(index)
    writer: Any = filesystem_async.FileSystemWriterAsync
    writer.write_preloaded_data(
        transforms,
        local_proc_idx=index,
        write_bucket=bucket,
        results_queue=said,
        count_queue=count,
        use_fsync=True,
    )
    return said.get()[1]
