"""What a slot holds stays when the cache grows, and goes where its row goes."""

import pytest
import torch
from torch.testing import assert_close

from nemoalign.model import cache as module
from nemoalign.model.cache import CachedDocuments, KeyValueCache
from tests.model.test_attention import _attention

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


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 2, 2]], ids=["in a row", "one of them twice"])
def test_rows_that_go_on_and_prompts_attend_together_as_each_alone(window, rows) -> None:
    torch.manual_seed(0)
    lengths, core = [4, 6, 3], _attention(window and (window, 0))
    alone = [[torch.randn(length, 1, n, 8) for n in (4, 2, 2)] for length in lengths]
    cache = KeyValueCache(slots=3)
    cache.reserve(8)

    def attended(packed, padding=0):
        """Attend over (slot, start, end) of each row, and positions that belong to none."""
        told = [(slot, start, end - start) for slot, start, end in packed]
        documents = CachedDocuments.in_slots(cache, told, padding, torch.device("cpu"))
        parts = [[part[start:end] for part in alone[slot]] for slot, start, end in packed]
        rest = [torch.zeros(padding, 1, n, 8) for n in (4, 2, 2)]
        return core(
            *(torch.cat(part) for part in zip(*parts, rest, strict=True)),
            None,
            packed_seq_params=documents,
        )

    attended([(0, 0, 3), (1, 0, 5)])
    # The first two have one token each; the last is a prompt.
    packed = [(s, lengths[s] - 1 if s < 2 else 0, lengths[s]) for s in rows]
    found = attended(packed, padding=2)
    expected = torch.cat(
        [core(*alone[slot], None)[start:end] for slot, start, end in packed]
        + [torch.zeros(2, 1, 32)]
    )
    assert_close(found, expected)
