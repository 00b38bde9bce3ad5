"""The loop drives whatever takes steps: here one whose step works long before it learns, and learns twice."""

import json
import os
import signal
from dataclasses import replace

import pytest

from nemoalign.errors import Stopped
from nemoalign.train.rotation import find_last, read_progress
from nemoalign.train.stopping import Cut
from tests.commands.tiny import read_metrics
from tests.train import bench
from tests.train.test_loop import SETUP, _trainer


class Twice:
    """Asks twice whether it may go on, as one that samples does, then takes two updates."""

    def __init__(self, learner, wishes=None) -> None:
        self.learner, self.wishes, self.steps = learner, wishes or {}, 0
        self.algorithm, self.backend, self.modules = (
            learner.algorithm,
            learner.backend,
            learner.modules,
        )

    def listen(self, agree) -> None:
        self.agree = agree

    def _work(self, wish) -> None:
        for is_busy in (True, False):
            if is_busy and wish:
                os.kill(os.getpid(), wish)
            at_work, asked = self.agree(is_busy)
            assert at_work == is_busy
            if asked.stop:
                raise Cut(asked)

    def step(self, micro_batches, lr):
        self.steps += 1
        self._work(self.wishes.get(self.steps))
        self.learner.step(micro_batches, lr)
        result = self.learner.step(micro_batches, lr)
        return replace(
            result, tokens=50, updates=2, extra={"seconds/generate": 0.5},
            rollouts=[{"prompt": "a", "response": "b", "reward": result.metrics["loss"]}],
        )  # fmt: skip

    def evaluate(self, micro_batches):
        self._work(self.wishes.get("evaluate"))
        return self.learner.evaluate(micro_batches)


def driving(directory, learner, wishes=None, **limits):
    """A trainer over ``Twice`` whose checkpoints hold the learner below it."""
    trainer = _trainer(directory, learner, **limits)
    trainer.learner = Twice(learner, wishes)
    trainer.learner.listen(trainer._hear)
    return trainer


def rollout_steps(run) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "rollouts.jsonl").read_text().splitlines()]


def test_what_a_step_knows_better_is_logged_and_counted(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        summary = driving(tmp_path, learner, max_steps=2).fit()
        assert learner.updates == 4
    for line in read_metrics(tmp_path):
        assert (line["updates"], line["seconds/generate"]) == (2, 0.5)
    assert summary["tokens"] == 100
    assert rollout_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("save_every", [0, 1], ids=["unsaved", "saved already"])
def test_a_step_cut_short_never_was_and_the_run_goes_on_before_it(tmp_path, save_every) -> None:
    with bench.learner(SETUP) as learner:
        driving(tmp_path / "straight", learner).fit()
    with bench.learner(SETUP) as learner:
        trainer = driving(
            tmp_path / "cut", learner, {4: signal.SIGTERM}, save_every=save_every, val_every=0
        )
        trainer.validation = None
        with pytest.raises(Stopped, match=r"in step 4, which is .*; everything is saved"):
            trainer.fit()
        trainer.records.close()
    last = find_last(tmp_path / "cut/checkpoints")
    assert (read_progress(last)["step"], read_progress(last)["consumed_samples"]) == (3, 6)
    with bench.learner(SETUP) as learner:
        trainer = driving(tmp_path / "cut", learner)
        trainer.restore(last)
        trainer.fit()
    straight, cut = (read_metrics(tmp_path / name) for name in ("straight", "cut"))
    assert [(e["step"], e["loss"]) for e in cut] == [(e["step"], e["loss"]) for e in straight]
    assert rollout_steps(tmp_path / "cut") == [1, 2, 3, 4, 5, 6]


def test_a_first_step_cut_short_leaves_nothing_to_save(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        trainer = driving(tmp_path, learner, {1: signal.SIGTERM})
        with pytest.raises(Stopped, match=r"in step 1.*nothing was trained yet"):
            trainer.fit()
    assert find_last(tmp_path / "checkpoints") is None
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("amid", [3, "evaluate"])
def test_a_wish_to_save_heard_amid_work_is_answered_after_it(tmp_path, amid) -> None:
    with bench.learner(SETUP) as learner:
        trainer = driving(tmp_path, learner, {amid: signal.SIGUSR2}, val_every=3)
        saved, real_save = [], trainer.checkpointer.save
        trainer.checkpointer.save = lambda progress, **how: (
            saved.append((progress.step, how["archive"])) or real_save(progress, **how)
        )
        trainer.fit()
    assert saved[0] == (3, True)


def test_a_measurement_cut_short_is_owed_to_the_next_start(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        trainer = driving(tmp_path, learner, {"evaluate": signal.SIGTERM}, val_every=2)
        trainer._begin = lambda: None
        with pytest.raises(Stopped, match="after step 2 of 6"):
            trainer.fit()
    assert read_metrics(tmp_path, "val") == []
    assert read_progress(find_last(tmp_path / "checkpoints"))["owes_validation"]
