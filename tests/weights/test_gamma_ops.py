"""Gamma and gamma - 1: exact where it can be, and known where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nemoalign.errors import ContentError
from nemoalign.weights.gamma_ops import CenterGamma
from tests.weights.test_ops import RAW_DTYPES, architecture

CENTERED = architecture(layernorm_zero_centered_gamma=True)
WHOLE = architecture()


def bf16(values) -> np.ndarray:
    return torch.tensor(values, dtype=torch.bfloat16).view(torch.uint16).numpy()


@given(arrays(np.uint16, 5))
def test_a_centered_archive_keeps_every_bit(bits):
    for array in (bits, bits.view(np.float16)):
        moved = CenterGamma().to_megatron([array], CENTERED)
        (back,) = CenterGamma().to_hf(moved, CENTERED, 0)
        assert back.tobytes() == moved.tobytes() == array.tobytes()


@given(st.lists(st.floats(0.5, 256, width=16), min_size=1), st.sampled_from(RAW_DTYPES))
def test_gamma_from_a_half_to_256_comes_back_exactly(values, dtype):
    gamma = bf16(values) if dtype is np.uint16 else np.array(values, dtype)
    assert CenterGamma().is_exact(gamma, WHOLE)
    (centered,) = CenterGamma().to_hf(gamma, WHOLE, 0)
    np.testing.assert_array_equal(CenterGamma().to_megatron([centered], WHOLE), gamma)


@given(st.lists(st.floats(-300, 300, width=32), min_size=1))
def test_bfloat16_is_rounded_as_torch_rounds(values):
    gamma = bf16(values)
    (centered,) = CenterGamma().to_hf(gamma, WHOLE, 0)
    theirs = (torch.from_numpy(gamma).view(torch.bfloat16).float() - 1).bfloat16()
    assert torch.equal(torch.from_numpy(centered).view(torch.bfloat16), theirs)


def test_what_gamma_minus_one_cannot_hold_is_known():
    assert not CenterGamma().is_exact(bf16([1.0, 0.1]), WHOLE)
    assert not CenterGamma().is_exact(bf16([-1.0078125]), WHOLE)
    assert CenterGamma().is_exact(bf16([0.1]), CENTERED)


def test_a_norm_of_another_kind_of_number_is_refused():
    with pytest.raises(ContentError, match="int64"):
        CenterGamma().to_hf(np.arange(3), WHOLE, 0)
