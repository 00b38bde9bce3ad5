"""What the loop measures at its end and asks of the model on its way, and that it can be stopped there."""

import json
import os
import signal

import pytest

from nemoalign.data.prompts import Prompt
from nemoalign.errors import Stopped
from nemoalign.train.answers import FixedPrompts
from nemoalign.train.rotation import find_last
from tests.commands.tiny import read_metrics
from tests.train import bench
from tests.train.test_loop import SETUP, _trainer


def test_the_test_rows_are_measured_once_at_the_end(tmp_path) -> None:
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path, learner)
        trainer.test = trainer.validation
        summary = trainer.fit()
    (test,) = read_metrics(tmp_path, "test")
    last = read_metrics(tmp_path, "val")[-1]
    assert test == {"split": "test", "step": 6, "test_loss": last["val_loss"]}
    assert summary["test_loss"] == test["test_loss"]


def test_a_stop_during_the_test_rows_is_heard_and_they_are_measured_when_the_run_goes_on(
    tmp_path,
) -> None:
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path, learner, max_steps=2)
        trainer.test, real = trainer.validation, learner.evaluate

        def evaluate(batches):
            if trainer.checkpointer.saved_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(batches)

        learner.evaluate = evaluate
        with pytest.raises(Stopped, match="before the test rows were measured"):
            trainer.fit()
        trainer.records.close()
        learner.evaluate = real
        trainer = _trainer(tmp_path, learner, max_steps=2)
        trainer.test = trainer.validation
        trainer.restore(find_last(tmp_path / "checkpoints"))
        assert "test_loss" in trainer.fit()
    assert len(read_metrics(tmp_path, "test")) == 1


def test_fixed_prompts_are_answered_at_every_validation_and_a_stop_is_heard(tmp_path) -> None:
    class Words:
        def decode(self, ids):
            return " ".join(map(str, ids))

    prompts = [Prompt((5, 9, number), frozenset(), "made") for number in range(3)]
    with bench.learner(SETUP) as learner:
        trainer = _trainer(tmp_path, learner, max_steps=2)
        trainer.prompts = FixedPrompts(prompts, Words(), 4)
        trainer.fit()
        lines = (tmp_path / "generations.jsonl").read_text().splitlines()
        kept = [json.loads(line) for line in lines]
        assert [(one["step"], one["prompt"]) for one in kept] == [
            (step, f"5 9 {number}") for step in (0, 2) for number in range(3)
        ]
        assert {len(one["response"].split()) for one in kept} == {4}
        trainer.records.close()

        trainer = _trainer(tmp_path / "stopped", learner)
        trainer.validation = None
        trainer.prompts = FixedPrompts(prompts, Words(), 4)
        real = learner.modules[0].forward

        def forward(*arguments, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            learner.modules[0].forward = real
            return real(*arguments, **options)

        learner.modules[0].forward = forward
        with pytest.raises(Stopped, match="before step 1"):
            trainer.fit()
    assert (tmp_path / "stopped/generations.jsonl").read_text() == ""
