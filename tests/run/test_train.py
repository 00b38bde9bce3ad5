"""Whole runs through the real command: what they leave behind, how they go on, how they refuse."""

import json
import shutil

import pytest

from tests.commands import tiny


@pytest.mark.slow
def test_a_run_leaves_everything_that_repeats_and_explains_it(made) -> None:
    names = {path.name for path in (made / "full").iterdir() if not path.name.startswith(".")}
    assert names == {
        "checkpoints", "command.sh", "config.yaml", "data_files.json", "data_report.json",
        "metrics.jsonl", "summary.json",
        "report.html", "run.json",
        "megatron_gpt_sft.nemo", "megatron_gpt_sft.nemo.conversion.json",
    }  # fmt: skip
    summary = json.loads((made / "full/summary.json").read_text())
    assert summary["steps"] == 2
    val = tiny.read_metrics(made / "full", "val")
    assert [entry["step"] for entry in val] == [0, 2]
    assert summary["val_loss"] == val[-1]["val_loss"] < val[0]["val_loss"]
    assert summary["best"] == {"val_loss": val[-1]["val_loss"], "step": 2}
    assert (summary["state"], summary["algorithm"]) == ("finished", "sft")
    assert summary["epochs"] == 0.5
    assert summary["warnings"] == []
    page = (made / "full/report.html").read_text()
    shown = ("Q: What does the", "flag --lr", "train.jsonl: 32 rows", '"val":[[0,', "finished")
    assert [words for words in shown if words not in page] == []
    peaks = [entry["memory_gib"] for entry in tiny.read_metrics(made / "full")]
    assert 0.1 < peaks[0] <= peaks[-1] <= summary["peak_memory_gib"] < 8


@pytest.mark.slow
def test_the_archive_carries_its_prompt_template(made) -> None:
    archive = made / "full/megatron_gpt_sft.nemo"
    assert tiny.quickly("inspect", archive, "--template") == "Q: {input}\nA: {output}\n"
    key = "data.train_ds.prompt_template"
    assert tiny.quickly("inspect", archive, "-k", key) == "Q: {input}\nA: {output}\n"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_finished_runs_archive_exports_and_evaluates_to_its_last_loss(
    made, run, tmp_path
) -> None:
    archive = made / run / "megatron_gpt_sft.nemo"
    tiny.quickly("export", archive, "-o", tmp_path / "hf")
    out = tiny.quickly(
        "sft", "--ckpt", tmp_path / "hf", "--val", made / "val.jsonl", "--max-steps", 0, "--json",
        "--precision", "fp32", "--gbs", 8, "-o", tmp_path / "run",
        *(["--set", "model.data.train_ds.prompt_template=Q: {input}\\nA: {output}"] * (run == "full")),
    )  # fmt: skip
    expected = json.loads((made / run / "summary.json").read_text())["val_loss"]
    assert json.loads(out)["val_loss"] == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_a_run_that_stopped_says_why_and_what_is_odd_in_its_summary(made, tmp_path) -> None:
    run = tmp_path / "run"
    said = tiny.quickly(
        "sft", "--config", made / "full/config.yaml", "-o", run, "--max-time", "0:00:00",
        "--val", made / "train.jsonl", talk=True, code=75,
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["state"] == "stopped"
    assert summary["reason"] in said
    assert summary["steps"] == 0
    (odd,) = json.loads((run / "data_report.json").read_text())["problems"]
    assert "32 of 32 rows of the validation data are training rows too" in odd
    assert summary["warnings"] == json.loads((run / "run.json").read_text())["warnings"] == [odd]
    assert "Warnings" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_finished_run_says_so_and_an_interrupted_one_goes_on(made, tmp_path) -> None:
    shutil.copytree(made / "full", tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    shared = ["sft", "--config", tmp_path / "run/config.yaml", "-o", tmp_path / "run"]
    assert "finished; nothing to do" in tiny.quickly(*shared, talk=True)
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    (tmp_path / "run/summary.json").write_text(json.dumps({**summary, "state": "stopped"}))
    assert "rank  host" in tiny.quickly(*shared, "--max-steps", 3, "-v")
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "finished"
    assert [entry["step"] for entry in tiny.read_metrics(tmp_path / "run")] == [1, 2, 3]
    changed = tiny.quickly(*shared, "--lr", "5e-3", talk=True, code=5)
    assert "model.optim.lr was 0.001 and is 0.005" in changed
