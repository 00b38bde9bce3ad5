"""Which columns are whose, what a row's largest logit is, and how many rows are widened at a time."""

import pytest
import torch

from nemoalign.parallel import vocabulary
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.parallel.vocabulary import my_shard, row_chunks, row_peaks


def _shards(logits, vocab_size):
    with start(ParallelLayout(2, tp=2), seed=1):
        mine = logits.chunk(2, -1)[torch.distributed.get_rank()]
        shard = my_shard(mine.shape[1], vocab_size)
        return shard.start, shard.width, row_peaks(mine[:, : shard.width], shard)


def test_one_rank_holds_every_column_but_the_padding() -> None:
    assert my_shard(8, 5) == (0, 5, None)
    assert my_shard(5, 5) == (0, 5, None)


@pytest.mark.dist
@pytest.mark.parametrize(("vocab_size", "widths"), [(7, [4, 3]), (3, [3, 0])])
def test_padding_is_left_out_and_peaks_are_of_the_whole_row(two_ranks, vocab_size, widths) -> None:
    logits = torch.randn(5, 8)
    logits[:, vocab_size:] = 100.0
    found = two_ranks.run(_shards, logits, vocab_size)
    assert [(start, width) for start, width, _ in found] == [(0, widths[0]), (4, widths[1])]
    for _, _, peaks in found:
        assert torch.equal(peaks, logits[:, :vocab_size].amax(-1))


def test_chunks_cover_every_row_once_and_one_row_is_the_least(monkeypatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", 25)
    for columns, rows in ((10, 2), (100, 1), (0, 25)):
        chunks = list(row_chunks(torch.empty(5, columns)))
        assert torch.cat([torch.arange(5)[chunk] for chunk in chunks]).tolist() == [0, 1, 2, 3, 4]
        assert len(torch.arange(5)[chunks[0]]) == min(rows, 5)
