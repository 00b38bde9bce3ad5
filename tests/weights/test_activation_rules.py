"""Which gelu an archive computes, and its name on the other side."""

from __future__ import annotations

import pytest

from nemoalign.errors import ContentError
from nemoalign.weights.activation_rules import Gelu
from tests.weights.test_ops import architecture

PLAIN = Gelu("act", {"gelu_new": ("gelu", True), "gelu": ("gelu", False)}, "gelu_new")
GATED = Gelu("act", {"gelu_pytorch_tanh": ("fast-geglu", True)}, "gelu_pytorch_tanh")


@pytest.mark.parametrize("name", PLAIN.values)
def test_a_name_comes_back(name):
    fields = PLAIN.to_nemo({"act": name})
    assert fields["bias_activation_fusion"] is False
    assert PLAIN.to_hf(architecture(**fields)) == {"act": name}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"openai_gelu": True}, "gelu_new"),
        ({"bias_activation_fusion": True}, "gelu_new"),
        ({"bias_activation_fusion": True, "bias": False}, "gelu"),
        ({"bias_activation_fusion": False}, "gelu"),
    ],
)
def test_the_fused_kernel_is_the_tanh_form_whatever_the_name_says(settings, name):
    assert PLAIN.to_hf(architecture(**settings)) == {"act": name}


@pytest.mark.parametrize("spelling", ["geglu", "fast-geglu"])
def test_both_spellings_of_a_gated_activation_are_known(spelling):
    arch = architecture(activation=spelling, openai_gelu=True)
    assert GATED.to_hf(arch) == {"act": "gelu_pytorch_tanh"}


def test_an_unknown_name_is_refused_on_either_side():
    with pytest.raises(ContentError, match='act "silu"'):
        PLAIN.to_nemo({"act": "silu"})
    with pytest.raises(ContentError, match=r"activation geglu \(exact\)"):
        GATED.to_hf(architecture(activation="geglu", bias_activation_fusion=False))
