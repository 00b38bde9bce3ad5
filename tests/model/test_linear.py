"""A layer computes the same with and without gradients, however few rows it gets."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional
from torch.testing import assert_close

from nemoalign.model.linear import ColumnLinear, RowLinear, product
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

CONFIG = TransformerConfig(
    num_layers=1, hidden_size=32, num_attention_heads=4, use_cpu_initialization=True
)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("shape", [(96, 32), (32, 96)], ids=["wide", "deep"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_few_rows_is_the_product(rows, shape, dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 1, shape[1], dtype=dtype), torch.randn(shape, dtype=dtype)
    found = product(hidden, weight)
    assert found.is_contiguous(), "a sum over tp works in place"
    assert_close(found, functional.linear(hidden, weight))


@pytest.mark.parametrize("kind", [ColumnLinear, RowLinear])
@pytest.mark.parametrize("adds_later", [True, False])
def test_a_layer_without_gradients_is_the_layer_with_them(kind, adds_later) -> None:
    own = {"gather_output": False} if kind is ColumnLinear else {"input_is_parallel": True}
    with start(ParallelLayout(1), seed=1):
        layer = kind(
            32, 48, config=CONFIG, init_method=torch.nn.init.normal_, bias=True,
            skip_bias_add=adds_later, **own,
        )  # fmt: skip
        layer.bias.data.normal_()
        hidden = torch.randn(3, 1, 32)
        expected, bias = layer(hidden)
        with torch.no_grad():
            found, same_bias = layer(hidden)
    assert_close(found, expected)
    assert same_bias is bias
    assert (bias is layer.bias) == adds_later
