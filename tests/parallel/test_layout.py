import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ConfigError
from nemoalign.parallel.layout import ParallelLayout

SMOLLM2 = Architecture(
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1536,
    num_attention_heads=9,
    num_query_groups=3,
)
sizes = st.integers(1, 4)


@st.composite
def layouts(draw) -> ParallelLayout:
    tp, cp, dp, pp = (draw(sizes) for _ in range(4))
    vp = draw(st.one_of(st.none(), sizes)) if pp > 1 else None
    return ParallelLayout(tp * cp * dp * pp, tp=tp, pp=pp, cp=cp, vp=vp)


@given(layouts())
def test_rank_to_coordinates_and_back_is_the_same_rank(layout):
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert len(set(places)) == layout.world_size
    assert [layout.rank_of(place) for place in places] == list(range(layout.world_size))


def test_tp_varies_fastest_and_pp_slowest():
    layout = ParallelLayout(8, tp=2, pp=2)
    places = [layout.coordinates(rank) for rank in range(8)]
    assert [place.tp for place in places] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert [place.dp for place in places] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [place.pp for place in places] == [0, 0, 0, 0, 1, 1, 1, 1]


@given(layouts(), sizes)
def test_every_layer_is_on_exactly_one_chunk(layout, layers_per_chunk):
    num_layers = layout.pp * (layout.vp or 1) * layers_per_chunk
    seen = [
        layer
        for vp_rank in range(layout.vp or 1)
        for pp_rank in range(layout.pp)
        for layer in layout.layers_of(pp_rank, num_layers, vp_rank)
    ]
    assert seen == list(range(num_layers))


@given(layouts(), sizes, st.integers(1, 5))
def test_microbatches_times_their_size_is_the_global_batch(layout, micro_batch_size, count):
    global_batch_size = count * micro_batch_size * layout.dp
    assert layout.num_microbatches(global_batch_size, micro_batch_size) == count


def test_a_global_batch_that_does_not_divide_names_those_that_do():
    with pytest.raises(
        ConfigError,
        match=r"--gbs 30 is not divisible by --mbs 4 x dp 2 = 8\. Use --gbs 24 or 32\.",
    ):
        ParallelLayout(2).num_microbatches(30, 4)


def test_heads_that_do_not_divide_name_the_sizes_that_work():
    with pytest.raises(ConfigError) as caught:
        ParallelLayout(2, tp=2).check(SMOLLM2)
    assert str(caught.value) == (
        "9 attention heads and 3 query groups cannot be split over --tp 2; use --tp 1 or 3."
    )
    ParallelLayout(3, tp=3).check(SMOLLM2)


def test_an_mlp_that_does_not_divide_names_the_sizes_that_work():
    arch = Architecture(num_layers=2, hidden_size=8, ffn_hidden_size=6, num_attention_heads=4)
    with pytest.raises(ConfigError, match=r"6 rows .* over --tp 4; use --tp 1 or 2\."):
        ParallelLayout(4, tp=4).check(arch)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (ParallelLayout(4, pp=4), "30 layers cannot be split over --pp 4; use --pp 1, 2, 3, 5"),
        (ParallelLayout(2, pp=2, vp=4), "--pp 2 x --vp 4; their product must be 1, 2, 3"),
        (ParallelLayout(2, cp=2), "--cp 2: context parallelism is not offered; use --cp 1"),
        (ParallelLayout(2, ep=2), "--ep 2: training over expert-parallel ranks is not offered"),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_to_type(layout, words):
    with pytest.raises(ConfigError) as caught:
        layout.check(SMOLLM2)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"world_size": 8, "tp": 3}, "= 3 ranks each; use --devices 6 or 9."),
        ({"world_size": 2, "tp": 4}, "use --devices 4."),
        ({"world_size": 1, "tp": 0}, "--tp is 0"),
        ({"world_size": 2, "vp": 2}, "--vp 2 interleaves the stages of a pipeline"),
    ],
)
def test_a_world_that_holds_no_whole_model_is_refused(arguments, words):
    with pytest.raises(ConfigError) as caught:
        ParallelLayout(**arguments)
    assert words in str(caught.value)


def test_sequence_parallelism_needs_tensor_parallelism_to_do_anything():
    assert ParallelLayout(2, tp=2, sequence_parallel=True).splits_sequence
    assert not ParallelLayout(2, sequence_parallel=True).splits_sequence
