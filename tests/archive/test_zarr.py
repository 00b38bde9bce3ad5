"""Archives that megatron-core 0.9.0 and zarr 2 wrote, compared with what their own readers gave."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.archive.files import Container, open_container
from nemoalign.archive.zarr import ZarrStore
from nemoalign.errors import ContentError, NemoAlignError, SourceError
from tests.archive.makers import FIXTURES

ARCHIVES = ["zarr_tp1_bfloat16", "zarr_tp2_bfloat16", "zarr_tp2_float32"]
FC1 = "model.decoder.layers.mlp.linear_fc1.weight"
FORMS = ["plain", "fortran", "folders", "one chunk", "scalar", "empty", "bool", "int8", "float16"]
FORMS += ["zlib", "gzip"]


def weights(archive: str) -> Container:
    return open_container(FIXTURES / f"{archive}.nemo").under("model_weights")


def variant(name: str) -> ZarrStore:
    """Open one array of those that zarr itself wrote."""
    whole = open_container(FIXTURES / "zarr_variants.tar")
    members = {f"x/{n}": region for n, region in whole.under(name).members.items()}
    return ZarrStore(Container(whole.path, whole.kind, members))


@pytest.mark.parametrize("archive", ARCHIVES)
def test_every_tensor_is_what_megatron_core_loads(archive: str) -> None:
    store = ZarrStore(weights(archive))
    with np.load(FIXTURES / f"{archive}.npz") as expected:
        assert sorted(store.tensors) == sorted(expected.files)
        for name in expected.files:
            assert store.tensors[name].dtype == archive.rpartition("_")[2]
            assert np.array_equal(store.read(name), expected[name])
            assert store.read(name).dtype == expected[name].dtype


def test_a_slice_inside_one_chunk_is_a_view_of_the_file() -> None:
    store = ZarrStore(weights("zarr_tp2_float32"))
    with np.load(FIXTURES / "zarr_tp2_float32.npz") as expected:
        whole = expected[FC1]
    found = store.read(FC1, (slice(1, 2), slice(13, 20), slice(2, 9)))
    assert np.array_equal(found, whole[1:2, 13:20, 2:9])
    assert not found.flags.owndata
    assert not found.flags.writeable
    assert store.read(FC1).flags.owndata


@given(st.data(), st.sampled_from(FORMS))
def test_any_slice_of_any_form_is_numpys_slice(data: st.DataObject, form: str) -> None:
    with np.load(FIXTURES / "zarr_variants.npz") as arrays:
        expected = arrays[form]
    cut = st.builds(slice, st.none() | st.integers(0, 8), st.none() | st.integers(0, 8))
    index = tuple(data.draw(cut) for _ in range(data.draw(st.integers(0, expected.ndim))))
    found = variant(form).read("x", index)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected[index])
    assert found.size == 0 or not found.flags.writeable


def test_extra_state_is_bytes_beside_the_tensors() -> None:
    store = ZarrStore(weights("zarr_tp2_bfloat16"))
    assert store.bytes_keys[:2] == [
        f"model.decoder.layers.mlp.linear_fc1._extra_state/shard_{n}_2" for n in (0, 1)
    ]
    with torch.serialization.safe_globals([io.BytesIO]):
        saved = torch.load(io.BytesIO(store.read_bytes(store.bytes_keys[0], 1 << 16)))
    assert isinstance(saved, io.BytesIO)
    with pytest.raises(SourceError, match="at most 10"):
        store.read_bytes(store.bytes_keys[0], 10)
    assert store.common == {}


def unpacked(folder: Path) -> Path:
    with tarfile.open(FIXTURES / "zarr_tp2_bfloat16.nemo") as tar:
        tar.extractall(folder, filter="data")
    return folder / "model_weights"


def describe(folder: Path, **changes: object) -> ZarrStore:
    """Open the checkpoint with another ``.zarray`` of one tensor."""
    file = unpacked(folder) / FC1 / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return ZarrStore(open_container(file.parents[1]))


@pytest.mark.parametrize("spelled", ["<V2", "|V2", "<u2"])
def test_bfloat16_is_read_however_its_bits_are_called(spelled: str, tmp_path: Path) -> None:
    store = describe(tmp_path, dtype=spelled)
    assert store.tensors[FC1].dtype == "bfloat16"
    with np.load(FIXTURES / "zarr_tp2_bfloat16.npz") as expected:
        assert np.array_equal(store.read(FC1), expected[FC1])


def test_a_missing_chunk_is_never_taken_for_zeros(tmp_path: Path) -> None:
    """The writer keeps every chunk, so one that is not there was lost, whatever a fill value says."""
    (unpacked(tmp_path) / FC1 / "1.2.0").unlink()
    message = r"linear_fc1\.weight lacks the chunk at \(1, 2, 0\) \(1 of 8 are missing\)"
    for fill in (None, 0.0):
        file = tmp_path / "model_weights" / FC1 / ".zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fill_value": fill}))
        with pytest.raises(SourceError, match=message):
            ZarrStore(open_container(tmp_path / "model_weights"))


def test_a_lost_description_is_noticed(tmp_path: Path) -> None:
    (unpacked(tmp_path) / FC1 / ".zarray").unlink()
    with pytest.raises(SourceError, match=r"has data of .*linear_fc1\.weight' but no \.zarray"):
        ZarrStore(open_container(tmp_path / "model_weights"))


def test_locks_of_the_writer_are_no_data(tmp_path: Path) -> None:
    locks = unpacked(tmp_path) / f"{FC1}.sync"
    locks.mkdir()
    (locks / "0.0.0").touch()
    assert f"{FC1}.sync" not in ZarrStore(open_container(tmp_path / "model_weights")).tensors


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"shape": [2, 48, 17]}, SourceError, "lacks the chunk"),
        ({"shape": [2, 24, 16]}, SourceError, "outside of its shape"),
        ({"shape": [1 << 40, 1 << 40]}, SourceError, "impossible shape"),
        ({"shape": [1 << 40], "chunks": [1]}, SourceError, "no chunk of it"),
        ({"shape": [1 << 40, 48, 16]}, SourceError, "lacks the chunk"),
        ({"shape": None}, SourceError, "states no shape"),
        ({"chunks": [1, 12]}, SourceError, "no zarr array"),
        ({"chunks": [1, 12, 0]}, SourceError, "no zarr array"),
        ({"chunks": [1, 12, 32]}, SourceError, "has 384 bytes where 768"),
        ({"chunks": [1, 12, True]}, SourceError, "length of an axis"),
        ({"dtype": ">f4"}, ContentError, "'>f4'"),
        ({"dtype": "|O"}, ContentError, "element type"),
        ({"dtype": [["a", "<f4"]]}, ContentError, "element type"),
        ({"dtype": "<f4"}, SourceError, "has 384 bytes where 768"),
        ({"order": "K"}, SourceError, "no zarr array"),
        ({"zarr_format": 3}, SourceError, "no zarr array"),
        ({"filters": [{"id": "delta"}]}, ContentError, "filters"),
        ({"compressor": {"id": "pickle"}}, ContentError, "'pickle'"),
        ({"compressor": {"id": "zlib"}, "chunks": [1, 12, 1 << 33]}, SourceError, "compressed"),
        ({"dimension_separator": "/"}, SourceError, "no chunk of it"),
    ],
)
def test_a_description_that_contradicts_the_files_is_refused(
    changes: dict[str, object], error: type[Exception], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        describe(tmp_path, **changes)


@pytest.mark.parametrize("name", ["0.0.0x", "01.0.0", "0.0", "-1.0.0", "٣.0.0", "extra/0.0.0"])
def test_a_file_that_is_no_chunk_is_refused(name: str, tmp_path: Path) -> None:
    stray = unpacked(tmp_path) / FC1 / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(bytes(384))
    with pytest.raises(SourceError, match=r"no chunk of it|outside of its shape"):
        ZarrStore(open_container(tmp_path / "model_weights"))


VARIANTS = (FIXTURES / "zarr_variants.tar").read_bytes()


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, len(VARIANTS) - 1), st.binary(min_size=1, max_size=4)), max_size=6
    )
)
def test_a_damaged_archive_gives_values_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(VARIANTS)
    for at, data in changes:
        content[at : at + len(data)] = data
    path = tmp_path_factory.mktemp("damaged") / "x.tar"
    path.write_bytes(content)
    with contextlib.suppress(NemoAlignError):
        whole = open_container(path)
        for form in FORMS:
            with contextlib.suppress(NemoAlignError):
                members = {f"x/{n}": region for n, region in whole.under(form).members.items()}
                store = ZarrStore(Container(path, "tar", members))
                for name in store.tensors:
                    store.read(name)
