from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.archive.dtypes import (
    DTYPES,
    by_safetensors,
    by_torch_storage,
    cast,
    dtype,
)
from nemoalign.errors import ContentError
from tests.archive.makers import bits, raw_array, to_torch

FLOATS = ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint8"]


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_as_wide_as_torch_says(name: str) -> None:
    kind = dtype(name)
    assert kind.itemsize == kind.numpy.itemsize == getattr(torch, name).itemsize


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_found_by_its_name_in_each_format(name: str) -> None:
    assert by_safetensors(dtype(name).safetensors).name == name
    if not name.startswith("float8"):
        assert by_torch_storage(dtype(name).torch_storage).name == name
        assert getattr(torch, dtype(name).torch_storage).dtype == getattr(torch, name)


@pytest.mark.parametrize("lookup", [dtype, by_safetensors, by_torch_storage])
def test_an_unknown_type_is_named_in_the_error(lookup: object) -> None:
    with pytest.raises(ContentError, match="complex64"):
        lookup("complex64")


def same_numbers(ours: np.ndarray, name: str, theirs: torch.Tensor) -> bool:
    """Compare bit for bit, except that any NaN equals any NaN."""
    mine = to_torch(ours, name).double()
    theirs = theirs.double()
    return bool(torch.equal(mine.isnan(), theirs.isnan())) and bits(mine.nan_to_num(7.0)) == bits(
        theirs.nan_to_num(7.0)
    )


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_float32_rounds_to_bfloat16_as_torch_does(patterns: list[int]) -> None:
    array = np.array(patterns, np.uint32).view(np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    assert same_numbers(cast(array, "float32", "bfloat16"), "bfloat16", expected)


def test_rounding_to_bfloat16_works_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemoalign.archive.dtypes.BLOCK", 100)
    array = raw_array("float32", (37, 11))
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16)
    assert same_numbers(cast(array, "float32", "bfloat16"), "bfloat16", expected)


@pytest.mark.parametrize(
    ("source", "count", "numpy"),
    [
        ("bfloat16", 1 << 16, np.uint16),
        ("float16", 1 << 16, np.uint16),
        ("float8_e4m3fn", 256, np.uint8),
        ("float8_e5m2", 256, np.uint8),
    ],
)
@pytest.mark.parametrize("target", ["float32", "float64", "bfloat16"])
def test_every_short_float_converts_as_in_torch(
    source: str, count: int, numpy: type, target: str
) -> None:
    array = np.arange(count).astype(numpy).view(dtype(source).numpy)
    expected = to_torch(array, source).to(getattr(torch, target))
    assert same_numbers(cast(array, source, target), target, expected)


@pytest.mark.parametrize("source", FLOATS[:4])
def test_floats_convert_to_float16_as_in_torch(source: str) -> None:
    numbers = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensor = (numbers * 100).to(getattr(torch, source))
    array = np.frombuffer(bits(tensor), dtype(source).numpy)
    assert same_numbers(cast(array, source, "float16"), "float16", tensor.half())


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", ["int64", "float32", "bfloat16"])
def test_integers_convert_as_in_torch(source: str, target: str) -> None:
    array = np.array([0, 1, 2, 100, 127], dtype(source).numpy)
    expected = torch.from_numpy(array.copy()).to(getattr(torch, target))
    assert same_numbers(cast(array, source, target), target, expected)


@pytest.mark.parametrize("name", DTYPES)
def test_casting_to_the_same_type_returns_the_array_itself(name: str) -> None:
    array = raw_array(name, (3, 2))
    assert cast(array, name, name) is array


def test_a_value_that_does_not_fit_float16_is_an_error_with_the_value() -> None:
    array = np.array([1.0, 70000.0, np.inf], np.float32)
    with pytest.raises(ContentError, match=r"1 of 3 float32 values .* 70000"):
        cast(array, "float32", "float16")


def test_infinity_stays_infinity_in_float16() -> None:
    assert np.isinf(cast(np.array([-np.inf], np.float32), "float32", "float16")).all()


def test_casting_to_float8_is_refused() -> None:
    with pytest.raises(ContentError, match="scaling"):
        cast(np.zeros(3, np.float32), "float32", "float8_e4m3fn")
