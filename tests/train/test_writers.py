import psutil
import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.api import CheckpointException

from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.writers import write_in_threads


def _state() -> dict:
    values = [torch.arange(1000.0) + i for i in range(3)]
    return {f"t{i}": ShardedTensor.from_rank_offsets(f"t{i}", v) for i, v in enumerate(values)}


def test_a_save_starts_no_process_and_megatron_core_reads_it_back(tmp_path) -> None:
    write_in_threads()
    before = set(psutil.Process().children(recursive=True))
    with start(ParallelLayout(1), seed=1):
        dist_checkpointing.save(_state(), str(tmp_path))
        assert set(psutil.Process().children(recursive=True)) == before
        wanted = {
            name: ShardedTensor.from_rank_offsets(name, torch.zeros(1000)) for name in _state()
        }
        loaded = dist_checkpointing.load(wanted, str(tmp_path))
    for i in range(3):
        assert torch.equal(loaded[f"t{i}"], torch.arange(1000.0) + i)


def test_a_file_that_cannot_be_written_fails_the_save(tmp_path, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    write_in_threads()
    monkeypatch.setattr(filesystem_async, "_write_item", full)
    with (
        start(ParallelLayout(1), seed=1),
        pytest.raises(CheckpointException, match="No space left on device"),
    ):
        dist_checkpointing.save(_state(), str(tmp_path))
