"""Fixtures of every room: the default marker, and two ranks for the whole session."""

import os

# Two ranks on two cores, and a test never needs more: threads that spin distort everything.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

from tests.ranks import rank_pool

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("nemoalign", deadline=None)
hypothesis.settings.load_profile("nemoalign")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("dist", "slow", "gpu")):
            item.add_marker(pytest.mark.unit)


@pytest.fixture(scope="session", autouse=True)
def two_ranks(tmp_path_factory: pytest.TempPathFactory):
    """A pool whose ranks start when they are first used."""
    with rank_pool(2, tmp_path_factory.mktemp("ranks")) as pool:
        yield pool


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """What the commands keep for later starts is kept for these tests alone."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def nouns_made(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model that learned to answer a little, with prompts and rewards that teach it more."""
    from tests.rollouts import nouns

    return nouns.make(tmp_path_factory.mktemp("nouns"))
