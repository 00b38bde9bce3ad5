"""A file appears whole or not at all, and takes nobody's place unasked."""

from pathlib import Path

import pytest

from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.run.appearing import appearing
from nemoalign.train.agreement import DiskError


def written(target: Path, *, interrupts: bool) -> None:
    with appearing(target) as write:
        write(["one\n"])
        if interrupts:
            raise KeyError


def test_lines_appear_together_and_nothing_is_left_of_what_failed(tmp_path) -> None:
    target = tmp_path / "out.jsonl"
    with start(ParallelLayout(1), seed=1):
        with appearing(target) as write:
            write(["one\n"])
            assert not target.exists()
            write(["two\n"])
        assert target.read_text() == "one\ntwo\n"
        for folder, interrupts, error in ((".", True, KeyError), ("no/such", False, DiskError)):
            with pytest.raises(error):
                written(tmp_path / folder / "other", interrupts=interrupts)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
