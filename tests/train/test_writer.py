"""A sharded state written in the background is the one of the moment it was begun."""

import os
import signal

import psutil
import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

from nemoalign.errors import ResourceError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.agreement import Attempt
from nemoalign.train.sums import sum_file
from nemoalign.train.writer import Writer

NAMES = [f"t{i}" for i in range(3)]


def _state(values) -> dict:
    return {n: ShardedTensor.from_rank_offsets(n, v) for n, v in zip(NAMES, values, strict=True)}


@pytest.mark.parametrize("in_background", [True, False])
def test_later_changes_do_not_reach_it_and_megatron_core_reads_it_back(
    tmp_path, in_background
) -> None:
    values = [torch.arange(300_000.0) + i for i in range(3)]
    expected = [value.clone() for value in values]
    before = set(psutil.Process().children(recursive=True))
    with start(ParallelLayout(1), seed=1):
        attempt = Attempt()
        writer = Writer(_state(values), tmp_path, attempt, in_background=in_background)
        for value in values:
            value.zero_()
        sums = writer.finish()
        attempt.agree()
        loaded = dist_checkpointing.load(
            _state([torch.zeros(300_000) for _ in NAMES]), str(tmp_path)
        )
    assert set(psutil.Process().children(recursive=True)) == before
    assert all(torch.equal(loaded[n], e) for n, e in zip(NAMES, expected, strict=True))
    files = sorted(path.name for path in tmp_path.glob("*.distcp"))
    assert sums == {f"{tmp_path.name}/{f}": sum_file(tmp_path / f) for f in files}


def test_a_writer_that_somebody_kills_is_an_error_and_no_hang(tmp_path) -> None:
    before = set(psutil.Process().children())
    with start(ParallelLayout(1), seed=1):
        values = [torch.zeros(30_000_000) for _ in NAMES]
        writer = Writer(_state(values), tmp_path, Attempt(), in_background=True)
        assert writer.is_working()
        (child,) = set(psutil.Process().children()) - before
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"ended with -9.*async_save=false"):
            writer.finish()
