import resource

import pytest
import torch

from nemoalign.errors import DataError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.agreement import Attempt, tellable
from nemoalign.train.child import Child


def _save_on_a_small_disk(path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        with path.open("wb") as file:
            torch.save(torch.zeros(100_000), file)
    except RuntimeError as hidden:
        return f"{type(tellable(hidden)).__name__}: {tellable(hidden)}"
    return "saved"


def test_torch_hides_what_the_system_said_and_it_is_found(tmp_path) -> None:
    told = Child(lambda: _save_on_a_small_disk(tmp_path / "x")).answer()
    assert told == "DiskError: File too large"


def _one_fails(failing: int) -> tuple[str, list[str]]:
    done = []
    with start(ParallelLayout(2, tp=2), seed=1):
        attempt = Attempt()
        if torch.distributed.get_rank() == failing:
            attempt.run(lambda: [].pop())
        attempt.run(lambda: done.append("later"))
        try:
            attempt.agree()
        except RuntimeError as error:
            return str(error), done
    return "nothing", done


@pytest.mark.dist
def test_every_rank_hears_of_the_failure_of_one(two_ranks) -> None:
    (first, did), (second, did_not) = two_ranks.run(_one_fails, 1)
    assert first == second == "IndexError: pop from empty list"
    assert (did, did_not) == (["later"], [])


def test_an_error_with_a_sentence_keeps_it_and_its_exit_code() -> None:
    with start(ParallelLayout(1), seed=1):
        attempt = Attempt()
        attempt.run(lambda: (_ for _ in ()).throw(DataError("row 3 is empty")))
        with pytest.raises(DataError, match="row 3"):
            attempt.agree()
