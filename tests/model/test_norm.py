from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from nemoalign.model.norm import Norm

HIDDEN = 64


def _norm(kind, *, zero_centered=False, dtype=torch.float32, sequence_parallel=False):
    config = SimpleNamespace(
        normalization=kind,
        layernorm_zero_centered_gamma=zero_centered,
        params_dtype=dtype,
        sequence_parallel=sequence_parallel,
    )
    norm = Norm(config, HIDDEN, eps=1e-5)
    torch.manual_seed(1)
    for parameter in norm.parameters():
        parameter.data += torch.randn(HIDDEN).to(dtype) * 0.1
    return norm


def _expected(norm, x, kind, zero_centered):
    gamma = norm.weight.double() + (1 if zero_centered else 0)
    x = x.double()
    if kind == "RMSNorm":
        return gamma * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return functional.layer_norm(x, (HIDDEN,), gamma, norm.bias.double(), 1e-5)


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])
def test_norm_is_the_formula_rounded_once(kind, zero_centered, dtype, error):
    norm = _norm(kind, zero_centered=zero_centered, dtype=dtype)
    x = (torch.randn(5, 3, HIDDEN) * 3 + 1).to(dtype)
    ours, expected = norm(x), _expected(norm, x, kind, zero_centered)
    assert ours.dtype is dtype
    # A large constant cancels in the mean, so a little is allowed in absolute terms too.
    torch.testing.assert_close(ours.double(), expected, rtol=error * 1.5, atol=error)


def test_parameters_are_tagged_for_the_sum_over_tp():
    assert all(p.sequence_parallel for p in _norm("LayerNorm", sequence_parallel=True).parameters())
    assert not _norm("RMSNorm").weight.sequence_parallel
    assert _norm("RMSNorm").bias is None
