"""Lines about answers: which ones, and nothing that JSON does not know."""

import json
import math

import pytest
import torch

from nemoalign.rollouts.told import told
from tests.data.tiny import CharTokenizer
from tests.rollouts import made

TOKENIZER = CharTokenizer()


def spelled(count: int):
    answers = [
        made.answer(
            TOKENIZER.encode("yes!"[: 1 + row % 4]),
            prompt=TOKENIZER.encode(f"{row}?"),
            group=row,
            text="yes!"[: 1 + row % 4],
            finished=row % 2 == 0,
        )
        for row in range(count)
    ]
    rewards = torch.tensor([math.nan if row == 1 else float(row) for row in range(count)])
    return made.Rollout(answers, rewards=rewards, parts={"a": rewards})


@pytest.mark.parametrize(
    ("count", "rows"), [(0, []), (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])]
)  # fmt: skip
def test_answers_are_spread_over_the_rollout(count, rows) -> None:
    found = told(spelled(5), count, TOKENIZER)
    assert [line["prompt"] for line in found] == [f"{row}?" for row in rows]


def test_a_line_says_what_was_found_out() -> None:
    rollout = spelled(3)
    rollout.kl = torch.arange(9.0).view(3, 3)
    rollout.advantages = torch.tensor([[2.0, 0, 0], [1.0, 2.0, 0], [1.0, 2.0, 6.0]])
    lines = told(rollout, 3, TOKENIZER)
    assert lines[2] == {
        "source": "made.jsonl line 3",
        "prompt": "2?",
        "response": "yes",
        "reward": 2.0,
        "tokens": 3,
        "finished": True,
        "kl": 21.0,
        "advantage": 3.0,
    }
    assert lines[1]["advantage"] == 1.5
    assert json.loads(json.dumps(lines[1], allow_nan=False))["reward"] is None


def test_several_sources_are_told_apart() -> None:
    rollout = spelled(2)
    rollout.parts = {"rm": torch.tensor([1.0, 2.0]), "a.py:f": torch.tensor([0.5, math.nan])}
    found = told(rollout, 2, TOKENIZER)
    assert [line["rewards"] for line in found] == [
        {"rm": 1.0, "a.py:f": 0.5},
        {"rm": 2.0, "a.py:f": None},
    ]
    assert not {"kl", "advantage"} & found[0].keys()
