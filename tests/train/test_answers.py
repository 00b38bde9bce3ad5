"""Replicas share fixed prompts, and every rank knows all answers, which are transformers'."""

import pytest
import torch

from nemoalign.data.prompts import Prompt
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.answers import FixedPrompts, shown
from nemoalign.train.metrics import reduce_sums
from nemoalign.train.stopping import Asked
from tests.model import tiny
from tests.train import bench

IDS = [(5, 100, 7), (400, 3), (11, 12, 13, 14)]


class Words:
    def decode(self, ids):
        return " ".join(map(str, ids))


def answered(layout: ParallelLayout, stop: int, questions: int = 7):
    prompts = [Prompt(ids, frozenset({stop}), "made") for ids in IDS]
    with bench.learner(bench.Setup(layout)) as learner:
        calls = []

        def agree(is_writing):
            calls.append(1)
            writing, wishes = reduce_sums(
                [is_writing], [len(calls) > questions], torch.device("cpu")
            )
            return writing, Asked(stop=wishes > 0)

        return FixedPrompts(prompts, Words(), 6).answer(learner, agree)


def expected(stop: int) -> list[dict[str, str]]:
    model, found = tiny.llama(), []
    for ids in IDS:
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )  # fmt: skip
        answer = whole[0, len(ids) :].tolist()
        kept = answer[: answer.index(stop)] if stop in answer else answer
        found.append({"prompt": Words().decode(ids), "response": Words().decode(kept)})
    return found


@pytest.mark.dist
def test_replicas_share_the_prompts(two_ranks):
    stop = int(expected(-1)[1]["response"].split()[2])
    for answers, asked in two_ranks.run(answered, ParallelLayout(2), stop):
        assert answers == expected(stop)
        assert not asked.stop


@pytest.mark.dist
def test_a_wish_to_stop_is_heard_on_all_ranks(two_ranks):
    for answers, asked in two_ranks.run(answered, ParallelLayout(2, pp=2), -1, 1):
        assert answers == []
        assert asked.stop


def test_lines_show_both_sides():
    assert shown([{"prompt": "a\n", "response": "b"}] * 5) == ["'a\\n' -> 'b'"] * 3
