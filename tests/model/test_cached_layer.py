"""A layer that continues rows says what megatron-core's layer says of the whole text."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from nemoalign.config.architecture import Architecture
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.cache import CachedDocuments, KeyValueCache
from nemoalign.model.forward import forward_last_logits, forward_logits
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.test_spec import COMMON, FAMILIES, family_canonical, family_model

ONE, LENGTH = ParallelLayout(1), 9


def continued(cache, tokens, first):
    """Return the pack of one row from its position ``first`` on."""
    positions = torch.arange(first, len(tokens))[None]
    rows = [(0, first, len(tokens) - first)]
    return SimpleNamespace(
        tokens=tokens[None, first:],
        position_ids=positions,
        last=torch.tensor([positions.shape[1] - 1]),
        cached=lambda padding: CachedDocuments.in_slots(cache, rows, padding, tokens.device),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_and_each_token_after_it_get_the_logits_of_the_whole_text(family) -> None:
    config, fields = FAMILIES[family]
    arch = Architecture(**{**COMMON, **fields})
    arrays = family_canonical(family_model(config).state_dict(), arch)
    tokens = torch.randint(0, tiny.VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with start(ONE, seed=1), torch.no_grad():
        (model,) = build_model(arch, tiny.VOCAB, ONE, precision="fp32", settings=ModelSettings())
        load_weights([model], tiny.Store(arrays), arch, ONE, tiny.VOCAB)
        model.eval()
        positions = torch.arange(LENGTH)[None]
        whole = forward_logits(model, SimpleNamespace(tokens=tokens[None], position_ids=positions))
        cache = KeyValueCache(slots=1)
        cache.reserve(LENGTH)
        ends = [(0, 6), (6, 7), (7, 8)]
        found = [
            forward_last_logits(model, continued(cache, tokens[:end], first)) for first, end in ends
        ]
    expected = torch.stack([whole[0, end - 1] for _, end in ends])
    assert_close(torch.cat(found)[:, 0], expected, rtol=1e-5, atol=1e-5)
