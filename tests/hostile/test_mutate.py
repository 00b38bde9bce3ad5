"""Every checkpoint kept for tests, damaged at random: our error or a reading, in bounded memory and time."""

import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
MARKS = ("model_config.yaml", "config.json")
SOURCES = [
    path
    for path in sorted(FIXTURES.iterdir())
    if path.suffix in (".nemo", ".ckpt") or any((path / mark).exists() for mark in MARKS)
]
MUTANTS = 25


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_damage_never_ends_in_anything_but_our_error(path):
    command = [sys.executable, "-m", "tests.hostile.mutate", path, str(MUTANTS)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=FIXTURES.parents[1]
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    refused, read = map(int, ended.stdout.split())
    assert refused + read == MUTANTS
    assert refused > MUTANTS // 8
