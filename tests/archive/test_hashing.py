from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nemoalign.archive.hashing import BackgroundHasher
from tests.archive.makers import raw_array


def test_hashes_are_those_of_the_bytes_in_the_order_given() -> None:
    arrays = [raw_array("float32", (n, 3), seed=n) for n in range(20)]
    with BackgroundHasher() as hasher:
        coming = [hasher.submit(array) for array in arrays]
    expected = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    assert [one.result() for one in coming] == expected


def test_only_two_arrays_wait_at_a_time() -> None:
    with BackgroundHasher() as hasher:
        first = hasher.submit(np.zeros(1 << 20, np.uint8))
        second = hasher.submit(np.zeros(1 << 20, np.uint8))
        assert first.done()
        hasher.submit(np.zeros(1, np.uint8))
        assert second.done()


def fail_inside() -> None:
    with BackgroundHasher() as hasher:
        hasher.submit(np.zeros(1 << 20, np.uint8))
        message = "stop"
        raise KeyError(message)


def test_a_failure_passes_through() -> None:
    with pytest.raises(KeyError, match="stop"):
        fail_inside()
