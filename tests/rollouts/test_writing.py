"""Answers are draws that depend on their numbers alone, in order, whoever writes them."""

from functools import partial

import pytest
import torch

from nemoalign.model.generate import Request, generate
from nemoalign.model.sampling import Sampling
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.rollouts.writing import Writing
from tests.model.tiny import VOCAB
from tests.rollouts import made, stage

SAMPLING = Sampling(temperature=1.0, seed=5)
NEW = 6


class Spelled:
    """A tokenizer whose tokens are words: their numbers."""

    def decode(self, ids) -> str:
        return "".join(f"[{one}]" for one in ids)


WRITING = Writing(Spelled(), NEW, (), slots=3)


def questions():
    return [made.question(range(3 + n, 6 + 3 * n), n, topic=n) for n in range(3)]


def agreed(is_writing: bool) -> bool:
    told = torch.tensor([float(is_writing)])
    torch.distributed.all_reduce(told)
    return told.item() > 0


def _written(layout: ParallelLayout, writing: Writing, first: int = 40, each: int = 2):
    """Runs on each rank."""
    with start(layout, seed=1):
        chunks = stage.model(layout)
        return writing.write(chunks, questions(), each, first, SAMPLING, agreed)


def drawn(number: int, question) -> list[int]:
    """One answer written alone."""
    with start(stage.ONE, seed=1):
        prompt = question.prompt
        asked = [Request(prompt.ids, prompt.stop_ids, NEW, number)]
        return generate(stage.model(stage.ONE), asked, go_on=agreed, sampling=SAMPLING)[0]


def test_answers_to_a_question_are_neighbours_and_draws_of_their_own() -> None:
    found = _written(stage.ONE, WRITING)
    asked = [question for question in questions() for _ in range(2)]
    assert [answer.question for answer in found] == asked
    assert [answer.group for answer in found] == [0, 0, 1, 1, 2, 2]
    for number, answer in enumerate(found):
        assert list(answer.ids) == drawn(40 + number, answer.question)
        assert answer.text == Spelled().decode(answer.ids)
        assert not answer.finished
    assert len({answer.ids for answer in found}) == 6
    assert _written(stage.ONE, WRITING, first=41)[0].ids == tuple(drawn(41, asked[0]))


@pytest.mark.dist
@pytest.mark.parametrize("layout", stage.LAYOUTS.values(), ids=list(stage.LAYOUTS))
def test_every_rank_of_every_layout_has_the_same_answers(layout, two_ranks) -> None:
    stop = _written(stage.ONE, WRITING)[3].ids[2]
    for writing in (WRITING, Writing(Spelled(), NEW, (f"[{stop}]",), slots=32)):
        expected = _written(stage.ONE, writing)
        assert two_ranks.run(partial(_written, layout), writing) == [expected, expected]


def _one_answer(layout: ParallelLayout):
    with start(layout, seed=1):
        chunks = stage.model(layout)
        return WRITING.write(chunks, questions()[:1], 1, 40, SAMPLING, agreed)


@pytest.mark.dist
def test_a_replica_without_an_answer_waits_for_the_one_that_writes(two_ranks) -> None:
    expected = _one_answer(stage.ONE)
    assert len(expected) == 1
    assert two_ranks.run(_one_answer, stage.LAYOUTS["dp2"]) == [expected, expected]


def test_a_stop_token_ends_an_answer_and_is_no_text() -> None:
    ids = _written(stage.ONE, WRITING)[2].ids
    asked = [stage.replace(q, prompt=stage.replace(q.prompt, stop_ids=frozenset({ids[3]}))) for q in questions()]  # fmt: skip
    with start(stage.ONE, seed=1):
        found = WRITING.write(stage.model(stage.ONE), asked, 2, 40, SAMPLING, agreed)[2]
    assert found.ids == ids[: ids.index(ids[3]) + 1]
    assert found.text == Spelled().decode(found.ids[:-1])
    assert found.finished


def test_a_stopping_text_ends_an_answer_though_it_is_no_token() -> None:
    before = _written(stage.ONE, WRITING)
    ids = before[4].ids
    across = f"{ids[1]}][{ids[2]}"
    found = _written(stage.ONE, Writing(Spelled(), NEW, ("never", across), slots=3))
    assert found[4].ids == ids[:3]
    assert found[4].text == f"[{ids[0]}]["
    assert found[4].finished
    assert max(token for answer in found for token in answer.ids) < VOCAB
