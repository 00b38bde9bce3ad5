"""Label balance and length bias: what is counted, and when something is said about it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.balance import (
    LabelCounts,
    PairCounts,
    suggested_weights,
    weights_problem,
)

COUNTS = st.integers(1, 10**6)


@given(COUNTS, COUNTS)
def test_suggested_weights_lie_where_the_paper_wants_them(desirable, undesirable) -> None:
    weights = suggested_weights(desirable, undesirable)
    assert 1.0 in weights
    assert 1 - 1e-9 <= weights[0] * desirable / (weights[1] * undesirable) <= 4 / 3 + 1e-9
    assert weights_problem(desirable, undesirable, weights) is None


def test_weights_that_do_not_fit_are_answered_with_what_to_type() -> None:
    problem = weights_problem(200, 900, (1.0, 1.0))
    assert problem is not None
    assert "pull 0.222 times as hard" in problem
    assert problem.endswith("Type: --desirable-weight 4.5 --undesirable-weight 1")
    assert weights_problem(120, 100, (1.0, 1.0)) is None
    many = weights_problem(1000, 300, (1.0, 0.0))
    assert many is not None
    assert "inf times" in many
    assert many.endswith("--desirable-weight 1 --undesirable-weight 3.33")


@pytest.mark.parametrize(("counts", "which"), [((0, 5), "desirable"), ((5, 0), "undesirable")])
def test_one_label_alone_is_a_problem(counts, which) -> None:
    problem = weights_problem(*counts, (1.0, 1.0))
    assert problem is not None
    assert f"no {which} answer" in problem


def test_labels_of_a_sample_stand_for_all_rows() -> None:
    counts = LabelCounts.of(np.array([True, True, False]), share=100)
    assert counts.line() == "200 desirable, 100 undesirable"


def test_longer_answers_are_said_when_they_are_the_rule() -> None:
    trained = np.array([[30, 10]] * 15 + [[10, 20]] * 5 + [[7, 7]] * 4)
    counts = PairCounts.of(trained, share=2)
    assert counts.pairs == 48
    assert counts.chosen_longer == pytest.approx((15 + 2) / 24)
    assert (
        counts.line() == "answers of 22 tokens chosen and 12 rejected, the chosen one longer in 71%"
    )
    problem = counts.problem("pairs.jsonl")
    assert problem is not None
    assert (
        "In 71% of the pairs of pairs.jsonl the chosen answer is the longer one (22 tokens to 12"
        in problem
    )
    turned = PairCounts.of(trained[:, ::-1], share=2).problem("pairs.jsonl")
    assert turned is not None
    assert "71% of the pairs of pairs.jsonl the chosen answer is the shorter" in turned
    assert PairCounts.of(trained[:15], share=1).problem("few.jsonl") is None
    assert PairCounts.of(np.array([[3, 4], [4, 3]] * 50), share=1).problem("even.jsonl") is None
    assert PairCounts.of(np.empty((0, 2)), share=1).problem("none.jsonl") is None
