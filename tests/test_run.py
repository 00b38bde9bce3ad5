"""Whole runs through the real command: what they leave behind, how they go on, how they refuse."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import tiny

FIXTURES = Path(__file__).parent / "fixtures"
SHORT = ["--precision", "fp32", "--gbs", 8, "--mbs", 4, "--max-steps", 2, "--lr", "1e-3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny model, rows, and two finished runs: full weights and LoRA on another layout."""
    root = tmp_path_factory.mktemp("runs")
    tiny.make_llama(root / "hf")
    tiny.ok("convert", root / "hf", "-o", root / "m.nemo")
    tiny.write_rows(root / "train.jsonl", tiny.rows(32, seed=1))
    tiny.write_rows(root / "val.jsonl", tiny.rows(6, seed=2))
    data = ["--data", root / "train.jsonl", "--val", root / "val.jsonl"]
    template = ["--set", "model.data.train_ds.prompt_template=Q: {input}\\nA: {output}"]
    tiny.ok("sft", "--ckpt", root / "m.nemo", *data, "-o", root / "full", *SHORT, *template)
    tiny.ok(
        "sft", "--ckpt", root / "m.nemo", *data, "-o", root / "lora", *SHORT, "--lora", 4, "--tp", 2
    )
    return root


@pytest.mark.slow
def test_a_run_leaves_everything_that_repeats_and_explains_it(made) -> None:
    names = {path.name for path in (made / "full").iterdir() if not path.name.startswith(".")}
    assert names == {
        "checkpoints", "command.sh", "config.yaml", "metrics.jsonl", "summary.json",
        "megatron_gpt_sft.nemo", "megatron_gpt_sft.nemo.conversion.json",
    }  # fmt: skip
    summary = json.loads((made / "full/summary.json").read_text())
    assert summary["steps"] == 2
    val = tiny.read_metrics(made / "full", "val")
    assert [entry["step"] for entry in val] == [0, 2]
    assert summary["val_loss"] == val[-1]["val_loss"] < val[0]["val_loss"]


@pytest.mark.slow
def test_the_archive_carries_its_prompt_template(made) -> None:
    archive = made / "full/megatron_gpt_sft.nemo"
    assert tiny.ok("inspect", archive, "--template") == "Q: {input}\nA: {output}\n"
    key = "data.train_ds.prompt_template"
    assert tiny.ok("inspect", archive, "-k", key) == "Q: {input}\nA: {output}\n"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_finished_runs_archive_exports_and_evaluates_to_its_last_loss(
    made, run, tmp_path
) -> None:
    archive = made / run / "megatron_gpt_sft.nemo"
    tiny.ok("export", archive, "-o", tmp_path / "hf")
    out = tiny.ok(
        "sft", "--ckpt", tmp_path / "hf", "--val", made / "val.jsonl", "--max-steps", 0, "--json",
        "--precision", "fp32", "--gbs", 8, "-o", tmp_path / "run",
        *(["--set", "model.data.train_ds.prompt_template=Q: {input}\\nA: {output}"] * (run == "full")),
    )  # fmt: skip
    expected = json.loads((made / run / "summary.json").read_text())["val_loss"]
    assert json.loads(out)["val_loss"] == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_training_goes_on_from_an_archive_an_adapter_and_its_merged_model(made, tmp_path) -> None:
    adapter = made / "lora/megatron_gpt_sft.nemo"
    last = json.loads((made / "lora/summary.json").read_text())["val_loss"]
    data = ["--data", made / "train.jsonl", "--val", made / "val.jsonl"]
    for name, flags in {
        "merged": ["--ckpt", adapter],
        "adapter": ["--ckpt", made / "m.nemo", "--adapter", adapter, "--lora", 4],
    }.items():
        tiny.ok("sft", *flags, *data, "-o", tmp_path / name, *SHORT)
        before, after = (entry["val_loss"] for entry in tiny.read_metrics(tmp_path / name, "val"))
        assert before == pytest.approx(last, abs=2e-6), name
        assert after < before, name


