"""Who started this process: torchrun, srun or nobody, told by the environment alone."""

import pytest

from nemoalign.errors import ConfigError
from nemoalign.parallel.world import (
    find_world,
    first_host,
    tasks_on_node,
    threads_per_rank,
    visible_gpus,
)

MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "node[007-008]",
}


def test_an_ordinary_process_is_no_rank():
    assert find_world({}) is None
    assert find_world({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}) is None


def test_torchrun_is_taken_as_it_is():
    environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MASTER}
    world = find_world(environ)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    entered = dict(environ)
    world.enter(entered)
    assert entered == environ


@pytest.mark.parametrize("missing", MASTER)
def test_ranks_without_a_meeting_place_are_refused(missing):
    environ = {"RANK": "0", "WORLD_SIZE": "2", **MASTER}
    del environ[missing]
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT"):
        find_world(environ)


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'two'"):
        find_world({"RANK": "0", "WORLD_SIZE": "two", **MASTER})


def test_srun_is_translated_into_torchruns_words():
    environ = dict(SRUN)
    find_world(environ).enter(environ)
    assert environ["RANK"] == "3"
    assert environ["WORLD_SIZE"] == "4"
    assert environ["LOCAL_RANK"] == "1"
    assert environ["LOCAL_WORLD_SIZE"] == "2"
    assert environ["MASTER_ADDR"] == "node007"
    assert 10_000 <= int(environ["MASTER_PORT"]) < 30_000


def test_every_task_of_a_step_finds_the_same_port_and_another_job_another_one():
    ports = [find_world({**SRUN, "SLURM_PROCID": str(rank)}).master for rank in range(4)]
    assert len(set(ports)) == 1
    assert find_world({**SRUN, "SLURM_JOB_ID": "4243"}).master != ports[0]


def test_a_meeting_place_that_is_set_stays():
    environ = {**SRUN, **MASTER}
    find_world(environ).enter(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_an_sbatch_script_without_srun_starts_its_own_ranks():
    script = {**SRUN, "ENVIRONMENT": "BATCH", "SLURM_PROCID": "0"}
    del script["SLURM_STEP_ID"]
    assert find_world(script) is None
    assert find_world({**script, "SLURM_STEP_ID": "0"}).starter == "srun"


def test_one_task_is_no_rank():
    assert find_world({**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node[001-003,007],gpu1", "node001"),
        ("node[7,9-12]", "node7"),
        ("tux[0-1]-ib", "tux0-ib"),
        ("a[1-2]b[3-4],c", "a1b3"),
        ("login,node[1-2]", "login"),
    ],
)
def test_the_first_host_of_slurms_notation(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("counts", "each"),
    [("4(x2),3", [4, 4, 3]), ("2", [2]), ("1,5(x1)", [1, 5]), ("8(x3)", [8] * 3)],
)
def test_tasks_of_each_node(counts, each):
    assert [tasks_on_node(counts, node) for node in range(len(each))] == each


def test_threads_are_shared_out_and_never_none():
    alone = threads_per_rank(1, {})
    assert alone >= 1
    assert threads_per_rank(2, {}) == max(1, alone // 2)
    assert threads_per_rank(10_000, {}) == 1
    assert threads_per_rank(4, {"SLURM_CPUS_PER_TASK": "6"}) == 6


def test_hidden_gpus_are_not_there():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == 0
