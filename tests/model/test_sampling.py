"""Cuts are transformers', draws have the probabilities they should, and depend on nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nemoalign.model import sampling as module
from nemoalign.model.sampling import GREEDY, Draw, Sampling, choose, kept

LOGITS = torch.randn(4, 300, generator=torch.Generator().manual_seed(2)) * 3


def draws(count: int, first: int = 0) -> list[Draw]:
    return [Draw(number, 7, 3, {5}) for number in range(first, first + count)]


def probabilities(sampling: Sampling) -> torch.Tensor:
    found, tokens = kept(LOGITS / sampling.temperature, sampling)
    whole = found if tokens is None else torch.zeros_like(LOGITS).scatter(-1, tokens, found)
    return whole / whole.sum(-1, keepdim=True)


@pytest.mark.parametrize("likeliest", [4, 1024], ids=["too few sorted first", "enough"])
@given(
    temperature=st.floats(0.25, 4), top_k=st.integers(0, 40), top_p=st.floats(0.0625, 1)
)  # fmt: skip
def test_what_is_kept_is_what_transformers_keeps(likeliest, temperature, top_k, top_p) -> None:
    expected = TemperatureLogitsWarper(temperature)(None, LOGITS)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LIKELIEST", likeliest)
        found = probabilities(Sampling(temperature, top_k, top_p))
    torch.testing.assert_close(found, expected.softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.7}])
def test_draws_have_their_probabilities(cut) -> None:
    sampling, count = Sampling(temperature=2.0, **cut), 4000
    expected = probabilities(sampling)[0]
    found = choose(LOGITS[:1].expand(count, -1).clone(), draws(count), sampling)
    seen = torch.bincount(found, minlength=300) / count
    assert not seen[expected == 0].any()
    assert (seen - expected).abs().max() < 4 * (0.25 / count) ** 0.5


def test_a_draw_depends_on_seed_row_and_place_alone() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9)
    many = choose(LOGITS.repeat(50, 1), draws(200), sampling)
    some = choose(LOGITS.repeat(50, 1)[120:130], draws(10, first=120), sampling)
    assert torch.equal(many[120:130], some)
    moved = [Draw(d.number, d.place + 1, d.written, d.stop_ids) for d in draws(200)]
    assert not torch.equal(many, choose(LOGITS.repeat(50, 1), moved, sampling))
    assert not torch.equal(many, choose(LOGITS.repeat(50, 1), draws(200), Sampling(1.0, seed=5)))


def test_no_stop_token_before_its_time_and_the_likeliest_without_temperature() -> None:
    logits = torch.zeros(2, 9)
    logits[:, 5], logits[:, 2] = 9.0, 1.0
    late = [Draw(0, 9, 4, {5, 6}), Draw(1, 9, 3, {5, 6})]
    assert choose(logits.clone(), late, Sampling(min_new_tokens=4)).tolist() == [5, 2]
    assert choose(logits.clone(), late, GREEDY).tolist() == [5, 5]


def test_the_last_token_with_a_probability_is_the_last_that_can_be_drawn(monkeypatch) -> None:
    monkeypatch.setattr(module, "_uniform", lambda *_: np.nextafter(1.0, 0.0))
    logits = torch.full((1, 6), -torch.inf)
    logits[0, :3] = 0.0
    assert choose(logits, draws(1), Sampling(temperature=1.0)).tolist() == [2]


@pytest.mark.parametrize("count", [5, 256, 600])
@given(seed=st.integers(0, 1000), share=st.floats(0, 1, exclude_max=True))
def test_a_share_is_crossed_where_the_running_sum_crosses_it(count, seed, share) -> None:
    weights = torch.rand(3, count, generator=torch.Generator().manual_seed(seed))
    weights[:, count // 2 :] = 0.0  # nothing behind the middle can be drawn
    found = module._places(weights, torch.full((3, 1), share, dtype=torch.float64))[:, 0]
    ends = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
    for row, place in enumerate(found.tolist()):
        assert weights[row, place] > 0
        before = ends[row, place - 1] if place else 0.0
        assert before - 1e-6 <= share <= ends[row, place] + 1e-6
