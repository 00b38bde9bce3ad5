import gzip
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoder import SftSettings
from nemoalign.data.files import open_rows
from nemoalign.errors import DataError, ResourceError, SourceError
from tests.data.tiny import CharTokenizer, write_jsonl

ROWS = [{"input": f"q{n}", "output": f"a{n}"} for n in range(5)]
PACKS = [
    {
        "input_ids": [11, 12, 13, 14, 15],
        "loss_mask": [False, True, True, True, False],
        "seq_start_id": [0, 3],
    },
    {"input_ids": [16, 17], "loss_mask": [1, 0], "seq_start_id": [0]},
]


def texts(path):
    data = SftDataset([(path, 1.0)], CharTokenizer(), SftSettings(max_seq_length=32))
    return [CharTokenizer().decode(data[n].tokens[:-1]) for n in range(len(data))]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    plain = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    zipped = tmp_path / "rows.of-any-name"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert texts(plain) == texts(zipped) == texts(tmp_path / "rows.parquet")
    assert open_rows(zipped).where(4) == "rows.of-any-name line 5"


def test_sequences_of_nemos_packs_come_apart_with_their_masks_put_right(tmp_path):
    path = tmp_path / "packed.npy"
    np.save(path, np.array(PACKS, dtype=object), allow_pickle=True)
    file = open_rows(path)
    assert [file.record(n) for n in range(len(file))] == [
        {"input_ids": [11, 12, 13], "loss_mask": [0, 0, 1]},
        {"input_ids": [14, 15], "loss_mask": [0, 1]},
        {"input_ids": [16, 17], "loss_mask": [0, 1]},
    ]
    assert file.where(1) == "packed.npy pack 0 at 3"
    data = SftDataset([(path, 1.0)], CharTokenizer(), SftSettings(max_seq_length=32))
    assert [len(data[n].tokens) for n in range(3)] == [3, 2, 2]


@pytest.mark.parametrize(
    ("packs", "words"),
    [
        ([{"input_ids": [1]}], "lacks one of"),
        ([PACKS[0] | {"seq_start_id": [3, 0]}], "contradicts itself"),
        ([PACKS[0] | {"loss_mask": [True]}], "contradicts itself"),
        ([], "empty"),
    ],
)
def test_an_array_that_nemo_did_not_pack_is_said(tmp_path, packs, words):
    path = tmp_path / "packed.npy"
    np.save(path, np.array(packs, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=words):
        open_rows(path)


def test_an_array_of_numbers_or_an_evil_one_is_refused(tmp_path):
    np.save(tmp_path / "n.npy", np.zeros(3))
    with pytest.raises(DataError, match="not of packs"):
        open_rows(tmp_path / "n.npy")

    class Evil:
        def __reduce__(self):
            return sys.exit, (3,)

    np.save(tmp_path / "e.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"names 'sys\.exit'"):
        open_rows(tmp_path / "e.npy")


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="cannot be read"):
        open_rows(tmp_path / "none.jsonl")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(DataError, match="damaged"):
        open_rows(cut)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "nemoalign.data.parquet", None)
    with pytest.raises(ResourceError, match=r"nemoalign\[parquet\]"):
        open_rows(tmp_path / "rows.parquet")