@pytest.mark.slow
def test_a_finished_run_says_so_and_an_interrupted_one_goes_on(made, tmp_path) -> None:
    shutil.copytree(made / "full", tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    again = tiny.command("sft", "--config", tmp_path / "run/config.yaml", "-o", tmp_path / "run")
    assert again.returncode == 0
    assert "finished" in again.stderr
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    (tmp_path / "run/summary.json").unlink()
    tiny.ok(
        "sft", "--config", tmp_path / "run/config.yaml", "-o", tmp_path / "run", "--max-steps", 3
    )
    assert [entry["step"] for entry in tiny.read_metrics(tmp_path / "run")] == [1, 2, 3]
    changed = tiny.command(
        "sft", "--config", tmp_path / "run/config.yaml", "-o", tmp_path / "run", "--lr", "5e-3"
    )
    assert changed.returncode == 5
    assert "model.optim.lr was 0.001 and is 0.005" in changed.stderr


@pytest.mark.slow
def test_dry_run_resolves_everything_and_writes_nothing(made, tmp_path) -> None:
    out = tiny.ok(
        "sft", "--ckpt", made / "m.nemo", "--data", made / "train.jsonl", "--gbs", 8, "--tp", 2,
        "-o", tmp_path / "run", "--dry-run", "--json",
    )  # fmt: skip
    plan = json.loads(out)
    assert plan["steps"] == 4
    assert plan["layout"]["tp"] == 2
    assert plan["parameters"] == 214_464
    assert not (tmp_path / "run").exists()


def _wrong(made, tmp_path, **changes) -> tuple[int, str]:
    flags = {"--ckpt": made / "m.nemo", "--data": made / "train.jsonl", "--gbs": 8, **changes}
    line = [word for pair in flags.items() for word in pair]
    result = tiny.command("sft", *line, "-o", tmp_path / "run")
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().count("\n\n") == 0, "one paragraph"
    assert not (tmp_path / "run/metrics.jsonl").exists()
    return result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"input": "a", "output": "b"}\n{"input": "a", \n', r"line 2 is not JSON"),
        ('{"input": "a", "output": "b"}\n{"input": "c", "output": ""}\n', r"line 2"),
        ("", "empty"),
    ],
    ids=["bad json", "empty answer", "no rows"],
)
def test_bad_rows_are_exit_8_with_their_line(made, tmp_path, text, says) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    code, message = _wrong(made, tmp_path, **{"--data": tmp_path / "rows.jsonl"})
    assert code == 8
    assert says in message


@pytest.mark.slow
def test_checkpoints_that_are_none_are_exit_3(made, tmp_path) -> None:
    assert _wrong(made, tmp_path, **{"--ckpt": tmp_path / "absent.nemo"})[0] == 3
    (tmp_path / "text.nemo").write_text("no checkpoint")
    assert _wrong(made, tmp_path, **{"--ckpt": tmp_path / "text.nemo"})[0] == 3
    whole = (made / "m.nemo").read_bytes()
    (tmp_path / "cut.nemo").write_bytes(whole[: len(whole) // 2])
    code, message = _wrong(made, tmp_path, **{"--ckpt": tmp_path / "cut.nemo"})
    assert code == 3
    assert "truncated" in message or "ends" in message


@pytest.mark.slow
def test_layouts_and_lengths_that_do_not_fit_are_exit_2_and_name_what_does(made, tmp_path) -> None:
    code, message = _wrong(made, tmp_path, **{"--tp": 4})
    assert code == 2
    assert "--tp 1 or 2" in message
    code, message = _wrong(
        made, tmp_path, **{"--ckpt": FIXTURES / "gpt_tp1_dist.nemo", "--seq-len": 4096}
    )
    assert code == 2
    assert "--seq-len 128" in message
