import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.config.schema import OptimConfig
from nemoalign.config.schema import Schedule as Sched
from nemoalign.train.schedule import Schedule, default_warmup, resolved

VECTORS = json.loads(
    (Path(__file__).parents[1] / "fixtures/vectors/schedule_and_samplers.json").read_text()
)


def _schedule(case: dict) -> Schedule:
    names = ("name", "warmup_steps", "warmup_ratio", "constant_steps", "constant_ratio", "power")
    given = {name: case[name] for name in names if name in case}
    sched = Sched(**given, min_lr=case.get("min_lr", 0.0), max_steps=case["max_steps"])
    return resolved(OptimConfig(lr=case["lr"], sched=sched), 7)


@pytest.mark.parametrize(
    "case", VECTORS["schedules"], ids=lambda case: f"{case['name']}-{case['max_steps']}"
)
def test_every_schedule_gives_nemos_learning_rate_at_every_stored_step(case) -> None:
    schedule = _schedule(case)
    for step, expected in zip(case["steps"], case["values"], strict=True):
        assert schedule.at(step) == pytest.approx(expected, abs=1e-15, rel=1e-9)


def test_constant_steps_that_leave_nothing_to_anneal_are_told() -> None:
    schedule = Schedule("CosineAnnealing", 3e-5, 9e-7, 10, 1000, 100)
    assert schedule.at(11) == 9e-7
    assert "leave none of the 100 steps to anneal" in (schedule.problem() or "")
    assert Schedule("CosineAnnealing", 3e-5, 9e-7, 10, 1000, 2000).problem() is None
    assert Schedule("CosineAnnealing", 3e-5, 9e-7, 10, 0, 5).problem() is None


def test_no_warmup_means_the_full_rate_at_the_first_step() -> None:
    for name in ("CosineAnnealing", "linear", "constant"):
        assert Schedule(name, 1e-3, 1e-4, 0, 0, 100).at(0) == 1e-3


def test_linear_falls_evenly_from_the_end_of_warmup_to_min_lr() -> None:
    schedule = Schedule("linear", 1.0, 0.1, 10, 0, 110)
    assert schedule.at(10) == 1.0
    assert schedule.at(60) == pytest.approx(0.55)
    assert schedule.at(110) == pytest.approx(0.1)


def test_constant_stays_after_warmup() -> None:
    schedule = Schedule("constant", 2.0, 0.1, 4, 0, 20)
    assert [schedule.at(step) for step in (0, 1, 4, 19)] == [0.4, 0.8, 2.0, 2.0]


@given(
    st.sampled_from(["CosineAnnealing", "linear"]),
    st.integers(0, 20),
    st.integers(21, 500),
    st.integers(0, 600),
)
def test_rate_is_finite_positive_and_within_its_bounds(name, warmup, max_steps, step) -> None:
    lr = Schedule(name, 1e-3, 1e-4, warmup, 0, max_steps).at(step)
    assert math.isfinite(lr)
    assert 0 < lr <= 1e-3
    if warmup < step:
        assert lr >= 1e-4 * (1 - 1e-12)


def test_default_warmup_is_ten_steps_but_at_most_a_tenth_of_the_run() -> None:
    assert [default_warmup(steps) for steps in (5, 50, 100, 5000)] == [0, 5, 10, 10]
