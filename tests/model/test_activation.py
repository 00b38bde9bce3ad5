import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.model.activation import Activation, activation_function

TANH = {"approximate": "tanh"}


def _arch(activation, **fields):
    sizes = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1}
    return Architecture(**sizes, activation=activation, **fields)


def _module(arch):
    class Config:
        activation_func = staticmethod(activation_function(arch))
        gated_linear_unit = arch.gated

    return Activation(Config())


CASES = [
    ("gelu", {}, lambda x: functional.gelu(x, **TANH)),
    ("gelu", {"bias": False}, functional.gelu),
    ("gelu", {"bias_activation_fusion": False}, functional.gelu),
    ("approx-gelu", {}, lambda x: x * torch.sigmoid(1.702 * x)),
    ("squared-relu", {}, lambda x: functional.relu(x) ** 2),
    ("squared-relu", {"openai_gelu": True}, lambda x: functional.gelu(x, **TANH)),
    ("geglu", {"openai_gelu": True}, lambda x: functional.gelu(x, **TANH)),
    ("fast-geglu", {"bias_activation_fusion": False}, functional.gelu),
    ("fast-geglu", {"bias": False}, lambda x: functional.gelu(x, **TANH)),
    ("fast-swiglu", {}, functional.silu),
    ("reglu", {}, functional.relu),
]


@pytest.mark.parametrize(("name", "fields", "function"), CASES)
def test_names_mean_what_nemo_means(name, fields, function):
    arch = _arch(name, **fields)
    torch.manual_seed(0)
    ours = torch.randn(3, 2, 16, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    gate, up = theirs.chunk(2, -1)
    expected = function(gate) * up if arch.gated else function(theirs)
    result = _module(arch)(ours)
    weights = torch.randn_like(expected)
    assert_close(result, expected, rtol=0, atol=1e-6)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)


def test_the_gradient_of_swiglu_is_the_derivative():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_module(_arch("swiglu")), (x,))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ContentError, match=r"activation is 'mish'; known are gelu, approx-gelu"):
        activation_function(_arch("mish"))
