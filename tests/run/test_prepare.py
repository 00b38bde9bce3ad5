"""What is refused or planned before a process group exists, through the real command."""

import json
from pathlib import Path

import pytest

from tests.commands import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.slow
def test_dry_run_resolves_everything_and_writes_nothing(made, tmp_path) -> None:
    out = tiny.quickly(
        "sft", "--ckpt", made / "m.nemo", "--data", made / "train.jsonl", "--gbs", 8, "--tp", 2,
        "-o", tmp_path / "run", "--dry-run", "--json",
    )  # fmt: skip
    plan = json.loads(out)
    assert plan["steps"] == 4
    assert plan["layout"]["tp"] == 2
    assert plan["parameters"] == 214_464
    assert not (tmp_path / "run").exists()


def _wrong(made, tmp_path, code: int, **changes) -> str:
    flags = {"--ckpt": made / "m.nemo", "--data": made / "train.jsonl", "--gbs": 8, **changes}
    line = [word for pair in flags.items() for word in pair]
    said = tiny.quickly("sft", *line, "-o", tmp_path / "run", talk=True, code=code)
    assert "Traceback" not in said
    assert said.strip().count("\n\n") == 0, "one paragraph"
    assert not (tmp_path / "run/metrics.jsonl").exists()
    return said


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
    assert says in _wrong(made, tmp_path, 8, **{"--data": tmp_path / "rows.jsonl"})


@pytest.mark.slow
def test_checkpoints_that_are_none_are_exit_3(made, tmp_path) -> None:
    _wrong(made, tmp_path, 3, **{"--ckpt": tmp_path / "absent.nemo"})
    (tmp_path / "text.nemo").write_text("no checkpoint")
    _wrong(made, tmp_path, 3, **{"--ckpt": tmp_path / "text.nemo"})
    whole = (made / "m.nemo").read_bytes()
    (tmp_path / "cut.nemo").write_bytes(whole[: len(whole) // 2])
    message = _wrong(made, tmp_path, 3, **{"--ckpt": tmp_path / "cut.nemo"})
    assert "truncated" in message or "ends" in message


@pytest.mark.slow
def test_layouts_and_lengths_that_do_not_fit_are_exit_2_and_name_what_does(made, tmp_path) -> None:
    assert "--tp 1 or 2" in _wrong(made, tmp_path, 2, **{"--tp": 4})
    longer = {"--ckpt": FIXTURES / "gpt_tp1_dist.nemo", "--seq-len": 4096}
    assert "--seq-len 128" in _wrong(made, tmp_path, 2, **longer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "-p", "Hello"],
        ["sft", "--data", "rows.jsonl", "--dry-run"],
        ["sft", "--data", "rows.jsonl"],
        ["dpo", "--data", "rows.jsonl"],
        ["kto", "--data", "rows.jsonl"],
    ],
    ids=" ".join,
)
def test_a_reward_model_is_refused_where_one_writes(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.make_classifier(tmp_path / "reward model")
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(8, seed=1))
    said = tiny.quickly(*command, "--ckpt", "reward model", talk=True, code=4)
    assert "reward model is a reward model: it scores answers" in said
    assert "type: nemoalign rm --ckpt 'reward model' --score answers.jsonl -o scores.jsonl" in said
    # Where it goes was chosen before, and is left empty.
    assert not [path for path in tmp_path.rglob("runs/*/*")]
