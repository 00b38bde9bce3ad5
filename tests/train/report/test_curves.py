"""Curves: round numbers at the axes, no peak lost, a gap where there is no value."""

import json
import math
import re

import numpy as np
import pytest

from nemoalign.train.report.curves import panel, panels, smoothed, thinned, ticks, vertical_range


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (1.2, 2.9, [1.5, 2.0, 2.5]),
        (0, 28, [0, 10, 20]),
        (-3.0, 3.0, [-2.0, 0.0, 2.0]),
        (1e-6, 1e-5, [2.5e-6, 5e-6, 7.5e-6, 1e-5]),
    ],
)
def test_axes_have_a_few_round_numbers(low, high, expected) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_thinning_keeps_ends_peaks_and_order() -> None:
    draw = np.random.default_rng(1)
    points = [(step, float(y)) for step, y in enumerate(draw.normal(size=100_000))]
    points[61_234] = (61_234, 99.0)
    points[7] = (7, -99.0)
    points[500] = (500, math.nan)
    kept = thinned(points, 600)
    assert 300 < len(kept) <= 600
    assert {points[0], points[-1], points[61_234], points[7]} <= set(kept)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert thinned(points[:600], 600) == points[:600]


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    points = [(1, 1.0), (2, 3.0), (3, math.inf), (4, 8.0), (5, 1.0)]
    assert smoothed(points, 2) == [(1, 1.0), (2, 2.0), (4, 5.5), (5, 4.5)]


def test_one_peak_does_not_flatten_a_curve() -> None:
    calm = [(step, 1.0 + step / 100) for step in range(100)]
    assert vertical_range({"train": calm}) == (1.0, 1.99)
    low, high = vertical_range({"train": [*calm, (100, 500.0)]})
    assert low == 1.0
    assert 1.98 < high < 3
    assert vertical_range({"train": [(1, 2.0)]})[0] < 2.0 < vertical_range({"train": [(1, 2.0)]})[1]


def paths(markup: str, kind: str) -> list[str]:
    return re.findall(rf'<path d="([^"]*)" class="{kind}"', markup)


def test_a_line_goes_through_its_points_and_breaks_where_there_is_no_number() -> None:
    markup = panel(
        "loss", {"train": {0: 0.0, 1: 1.0, 2: math.nan, 3: 0.5, 4: 1.0}, "val": {4: 0.5}}
    )
    assert paths(markup, "line train") == ["M0.0 1000.0L250.0 0.0M750.0 500.0L1000.0 0.0"]
    assert paths(markup, "line val") == ["M1000.0 500.0h0"]
    numbers = json.loads(re.search(r"application/json\">(.*?)</script>", markup).group(1))
    assert numbers["series"]["train"][2] == [2, None]
    assert numbers["range"] == [0, 4]


def test_a_metric_without_a_finite_value_says_so() -> None:
    assert "no finite value" in panel("loss", {"train": {1: math.nan}})


def test_the_loss_comes_first_then_how_rollouts_fare_then_what_the_algorithm_logs_then_the_rest() -> (
    None
):
    names = ["lr", "grad_norm", "margin", "loss", "accuracy", "tokens_per_second", "kl", "reward", "seconds/generate"]  # fmt: skip
    markup = panels({name: {"train": {1: 1.0}} for name in names})
    assert re.findall(r"<b>(.*?)</b>", markup) == [
        "loss", "reward", "kl", "accuracy", "margin", "lr", "grad norm", "tokens per second",
        "seconds/generate",
    ]  # fmt: skip
