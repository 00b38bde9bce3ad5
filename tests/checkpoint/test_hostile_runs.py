"""Evil pickles in every position of a run's checkpoint: refused, and never run."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemoalign.checkpoint.open import open_source
from nemoalign.errors import NemoAlignError, SourceError
from tests.checkpoint.ranked import legacy, rank_folder, shard_of, whole_model
from tests.checkpoint.ranked import settings as model_settings
from tests.checkpoint.sources.test_lightning import GENUINE, NAME, lightning
from tests.cli.running import run

CONFIG = model_settings(1, gated=True, tied=True)


class Evil:
    """What ``torch.load`` would run."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def saved(**more):
    model = whole_model(1, gated=True, tied=True)
    return lightning(legacy(model, gated=True, tied=True), CONFIG, **more)


PLACES = {
    "hyper_parameters": lambda evil: {"hyper_parameters": {"cfg": {**CONFIG, "tokenizer": evil}}},
    "whole configuration": lambda evil: {"hyper_parameters": evil},
    "optimizer": lambda evil: {"optimizer_states": [{"state": {0: evil}}]},
    "callbacks": lambda evil: {"callbacks": {"EarlyStopping": {"state": evil}}},
    "loops": lambda evil: {"loops": {"fit_loop": evil}},
    "lr_schedulers": lambda evil: {"lr_schedulers": [evil]},
    "weights": lambda evil: {"state_dict": {"model.x": evil}},
    "a key": lambda evil: {"callbacks": {(1, evil): 1}},
    "a virtual stage": lambda evil: {"model0": {"language_model": evil}},
    "extra state": lambda evil: {"state_dict": {"model.x._extra_state": evil}},
    "anything else": lambda evil: {"datamodule": evil},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_an_evil_object_is_refused_wherever_it_lies(place, tmp_path):
    mark = tmp_path / "ran"
    torch.save(saved(**place(Evil(mark))), tmp_path / "last.ckpt")
    with pytest.raises(SourceError, match=r"mkdir.*refused before anything ran"):
        open_source(tmp_path / "last.ckpt")
    assert not mark.exists()


def test_an_evil_object_in_another_ranks_file_is_refused(tmp_path):
    mark = tmp_path / "ran"
    model = whole_model(1, gated=True, tied=True)
    for rank in range(2):
        state = legacy(shard_of(model, 2, rank, gated=True), gated=True, tied=True)
        more = {"callbacks": Evil(mark)} if rank else {}
        path = tmp_path / rank_folder(rank, 0, 1) / "a.ckpt"
        path.parent.mkdir()
        torch.save(lightning(state, CONFIG, **more), path)
    with pytest.raises(SourceError, match=r"mp_rank_01.*mkdir.*refused"):
        open_source(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["common.pt", ".metadata"])
def test_an_evil_object_in_a_distributed_directory_is_refused(file, tmp_path):
    mark = tmp_path / "ran"
    shutil.copytree(GENUINE, tmp_path / "run")
    path = tmp_path / "run/checkpoints" / NAME / file
    if file == "common.pt":
        torch.save({"callbacks": Evil(mark), "hyper_parameters": CONFIG}, path)
    else:
        path.write_bytes(b"cposix\nmkdir\n(V" + str(mark).encode() + b"\ntR.")
    with pytest.raises(SourceError, match=r"mkdir.*refused"):
        open_source(tmp_path / "run")
    assert not mark.exists()


def test_the_command_exits_3(tmp_path):
    mark = tmp_path / "ran"
    torch.save(saved(callbacks=Evil(mark)), tmp_path / "last.ckpt")
    done = run("convert", tmp_path / "last.ckpt", "-o", tmp_path / "m.nemo")
    assert done.code == 3
    assert "refused before anything ran" in done.err
    assert not mark.exists()
    assert not list(tmp_path.glob("*m.nemo*"))


ORIGINAL = io.BytesIO()
torch.save(saved(), ORIGINAL)
COMMON = (GENUINE / "checkpoints" / NAME / "common.pt").read_bytes()


def opened(path):
    try:
        source = open_source(path)
        for name in source.weights.tensors:
            source.weights.read(name)
    except NemoAlignError:
        pass


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), value=st.integers(0, 255), length=st.integers(1, 8), cut=st.booleans())
def test_a_damaged_file_ends_in_a_sentence(at, value, length, cut, tmp_path):
    content = bytearray(ORIGINAL.getvalue())
    place = int(at * (len(content) - 1))
    content[place : place + length] = bytes([value] * length)
    path = Path(tmp_path) / "last.ckpt"
    path.write_bytes(content[:place] if cut else content)
    opened(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), value=st.integers(0, 255), length=st.integers(1, 8))
def test_a_damaged_configuration_ends_in_a_sentence(at, value, length, tmp_path):
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(GENUINE, run)
    content = bytearray(COMMON)
    place = int(at * (len(content) - 1))
    content[place : place + length] = bytes([value] * length)
    (run / "checkpoints" / NAME / "common.pt").write_bytes(content)
    opened(run)
