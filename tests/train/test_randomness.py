import torch
from megatron.core import tensor_parallel

from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import model_parallel_stream, start
from nemoalign.train.randomness import FOLDER, restore_streams, save_streams


def _draws():
    with model_parallel_stream():
        inside = torch.rand(3)
    return torch.cat([torch.rand(3), inside]).tolist()


def test_streams_go_on_where_they_were(tmp_path):
    with start(ParallelLayout(1), seed=5):
        _draws()
        save_streams(tmp_path)
        expected = _draws()
        _draws()
        assert restore_streams(tmp_path)
        assert _draws() == expected


def test_streams_of_another_layout_are_left_alone(tmp_path):
    with start(ParallelLayout(1), seed=5):
        save_streams(tmp_path)
        file = tmp_path / FOLDER / "rank-00000.json"
        file.write_text(file.read_text().replace('"place": [1, 1, 1, 0]', '"place": [2, 1, 1, 0]'))
        expected = tensor_parallel.get_cuda_rng_tracker().get_states()
        assert not restore_streams(tmp_path)
        kept = tensor_parallel.get_cuda_rng_tracker().get_states()
        assert all(torch.equal(kept[name], one) for name, one in expected.items())
        assert not restore_streams(tmp_path / "nothing")


def _on_two(directory):
    with start(ParallelLayout(2, tp=2), seed=5):
        save_streams(directory)
        expected = _draws()
        assert restore_streams(directory)
        assert _draws() == expected
        return expected


def test_every_rank_has_its_own(two_ranks, tmp_path):
    first, second = two_ranks.run(_on_two, tmp_path)
    assert first[:3] == second[:3]
    assert first[3:] != second[3:]
