"""The training command up to where training begins; what comes after is tested in tests/commands."""

import json
from pathlib import Path

import pytest

from nemoalign.cli import app
from nemoalign.launch import ranks
from nemoalign.launch.wanted import OUTPUT
from tests.cli.running import run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ARCHIVE = FIXTURES / "llama.nemo"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"input": "a", "output": "b"}\n' * 8)
    return tmp_path


def sft(folder, *arguments, **options):
    return run(
        "sft", "--ckpt", ARCHIVE, "--data", "train.jsonl", *arguments, cwd=folder, **options
    )  # fmt: skip


def test_print_config_shows_values_and_sources_of_every_layer(folder):
    (folder / "nemoalign.yaml").write_text("model: {optim: {weight_decay: 0.5}}")
    (folder / "more.yaml").write_text("model: {seed: 7}")
    ended = sft(
        folder, "-c", "more.yaml", "-s", "trainer.sft.max_epochs=2", "++model.optim.eps=1e-7",
        "--lr", "3e-4", "--print-config", "--json",
        env={"NEMOALIGN_MODEL__GLOBAL_BATCH_SIZE": "8"},
    )  # fmt: skip
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    sources = document["sources"]
    assert sources["model.optim.weight_decay"] == "nemoalign.yaml"
    assert sources["model.seed"] == "more.yaml"
    assert sources["model.global_batch_size"] == "environment NEMOALIGN_MODEL__GLOBAL_BATCH_SIZE"
    assert sources["trainer.sft.max_epochs"] == sources["model.optim.eps"] == "--set"
    assert sources["model.optim.lr"] == "flag --lr"
    assert sources["model.num_layers"] == f"checkpoint {ARCHIVE}"
    assert document["config"]["model"]["num_layers"] == 4
    assert document["notes"] == ["nemoalign.yaml in this directory is read as the first --config."]
    assert "torch" not in ended.modules


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--tp", "3"], 2, "use --tp 1 or 2"),
        (["--pp", "3"], 2, "--pp 3"),
        (["--gbs", "3", "--mbs", "2"], 2, "--gbs 3"),
        (["--tp", "2", "--devices", "3"], 2, "--devices 2 or 4"),
        (["--cp", "2"], 2, "--cp 1"),
        (["--num-nodes", "2"], 2, "srun"),
        (["--val", "none.jsonl"], 3, "There is no file none.jsonl; --val names it."),
        (["-s", "model.num_layers=8"], 4, "model.num_layers is 4"),
        (["--max-time", "soon"], 2, "--max-time soon does not work"),
    ],
)
def test_what_cannot_work_is_refused_before_any_rank_starts(folder, flags, code, says):
    ended = sft(folder, *flags)
    assert ended.code == code
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert "torch" not in ended.modules
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("command", "flag"), [(["dpo"], "--ref"), (["ppo", "--reward", ARCHIVE], "--critic")]
)
def test_a_model_that_is_not_there_is_refused_before_any_rank_starts(folder, command, flag):
    ended = run(
        *(*command, "--ckpt", ARCHIVE, "--data", "train.jsonl", flag, "none.nemo"), cwd=folder
    )
    assert ended.code == 3
    assert f"There is nothing at none.nemo; {flag} names it." in ended.err
    assert ended.err.count("\n") == 1
    assert "torch" not in ended.modules


def test_ranks_that_were_started_elsewhere_must_fit(folder):
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ended = sft(folder, "--devices", "4", env=torchrun)
    assert ended.code == 2
    assert "torchrun started 2 ranks, but --devices and --num-nodes ask for 4" in ended.err
    ended = sft(folder, env=torchrun)
    assert ended.code == 2
    assert "-o runs/sft-1" in ended.err


@pytest.mark.parametrize("output", [None, "answers.jsonl"])
def test_ranks_are_told_where_to_write_only_where_that_is_known(output, monkeypatch):
    started = []

    def start(command, count, environ, *, threads):
        started.append((count, environ))

    monkeypatch.setattr(ranks, "start_ranks", start)
    monkeypatch.delenv(OUTPUT, raising=False)
    typed = ["generate", "--ckpt", str(ARCHIVE), "-p", "Hello", "--tp", "2"]
    assert app.run([*typed, *([] if output is None else ["-o", output])]) == 0
    ((count, environ),) = started
    assert count == 2
    assert environ.get(OUTPUT) == output
