"""Which bytes a check reads, and what it knows of them."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib

import pytest
import torch

from nemoalign.archive.files import Region, open_container
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.pieces import Piece, pieces_of, read_manifest, read_piece
from nemoalign.errors import SourceError
from tests.checkpoint.damage import unpack, unpacked
from tests.checkpoint.models import FIXTURES


@pytest.mark.parametrize(
    ("dtype", "values"), [("float32", 5), ("bfloat16", 5), ("float16", 5), ("float64", 5)]
)
def test_a_piece_gives_its_sum_and_its_values_that_are_no_numbers(dtype, values, tmp_path):
    tensor = torch.randn(300_000, dtype=torch.float64).to(getattr(torch, dtype))
    tensor[:3], tensor[-2:] = float("nan"), float("inf")
    data = tensor.view(torch.uint8).numpy().tobytes()
    (tmp_path / "t").write_bytes(b"xyz" + data)
    region = Region(tmp_path / "t", 3, len(data))
    piece = Piece(file="t", what="w", region=region, crc=None, dtype=dtype)
    reading = read_piece(piece)
    assert (reading.crc, reading.not_finite) == (zlib.crc32(data), values)


def test_the_sums_of_a_torch_file_are_those_the_zip_library_reads(tmp_path):
    folder = unpacked("chatsft_tp1_file.nemo", tmp_path)
    pieces = list(pieces_of(open_container(folder)))
    with zipfile.ZipFile(folder / "model_weights.ckpt") as archive:
        assert sorted(p.crc for p in pieces) == sorted(i.CRC for i in archive.infolist())
    assert {p.file for p in pieces} == {"model_weights.ckpt"}
    assert all(read_piece(piece).crc == piece.crc for piece in pieces)


def test_each_chunk_is_named_by_its_file_and_layer(tmp_path):
    pieces = list(pieces_of(open_container(unpacked("llama.nemo", tmp_path))))
    files = {piece.file for piece in pieces}
    assert {"model_weights/__0_0.distcp", "model_weights/__0_1.distcp"} <= files
    named = {piece.what for piece in pieces if piece.dtype}
    assert "decoder.layers.3.mlp.linear_fc2.weight" in named


def test_a_manifest_that_lists_more_than_there_is_is_refused(tmp_path, hf_llama, quiet):
    convert(hf_llama, tmp_path / "m.nemo", reporter=quiet)
    folder = unpack(tmp_path / "m.nemo", tmp_path / "m")
    file = folder / "nemoalign_manifest.json"
    content = json.loads(file.read_text())
    content["chunks"]["model.more"] = [{"offsets": [0], "crc32": "00000000"}]
    file.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=r'lacks "more"'):
        list(pieces_of(open_container(folder)))


@pytest.mark.parametrize("text", ["[", '{"chunks": [1]}', '{"chunks": {"a": [{"offsets": 1}]}}'])
def test_a_damaged_manifest_is_refused(text, tmp_path):
    shutil.copytree(FIXTURES / "llhf_dist_dir", tmp_path / "m")
    (tmp_path / "m/nemoalign_manifest.json").write_text(text)
    with pytest.raises(SourceError, match=r"nemoalign_manifest\.json is damaged"):
        read_manifest(open_container(tmp_path / "m"))
