"""What a slot holds stays when the cache grows, and goes where its row goes."""

import pytest
import torch

from nemoalign.model import cache as module
from nemoalign.model.cache import KeyValueCache

LIKE = torch.zeros(1, 3, 8)  # 3 groups of width 8


def test_growing_keeps_what_is_there_and_moving_copies_a_row() -> None:
    cache = KeyValueCache(slots=2)
    cache.reserve(10)
    assert cache.capacity == 64
    layer = cache.of_layer(4, LIKE)
    assert layer.shape == (2, 2, 3, 64, 8)
    layer[:, 1] = torch.randn(layer[:, 1].shape)
    before = layer[:, 1].clone()
    cache.reserve(65)
    grown = cache.of_layer(4, LIKE)
    assert grown.shape == (2, 2, 3, 128, 8)
    assert torch.equal(grown[:, 1, :, :64], before)
    assert not grown[:, :, :, 64:].any(), "what nobody wrote must be finite"
    cache.move(1, 0)
    assert torch.equal(grown[:, 0], grown[:, 1])


@pytest.mark.parametrize(("lacks", "kept"), [(True, torch.float32), (False, torch.bfloat16)])
def test_a_cpu_without_bf16_products_keeps_what_it_would_widen_at_every_token(
    monkeypatch, lacks, kept
) -> None:
    monkeypatch.setattr(module, "lacks_bf16_products", lambda: lacks)
    cache = KeyValueCache(slots=1)
    cache.reserve(1)
    assert cache.of_layer(1, LIKE.bfloat16()).dtype is kept
