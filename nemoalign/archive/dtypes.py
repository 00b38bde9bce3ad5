"""Tensor element types as the files spell them, held in numpy without torch.

numpy has neither bfloat16 nor float8, so their bits travel as uint16 and uint8 ("raw storage").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemoalign.errors import ContentError

Array = np.ndarray[Any, np.dtype[Any]]
"""An array of raw storage: any shape, any of the types below."""

BLOCK = 1 << 20
"""Elements rounded at a time, so that the temporaries of a cast stay in the cache."""


@dataclass(frozen=True)
class DType:
    """One element type: torch's name, its raw numpy storage, and its name in each format."""

    name: str
    numpy: np.dtype[Any]
    itemsize: int
    torch_storage: str
    """Typed storage class in torch.save files; ``UntypedStorage`` where torch has no typed one."""
    safetensors: str


def _row(name: str, numpy: type[np.generic], torch_storage: str, safetensors: str) -> DType:
    raw: np.dtype[Any] = np.dtype(numpy).newbyteorder("<")
    return DType(name, raw, raw.itemsize, torch_storage, safetensors)


DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        _row("float64", np.float64, "DoubleStorage", "F64"),
        _row("float32", np.float32, "FloatStorage", "F32"),
        _row("bfloat16", np.uint16, "BFloat16Storage", "BF16"),
        _row("float16", np.float16, "HalfStorage", "F16"),
        _row("float8_e4m3fn", np.uint8, "UntypedStorage", "F8_E4M3"),
        _row("float8_e5m2", np.uint8, "UntypedStorage", "F8_E5M2"),
        _row("int64", np.int64, "LongStorage", "I64"),
        _row("int32", np.int32, "IntStorage", "I32"),
        _row("int16", np.int16, "ShortStorage", "I16"),
        _row("int8", np.int8, "CharStorage", "I8"),
        _row("uint8", np.uint8, "ByteStorage", "U8"),
        _row("bool", np.bool_, "BoolStorage", "BOOL"),
    )
}

_BY_TORCH_STORAGE = {
    row.torch_storage: row for row in DTYPES.values() if row.torch_storage != "UntypedStorage"
}
_BY_SAFETENSORS = {row.safetensors: row for row in DTYPES.values()}


def dtype(name: str) -> DType:
    """Return the element type torch calls ``name``; raises ContentError for any other name."""
    return _known(DTYPES, name)


def by_torch_storage(name: str) -> DType:
    """Return the element type of a typed torch storage such as ``BFloat16Storage``."""
    return _known(_BY_TORCH_STORAGE, name)


def by_safetensors(name: str) -> DType:
    """Return the element type that a safetensors header calls ``name``, such as ``BF16``."""
    return _known(_BY_SAFETENSORS, name)


def _known(table: dict[str, DType], name: str) -> DType:
    if name not in table:
        raise ContentError(
            f"A tensor has element type {name[:60]!r}, which no checkpoint of a language model "
            f"handled here uses. Known are: {', '.join(table)}."
        )
    return table[name]


def cast(array: Array, source: str, target: str) -> Array:
    """Return ``array`` of type ``source`` as raw storage of ``target``, rounded to nearest even.

    The very same array comes back when nothing changes. Raises ContentError when a finite value
    does not fit the target, or when the target is a float8 type.
    """
    dtype(source)
    if source == target:
        return array
    numbers = _numbers(array, source)
    if target == "bfloat16":
        return _round_to_bfloat16(numbers)
    if target.startswith("float8"):
        raise ContentError(
            f"Casting {source} to {target} needs scaling factors that a plain cast does not have. "
            "Use bf16, fp16 or fp32."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        result = numbers.astype(dtype(target).numpy)
    if target == "float16":
        _check_range(numbers, result, source)
    return result


def _numbers(array: Array, source: str) -> Array:
    if source == "bfloat16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if source.startswith("float8"):
        return _FLOAT8[source]()[array]
    return array


def _round_to_bfloat16(numbers: Array) -> Array:
    result = np.empty(numbers.shape, np.uint16)
    flat_in, flat_out = numbers.reshape(-1), result.reshape(-1)
    for start in range(0, flat_in.size, BLOCK):
        with np.errstate(over="ignore", invalid="ignore"):
            bits = flat_in[start : start + BLOCK].astype(np.float32).view(np.uint32)
        # Adding 0x7fff plus the last kept bit carries into that bit exactly when rounding is up.
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> 16
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        # The carry could turn a NaN into infinity, so NaNs keep their sign and become quiet.
        quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
        flat_out[start : start + BLOCK] = np.where(is_nan, quiet, rounded)
    return result


def _check_range(numbers: Array, result: Array, source: str) -> None:
    overflowed = int(np.count_nonzero(np.isinf(result) & np.isfinite(numbers)))
    if overflowed:
        largest = float(np.abs(numbers[np.isfinite(numbers)]).max())
        raise ContentError(
            f"{overflowed} of {numbers.size} {source} values do not fit float16 (largest "
            f"magnitude {largest:g}, limit 65504). Use --dtype bf16 or keep."
        )


def _float8_table(exponent_bits: int, mantissa_bits: int, *, has_infinity: bool) -> Array:
    bits = np.arange(256)
    mantissa = (bits & ((1 << mantissa_bits) - 1)).astype(np.float32)
    exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    scale = np.exp2((np.maximum(exponent, 1) - bias).astype(np.float32))
    fraction = mantissa / np.float32(1 << mantissa_bits)
    table = np.where(exponent == 0, fraction, 1 + fraction) * scale
    top = exponent == (1 << exponent_bits) - 1
    if has_infinity:
        table = np.where(top, np.where(mantissa == 0, np.inf, np.nan), table)
    else:
        table = np.where((bits & 0x7F) == 0x7F, np.nan, table)
    return np.where(bits >= 128, -table, table).astype(np.float32)


_FLOAT8: dict[str, Callable[[], Array]] = {
    "float8_e4m3fn": lambda: _float8_table(4, 3, has_infinity=False),
    "float8_e5m2": lambda: _float8_table(5, 2, has_infinity=True),
}
