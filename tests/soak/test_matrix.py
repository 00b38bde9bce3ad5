"""A seeded slice of the crash matrix: one blow of each kind on one run, and the run's end."""

import pytest

from tests.soak.chain import Chain, Material
from tests.soak.matrix import OTHERS, SAVES, SLICE, plan, run_chain
from tests.soak.watched import DEADLINE_SECONDS


@pytest.mark.slow
def test_a_run_that_is_killed_damaged_stopped_and_without_room_ends_as_if_left_in_peace(
    tmp_path,
) -> None:
    chain = Chain(Material.make(tmp_path), "1 rank", SAVES["async"], list(SLICE), seed=4)
    assert [words for _, words, ok in run_chain(chain) if not ok] == []
    assert chain.tally.kills == 2
    assert max(chain.tally.seconds_to_die) < DEADLINE_SECONDS


def test_the_matrix_kills_at_least_thirty_times_and_differs_by_seed_only() -> None:
    kills = [blow for *_, blows in plan(7) for blow in blows if blow.what in ("kill", "damage")]
    assert len(kills) >= 30
    assert sum(blow.when == "save" for blow in kills) >= 10
    assert {blow.who for blow in kills} == {"all", "parent", "rank"}
    assert plan(7) == plan(7)
    assert plan(7) != plan(8)
    assert {blow.what for blow in SLICE} >= {"kill", "damage", "stop", "full"}
    assert len(SLICE) == 4
    assert len(OTHERS) > len(SLICE)
