import pytest
import torch
from megatron.core import parallel_state

from nemoalign.errors import ConfigError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import model_parallel_stream, pipeline_options, start


def test_a_world_of_one_opens_and_closes_without_a_port():
    for _ in range(2):
        with start(ParallelLayout(1), seed=1) as backend:
            assert backend.name == "cpu"
            assert torch.distributed.get_world_size() == 1
            assert parallel_state.get_tensor_model_parallel_world_size() == 1
        assert not torch.distributed.is_initialized()


def test_a_world_of_another_size_than_the_layout_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ConfigError, match=r"3 ranks were started .* made for 2"),
        start(ParallelLayout(2), seed=1),
    ):
        pass


def test_two_interleaved_stages_send_separately():
    options = pipeline_options(ParallelLayout(2, pp=2, vp=2))
    assert options["overlap_p2p_comm"]
    assert not options["batch_p2p_comm"]
    assert pipeline_options(ParallelLayout(2, pp=2))["batch_p2p_comm"]


def _place_and_draws(layout):
    with start(layout, seed=7):
        shared = torch.rand(2)
        with model_parallel_stream():
            own = torch.rand(2)
        place = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
        )
        return place, shared, own


@pytest.mark.dist
@pytest.mark.parametrize(
    ("layout", "shares_default", "shares_own"),
    [
        (ParallelLayout(2, tp=2), True, False),
        (ParallelLayout(2), True, True),
        (ParallelLayout(2, pp=2), False, False),
    ],
    ids=["tp", "dp", "pp"],
)
def test_ranks_stand_where_the_layout_says_and_draw_as_megatron_wants(
    two_ranks, layout, shares_default, shares_own
):
    results = two_ranks.run(_place_and_draws, layout)
    for rank, (place, _, _) in enumerate(results):
        expected = layout.coordinates(rank)
        assert place == (expected.tp, expected.dp, expected.pp)
    assert torch.equal(results[0][1], results[1][1]) == shares_default
    assert torch.equal(results[0][2], results[1][2]) == shares_own
