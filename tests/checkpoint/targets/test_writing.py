"""Targets appear whole or not at all, accounts balance, and what was written is read back."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.writing import (
    Account,
    WriteOptions,
    check_copies,
    check_target,
    prompt_template,
    report_of,
    staging,
    verify_written,
    write_report,
)
from nemoalign.errors import (
    ConfigError,
    ConflictError,
    ContentError,
    ResourceError,
    VerificationError,
)
from tests.checkpoint.models import FIXTURES


@pytest.mark.parametrize("changes", [{"dtype": "int4"}, {"verify": "sha256"}])
def test_options_nobody_offers_are_refused(changes):
    with pytest.raises(ConfigError, match="use one of"):
        WriteOptions(**changes)


def test_values_that_do_not_fit_name_their_tensor():
    array = np.array([70000.0], np.float32)
    with pytest.raises(ContentError, match=r'"norm": .*65504.*--dtype bf16'):
        WriteOptions(dtype="fp16").cast(array, "float32", "norm")


def test_a_file_appears_only_when_everything_went_well(tmp_path):
    target = tmp_path / "new" / "m.nemo"
    with staging(target, 10) as stage:
        stage.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["m.nemo"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, VerificationError("x")])
@pytest.mark.parametrize("is_folder", [False, True])
def test_interrupted_work_leaves_nothing(error, is_folder, tmp_path):
    target = tmp_path / "m"

    def work():
        with staging(target, 10) as stage:
            if is_folder:
                stage.mkdir()
                (stage / "part").touch()
            else:
                stage.touch()
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        work()
    assert not list(tmp_path.iterdir())


def test_an_overwritten_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "hf"
    target.mkdir()
    (target / "stale.safetensors").touch()
    with staging(target, 10) as stage:
        stage.mkdir()
        (stage / "config.json").touch()
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path):
    with (
        pytest.raises(ResourceError, match=r"needs 1000000\.00 GB"),
        staging(tmp_path / "m", 10**15),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"), staging(tmp_path / "file/m", 1):
        pass


def test_only_checkpoints_are_overwritten(tmp_path):
    options = WriteOptions(overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(ConflictError, match="holds no checkpoint"):
        check_target(tmp_path / "photos", tmp_path / "m", options)
    (tmp_path / "photos/config.json").touch()
    check_target(tmp_path / "photos", tmp_path / "m", options)
    check_target(tmp_path / "absent", tmp_path / "m", WriteOptions())


def test_the_source_is_never_overwritten_by_a_folder(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").touch()
    with pytest.raises(ConflictError, match="the source itself"):
        check_target(tmp_path / "hf", tmp_path / "hf/m.nemo", WriteOptions(overwrite=True))


def test_accounts_balance_only_when_every_tensor_was_read_once():
    account = Account(["a", "b"])
    account.record("a", {"x": (1,)}, "float32")
    with pytest.raises(VerificationError, match='"b" was read 0 times'):
        account.close()
    account.record("b", {"y": (1,)}, "float32")
    account.close()
    account.record("a", {"x": (1,)}, "float32")
    with pytest.raises(VerificationError, match='"a" was read 2 times'):
        account.close()
    stray = Account([])
    stray.record("z", {"x": (1,)}, "float32")
    with pytest.raises(VerificationError, match='"z"'):
        stray.close()


def test_one_flipped_bit_is_found_when_reading_back():
    arrays = {f"t{n}": np.arange(n, n + 50, dtype=np.uint8) for n in range(5)}
    sums = {name: zlib.crc32(array.tobytes()) for name, array in arrays.items()}
    read: list[int] = []
    verify_written(sums, arrays.__getitem__, read.append)
    assert sum(read) == 250
    arrays["t3"] = arrays["t3"] ^ np.uint8(1)
    with pytest.raises(VerificationError, match="t3, read back"):
        verify_written(sums, arrays.__getitem__, read.append)


class Changed:
    """The embedding of a source with one value changed."""

    def __init__(self, source, row):
        name = "embedding.word_embeddings.weight"
        self.array = source.weights.read(name).copy()
        self.array[row] += 1
        self.tensors = {name: TensorInfo(self.array.shape, "float32")}

    def read(self, name, index=()):
        return self.array[index]


def test_a_tied_copy_must_repeat_the_embedding_in_every_real_row():
    source = open_source(FIXTURES / "gpt_tp2pp2_ranks.nemo")
    check_copies(source)
    check_copies(replace(source, copies=Changed(source, row=519)))
    with pytest.raises(ContentError, match="stores its output layer with other values"):
        check_copies(replace(source, copies=Changed(source, row=518)))


def test_a_report_says_what_became_of_what(tmp_path):
    source = open_source(FIXTURES / "chatsft_tp1_file.nemo")
    report = report_of(source, tmp_path / "out", WriteOptions(dtype="bf16"), 0.0)
    assert report["source"]["layout"] == "single file"
    assert report["target"]["dtype"] == "bf16"
    assert report["prompt_template"] == "{input} {output}"
    report["tensors"] = [{"source": "a", "target": {"b": [1]}}, {"source": "é", "target": {}}]
    write_report(tmp_path / "conversion.json", report)
    assert json.loads((tmp_path / "conversion.json").read_text()) == report


def test_settings_without_data_have_no_prompt_template():
    assert prompt_template({}) is None
    assert prompt_template({"data": {"train_ds": None}}) is None
