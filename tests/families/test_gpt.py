"""The family of every other GPT: no counterpart in Hugging Face, and nothing it refuses to be."""

from __future__ import annotations

import pytest

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.families.gpt import FAMILY
from nemoalign.weights.rules import tensor_plans

ARCH = Architecture(num_layers=1, hidden_size=8, ffn_hidden_size=12, num_attention_heads=2)


def test_it_fits_any_architecture():
    assert FAMILY.differences(ARCH) == []


def test_it_has_no_hugging_face_tensors():
    assert not FAMILY.hf_architectures
    with pytest.raises(ContentError, match="cannot be written as Hugging Face"):
        tensor_plans(FAMILY, ARCH)
