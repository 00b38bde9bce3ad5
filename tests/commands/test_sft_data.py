"""Rows of every kind and of files larger than is read ahead, through the real command."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.commands import tiny

SHORT = ["--precision", "fp32", "--mbs", 4, "--lr", "1e-3"]
TOOL = {"type": "function", "function": {"name": "listen", "description": "", "parameters": {}}}
PACK = {
    "input_ids": [*range(5, 15), *range(30, 36)],
    "loss_mask": [0] * 3 + [1] * 6 + [0] + [0, 1, 1, 1, 1, 0],
    "seq_start_id": [0, 10],
}
LARGE = ["--set", "model.data.tokenize_ahead_megabytes=0"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny.make_llama(tmp_path_factory.mktemp("llama"))


def _files(folder: Path) -> dict[str, Path]:
    """The same questions and answers in every form that is read."""
    made = tiny.rows(8, seed=1)
    pairs = [(row["input"], row["output"]) for row in made]
    parquet.write_table(pyarrow.Table.from_pylist([*map(tiny.as_messages, made)]), folder / "p")
    (folder / "g").write_bytes(gzip.compress("\n".join(map(json.dumps, made)).encode()))
    np.save(folder / "packed.npy", np.array([PACK] * 4, dtype=object), allow_pickle=True)
    forms = {
        "tools": lambda q, a: {"tools": [TOOL], **tiny.as_messages({"input": q, "output": a})},
        "nemo": lambda q, a: {
            "system": "Be brief.",
            "mask": "User",
            "type": "VALUE_TO_TEXT",
            "conversations": [
                {"from": "User", "value": q},
                {"from": "Assistant", "value": a, "label": "quality:4"},
            ],
        },
        "sharegpt": lambda q, a: {
            "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]
        },
        "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
        "ids": lambda q, a: {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    }
    written = {
        name: tiny.write_rows(folder / f"{name}.jsonl", [form(q, a) for q, a in pairs])
        for name, form in forms.items()
    }
    return {
        **written,
        "parquet": folder / "p",
        "zipped": folder / "g",
        "packed": folder / "packed.npy",
    }


@pytest.mark.slow
def test_files_of_every_kind_train_together_and_are_shown(llama, tmp_path) -> None:
    files = _files(tmp_path)
    data = [word for path in files.values() for word in ("--data", f"{path}:1")]
    shown = tiny.quickly(
        "sft", "--ckpt", llama, *data, "-o", tmp_path / "run", *SHORT, "--gbs", 8, "--max-steps", 8,
        "--val", files["zipped"], "--preview", 64,
        talk=True,
    )  # fmt: skip
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    train, validation = report["splits"]
    schemas = [file["schema"] for file in train["files"]]
    assert schemas == [
        "messages", "nemo-chat", "sharegpt", "alpaca", "tokens", "messages", "prompt-response", "tokens",
    ]  # fmt: skip
    assert validation["files"][0]["rows"] == 8
    # The same conversation, whether it was written as messages, by ShareGPT, as alpaca or in a table.
    same = [train["files"][n]["tokens"] for n in (2, 3, 5)]
    assert len(set(same)) == 1
    assert train["repeated"] > 0
    assert [(one["split"], one["rows"], one["of"]) for one in report["overlaps"]] == [
        ("validation", 8, 8)
    ]
    first = tiny.rows(1, seed=1)[0]
    asked, answer = first["input"], first["output"]
    assert (
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in shown
    )
    assert (
        f"\\x00System\nBe brief.\n\\x11User\n{asked}\n\\x11Assistant\n\\x12quality:4\n⟦{answer}"
        in shown
    )
    assert f"{asked}⟦ {answer}<|im_end|>⟧" in shown
    assert "of the validation data are training rows too" in shown
    assert 'has 8 rows with fields (the first is "tools" in tools.jsonl line 1)' in shown


def _train(llama: Path, data: Path, run: Path, *more: object) -> tuple[int, str, int]:
    """Run the command and return its exit code, its talk and its peak memory in bytes."""
    words = ["sft", "--ckpt", llama, "--data", data, "-o", run, *SHORT, "--devices", 1, *more]
    with (run.parent / f"{run.name}.err").open("w+") as talk:
        process = subprocess.Popen(
            [sys.executable, "-m", "nemoalign", *map(str, words)], stderr=talk, stdout=talk
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        talk.seek(0)
        return process.returncode, talk.read(), usage.ru_maxrss * 1024


@pytest.mark.slow
def test_a_large_file_trains_as_a_small_one_until_a_bad_row_and_in_little_memory(
    llama, tmp_path
) -> None:
    made = tiny.rows(1200, seed=3)
    small = tiny.write_rows(tmp_path / "rows.jsonl", made)
    steps = ["--max-steps", 3, "--shuffle", "--gbs", 8]
    code, said, plain = _train(llama, small, tmp_path / "whole", *steps)
    assert code == 0, said
    large = tiny.write_rows(tmp_path / "large.jsonl", made)
    code, said, _ = _train(llama, large, tmp_path / "large", *steps, *LARGE)
    assert code == 0, said
    assert "estimated from 1,000 rows" in said
    curves = [
        [one["loss"] for one in tiny.read_metrics(tmp_path / run)] for run in ("whole", "large")
    ]
    assert curves[0] == curves[1]

    big = tmp_path / "big.jsonl"
    with big.open("w") as file:
        for number in range(100_000):
            row = {"input": f"{number} " + "cat " * 200, "output": "a meow " * 40}
            file.write("{\n" if number == 110 else json.dumps(row) + "\n")
    assert big.stat().st_size > 100_000_000
    code, said, peak = _train(
        llama, big, tmp_path / "big", "--max-steps", 3, "--no-packing", *LARGE, "--gbs", 64
    )
    assert code == 8
    assert "big.jsonl line 111 is not JSON" in said
    assert [one["step"] for one in tiny.read_metrics(tmp_path / "big")] == [1]
    assert peak < plain + 60_000_000
