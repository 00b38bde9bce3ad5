"""Two gloo ranks kept for the whole session: starting them costs seconds, using them milliseconds."""

import contextlib
import io
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

COLLECTIVE_TIMEOUT = timedelta(seconds=90)
JOB_SECONDS = 180

_SHARED: list["RankPool"] = []
"""The pools that are open."""


class RankPool:
    """Runs a module-level function on every rank at once; what goes in and out is pickled.

    A rank that hangs or dies brings the whole pool down, and the next job starts a new one, so one bad
    test cannot spoil the rest.
    """

    def __init__(self, size: int, directory: Path) -> None:
        self.size = size
        self.directory = directory
        self.jobs = 0
        self.ranks: list[tuple[Any, Any]] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``function(*args)`` returned on each rank, rank 0 first.

        The function finds an open default process group; the environment holds RANK and WORLD_SIZE.
        """
        if not self.ranks:
            self._start()
        self.jobs += 1
        job = pickle.dumps((str(self.directory / f"store-{self.jobs}"), function, args))
        for _, pipe in self.ranks:
            pipe.send_bytes(job)
        try:
            answers = self._answers()
        except BaseException:
            self.stop()
            raise
        failures = [text for failed, text in answers if failed]
        if failures:
            raise AssertionError("\n".join(failures))
        return [result for _, result in answers]

    def stop(self) -> None:
        """Kill the ranks."""
        for process, pipe in self.ranks:
            pipe.close()
            process.kill()
            process.join()
        self.ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.size), daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def _answers(self) -> list[tuple[bool, Any]]:
        deadline = time.monotonic() + JOB_SECONDS
        answers = []
        for rank, (process, pipe) in enumerate(self.ranks):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"rank {rank} did not answer in {JOB_SECONDS} s")
            try:
                answers.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                process.join()
                raise AssertionError(
                    f"rank {rank} died with exit code {process.exitcode}"
                ) from None
        return answers


def command_here(typed: list[str]) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, its result and what it said on the way."""
    from nemoalign.cli.app import run

    out, said, environ = io.StringIO(), io.StringIO(), dict(os.environ)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = run(typed)
    finally:
        os.environ.clear()
        os.environ.update(environ)
    return code, out.getvalue(), said.getvalue()


def command_on_ranks(typed: list[str]) -> tuple[int, str, str]:
    """Run the command on the two ranks of the session, as ranks that somebody else has started."""
    environ = {**os.environ, "MASTER_ADDR": "unused", "MASTER_PORT": "0"}
    ends = _SHARED[-1].run(_command_on_rank, typed, environ, Path.cwd())
    failed = [end for end in ends if end[0]]
    return failed[0] if failed else ends[0]


def _command_on_rank(typed: list[str], environ: dict[str, str], directory: Path) -> Any:
    """Run the command as this rank, in the process group that is open."""
    own = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    before = dict(os.environ)
    os.environ.update({**environ, **own})
    try:
        with contextlib.chdir(directory):
            return command_here(typed)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Any, rank: int, size: int) -> None:
    """A rank's life: one process group per job, and the whole traceback when a job fails."""
    import torch

    # A rank that saves starts a process, which a daemon must not.
    multiprocessing.current_process().daemon = False
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    while True:
        try:
            store_path, function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        with _FailuresTold(pipe, rank), _world_closed():
            torch.distributed.init_process_group(
                "gloo",
                store=torch.distributed.FileStore(store_path, size),
                rank=rank,
                world_size=size,
                timeout=COLLECTIVE_TIMEOUT,
            )
            result = function(*args)
            pipe.send_bytes(pickle.dumps((False, result)))


@contextlib.contextmanager
def _world_closed():
    """Leave no process group behind, however the job ended."""
    import torch

    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _FailuresTold:
    """Sends what went wrong inside to the parent."""

    def __init__(self, pipe: Any, rank: int) -> None:
        self.pipe, self.rank = pipe, rank

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is not None:
            text = "".join(traceback.format_exception(error))
            self.pipe.send_bytes(pickle.dumps((True, f"rank {self.rank}:\n{text}")))
        return True


@contextlib.contextmanager
def rank_pool(size: int, directory: Path):
    """Open a pool and kill its ranks at the end."""
    pool = RankPool(size, directory)
    _SHARED.append(pool)
    try:
        yield pool
    finally:
        _SHARED.remove(pool)
        pool.stop()
