"""The task of ``make ppo``: what it asks, what it rewards, and how its end is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemoalign.config.values import RewardSource
from nemoalign.rollouts.functions import RewardFunction

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ppo"


def run(script: str, argument: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, EXAMPLE / script, argument], capture_output=True, text=True, check=False
    )


def test_no_country_is_both_asked_and_held_out_and_a_capital_is_not_in_its_question(tmp_path):
    assert run("capitals.py", tmp_path).returncode == 0
    asked, held_out = (
        [json.loads(line) for line in (tmp_path / f"capitals-{name}.jsonl").open()]
        for name in ("train", "val")
    )
    assert (len(asked), len(held_out)) == (24, 12)
    capitals = [row["capital"] for row in asked + held_out]
    assert len(set(capitals)) == len(capitals)
    for row in asked + held_out:
        (question,) = row["messages"]
        assert row["capital"] not in question["content"]


def test_the_reward_is_for_short_answers_that_name_the_capital():
    source = RewardSource(module=str(EXAMPLE / "capitals.py"), function="right")
    answers = ["The capital of France is Paris.", "paris", "Lyon", "Paris " * 20]
    with RewardFunction(source, workers=1, seconds=5) as right:
        assert right.score([("What?", answer, {"capital": "Paris"}) for answer in answers]) == [
            1, 1, 0, 0,
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "verdict"), [(0.5, "from 0.250 to 0.500"), (0.25, "did not rise")]
)
def test_the_table_of_a_run_insists_that_held_out_rewards_rise(last, verdict, tmp_path):
    own = {"reward": 0.5, "response_tokens": 9.5, "finished": 0.75}
    lines = [
        {"split": "val", "step": 0, "val_reward": 0.25},
        {"split": "train", "step": 1, **own},
        {"split": "val", "step": 1, "val_reward": last},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = run("learned.py", metrics)
    assert verdict in done.stdout + done.stderr
    assert done.returncode == (0 if "from" in verdict else 1)
    assert f"| 1 | 0.500 | {'█' * 10} | 9.5 | 75% | {last:.3f} |" in done.stdout
