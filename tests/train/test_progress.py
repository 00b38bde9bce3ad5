import json
from dataclasses import asdict

from nemoalign.train.progress import Progress


def test_a_run_stands_at_its_beginning_until_something_is_done():
    assert Progress() == Progress(step=0, consumed_samples=0, epoch=0, tokens=0.0, skipped=0)
    assert Progress().monitored is not Progress().monitored


def test_it_survives_the_file_it_is_kept_in():
    progress = Progress(step=3, consumed_samples=12, val_metrics={"val_loss": 0.5}, monitored=[0.5])
    assert Progress(**json.loads(json.dumps(asdict(progress)))) == progress


def test_a_checkpoint_from_before_a_counter_was_kept_is_read():
    assert Progress(**{"step": 3, "consumed_samples": 12}).skipped == 0


def test_the_best_step_is_the_first_of_the_lowest():
    progress = Progress()
    for step, value in enumerate([3.0, 2.0, 2.0, 2.5]):
        progress.step = step
        progress.note(value)
    assert (progress.best_step, progress.monitored) == (1, [3.0, 2.0, 2.0, 2.5])
