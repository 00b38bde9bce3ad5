"""The page as a whole: complete, self-contained, harmless and small."""

import json
import math
import re
import subprocess
import sys

import pytest

from nemoalign.train.report.page import write_report
from tests.train.report.test_markup import Seen

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\ud800"


def leave_run(directory, steps: int, words: str = "hello") -> None:
    """Leave the files of a run in which every text is ``words``."""
    lines = [
        {"split": "train", "step": step, "loss": 3.0 + math.sin(step * 1e9), "lr": 1e-5 * step,
         "grad_norm": 1.23456789, "tokens_per_second": 1000 / 3, "memory_gib": 1.5, "margin": 0.1}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    lines += [{"split": "val", "step": step, "val_loss": 2.5} for step in range(0, steps, 100)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    sample = {"title": words, "parts": [["masked", words], ["trained", words]]}
    about = {
        "algorithm": words, "source": words, "started": words, "command": words, "data": [words],
        "versions": {words: words}, "config": {words: words}, "sources": {words: words},
        "warnings": [words], "samples": [sample],
    }  # fmt: skip
    (directory / "run.json").write_text(json.dumps(about))
    row = {"step": 3, "warning": words, "prompt": words, "response": words}
    for name in ("warnings.jsonl", "generations.jsonl", "rollouts.jsonl"):
        (directory / name).write_text(json.dumps(row) + "\n")
    (directory / "data_report.json").write_text(json.dumps({words: [{words: words}]}))
    summary = {"state": words, "reason": words, "best": {words: words}, "ranks": [{words: words}]}
    (directory / "summary.json").write_text(json.dumps(summary))


def test_untrusted_text_is_text_everywhere(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    leave_run(tmp_path / "a", 3)
    leave_run(tmp_path / "b", 3, EVIL)
    plain, evil = (Seen(write_report(tmp_path / name).read_text()) for name in "ab")
    assert [name for name, _ in evil.tags] == [name for name, _ in plain.tags]
    assert [set(attributes) for _, attributes in evil.tags] == [set(a) for _, a in plain.tags]
    assert evil.text.count("alert(1)") > 15


def test_it_needs_no_network_and_tells_the_browser_so(tmp_path) -> None:
    leave_run(tmp_path, 3)
    page = write_report(tmp_path).read_text()
    assert not re.search(r"https?://|\ssrc=|\shref=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert page.count("<script>") == 1


def test_100_000_steps_stay_below_a_megabyte(tmp_path) -> None:
    leave_run(tmp_path, 100_000)
    assert 50_000 < write_report(tmp_path).stat().st_size < 1_000_000


def test_it_is_made_again_from_the_directory_alone_and_appears_whole(tmp_path) -> None:
    leave_run(tmp_path, 3)
    made = subprocess.run(
        [sys.executable, "-m", "nemoalign.train.report", tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout == f"{tmp_path / 'report.html'}\n"
    assert not list(tmp_path.glob("*tmp"))
    assert (tmp_path / "report.html").read_text() == write_report(tmp_path).read_text()


def test_an_empty_directory_gives_a_page_too(tmp_path) -> None:
    assert "<h1>" in write_report(tmp_path).read_text()
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "none")
