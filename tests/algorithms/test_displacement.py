"""Margins that grow on worse answers alone are told once, and nothing else is."""

from nemoalign.algorithms.displacement import WINDOW, Displacement

LOSING = {"displaced": 0.75, "rewards_chosen": -0.3, "margin": 0.5}


def test_better_answers_that_lose_are_told_once() -> None:
    seen = Displacement(beta=0.1)
    told = [seen.watch(LOSING) for _ in range(3 * WINDOW)]
    assert told[: WINDOW - 1] == [None] * (WINDOW - 1)
    assert "75% of the better answers" in told[WINDOW - 1]
    assert "by 3 nats on average" in told[WINDOW - 1]
    assert told[WINDOW:] == [None] * (2 * WINDOW)


def test_what_is_no_displacement_is_not_told() -> None:
    for healthy in (
        {**LOSING, "displaced": 0.4},
        {**LOSING, "rewards_chosen": 0.1},
        {**LOSING, "margin": -0.1},
        {"loss": 1.0},
        {**LOSING, "displaced": float("nan")},
    ):
        seen = Displacement(beta=0.1)
        assert [seen.watch(healthy) for _ in range(2 * WINDOW)] == [None] * (2 * WINDOW)
