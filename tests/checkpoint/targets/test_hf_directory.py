"""A directory holds what every piece became, and nothing when a tensor was forgotten."""

import json

import numpy as np
import pytest

from nemoalign.checkpoint.targets.hf_directory import Directory, Piece, write_directory
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import VerificationError
from tests.checkpoint.models import state_of

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def directory(tensors):
    return Directory(
        tensors=tensors,
        pieces=[
            Piece("pair", "float32", {"a": (1, 3), "b": (1, 3)}, lambda: (VALUES[:1], VALUES[1:]))
        ],
        files={"note.txt": b"kept"},
        report=lambda: {"source": "a test"},
        reopen=lambda container: container.member("note.txt"),
    )


def test_every_piece_is_written_and_reported(tmp_path, quiet):
    report = write_directory(directory(["pair"]), tmp_path / "hf", WriteOptions(), quiet)
    state = state_of(tmp_path / "hf")
    assert state["a"].tolist() == [[0, 1, 2]]
    assert state["b"].tolist() == [[3, 4, 5]]
    assert json.loads((tmp_path / "hf/conversion.json").read_text()) == report
    assert report["tensors"][0]["target"] == {"a": [1, 3], "b": [1, 3]}


def test_a_forgotten_tensor_fails_the_whole(tmp_path, quiet):
    with pytest.raises(VerificationError, match='"left out" was read 0 times'):
        write_directory(directory(["pair", "left out"]), tmp_path / "hf", WriteOptions(), quiet)
    assert not list(tmp_path.iterdir())
