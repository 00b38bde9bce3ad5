"""Which run directory a run without -o gets."""

from pathlib import Path

import pytest

from nemoalign.cli.rundir import choose_directory
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError
from nemoalign.parallel.world import World


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def merged(**flags):
    return merge_run(
        "sft", Said(flags={key.replace("__", "."): v for key, v in flags.items()}, environ={})
    )


def choose(run, world=None, environ=None, *, create=True) -> str:
    return str(choose_directory(run, world, environ or {}, create=create))


def leave(directory: str, run, *, finished: bool, summary: str = "{}") -> None:
    """Leave what a run writes first and last."""
    path = Path(directory)
    (path / "config.yaml").write_text(run.with_output(path).to_yaml())
    if finished:
        (path / "summary.json").write_text(summary)


def test_the_next_free_number_is_taken_at_once():
    assert [choose(merged()) for _ in range(3)] == ["runs/sft-1", "runs/sft-2", "runs/sft-3"]
    assert Path("runs/sft-3").is_dir()


def test_a_dry_run_takes_nothing():
    assert choose(merged(), create=False) == choose(merged(), create=False) == "runs/sft-1"
    assert not Path("runs").exists()


def test_an_unfinished_run_of_the_same_settings_is_continued():
    run = merged(model__seed="5")
    leave(choose(run), run, finished=False)
    assert choose(run) == "runs/sft-1"
    assert choose(merged(model__seed="6")) == "runs/sft-2"
    assert choose(merged(model__seed="5", exp_manager__resume_if_exists=False)) == "runs/sft-3"
    assert choose(merged(model__seed="5", exp_manager__overwrite=True)) == "runs/sft-4"


def test_a_finished_run_is_not_continued():
    run = merged()
    leave(choose(run), run, finished=True)
    assert choose(run) == "runs/sft-2"


def test_a_stopped_run_is_continued():
    run = merged()
    leave(choose(run), run, finished=True, summary='{"state": "stopped"}')
    assert choose(run) == "runs/sft-1"


def test_ranks_of_slurm_agree_through_the_job():
    world = World(2, 1, 2, 1, "srun")
    assert choose(merged(), world, {"SLURM_JOB_ID": "77"}) == "runs/sft-job77"


def test_ranks_of_torchrun_cannot_agree():
    with pytest.raises(ConfigError, match="-o runs/sft-1"):
        choose(merged(), World(2, 1, 2, 1, "torchrun"))
