import subprocess

import pytest

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.errors import ConfigError
from nemoalign.launch.wanted import rank_command, wanted_ranks
from nemoalign.parallel.world import World


def wanted(world=None, **flags) -> int:
    keys = {
        "tp": "model.tensor_model_parallel_size",
        "pp": "model.pipeline_model_parallel_size",
        "devices": "trainer.devices",
        "nodes": "trainer.num_nodes",
    }
    typed = {keys[name]: value for name, value in flags.items()}
    merged = merge_run("sft", Said(flags=typed, environ={}))
    return wanted_ranks(merged.config, world, {"CUDA_VISIBLE_DEVICES": ""})


def test_on_a_cpu_there_are_as_many_ranks_as_one_copy_of_the_model_takes():
    assert wanted() == 1
    assert wanted(tp=2, pp=3) == 6
    assert wanted(tp=2, devices=4) == 4


def test_ranks_that_exist_are_taken_as_they_are():
    world = World(8, 3, 4, 3, "srun")
    assert wanted(world) == wanted(world, devices=4) == wanted(world, devices=4, nodes=2) == 8
    with pytest.raises(ConfigError, match=r"srun started 8 ranks, but .* ask for 6"):
        wanted(world, devices=3)


def test_more_machines_need_somebody_who_starts_ranks_there():
    assert wanted(nodes=1) == 1
    with pytest.raises(ConfigError, match="srun nemoalign"):
        wanted(nodes=2)


def test_a_rank_runs_this_program_wherever_it_is_started(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    command = rank_command(["--version"])
    assert subprocess.check_output(command, text=True).startswith("nemoalign ")
    elsewhere = [*command[:1], "-P", *command[command.index("-m") :]]
    assert subprocess.check_output(elsewhere, text=True, cwd=tmp_path).startswith("nemoalign ")
