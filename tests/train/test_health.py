import math

import pytest

from nemoalign.errors import DivergedError
from nemoalign.train.health import SPIKE_WINDOW, Health, has_stopped_improving


def test_a_loss_far_above_the_usual_is_worth_a_warning():
    health = Health(3)
    assert [health.spike(1.0 + n / 100) for n in range(SPIKE_WINDOW)] == [None] * SPIKE_WINDOW
    assert health.spike(2.9) is None
    assert "jumped to 3.6; the median" in (health.spike(3.6) or "")
    assert health.spike(1.0) is None


def test_nothing_is_said_before_anything_is_usual():
    health = Health(3)
    assert health.spike(1.0) is None
    assert health.spike(100.0) is None


def test_a_skipped_step_names_its_rows_and_one_too_many_ends_the_run():
    health = Health(2)
    rows = [f"a.jsonl line {n}" for n in range(1, 11)]
    words = health.skipped(7, math.nan, 1e-3, rows, in_a_row=1)
    assert words.startswith("step 7 was not applied: the loss is nan in a.jsonl line 1, a.jsonl")
    assert words.endswith("line 8, ...")
    assert "gradient is not finite" in health.skipped(8, 1.5, 1e-3, [], in_a_row=1)
    with pytest.raises(DivergedError, match=r"At step 9 the loss is inf.*--lr"):
        health.skipped(9, math.inf, 1e-3, [], in_a_row=2)


@pytest.mark.parametrize(
    ("history", "patience", "min_delta", "stops"),
    [
        ([3, 2, 1], 0, 0.0, False),
        ([3, 2, 2, 2], 2, 0.0, True),
        ([3, 2, 2, 1.9], 2, 0.0, False),
        ([3, 2, 2, 1.9], 2, 0.2, True),
        ([3, 3], 2, 0.0, False),
        ([1, 5, 4, 3], 3, 0.0, True),
    ],
)
def test_improvement_is_measured_against_the_best_before(history, patience, min_delta, stops):
    assert has_stopped_improving(history, patience, min_delta) is stops
