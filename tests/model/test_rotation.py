"""Turning queries and keys is megatron-core's, whatever pairs channels make."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from torch.testing import assert_close

from nemoalign.model.rotation import Rotation


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [16, 8], ids=["all channels", "half of them"])
def test_heads_are_turned_as_megatron_core_turns_them(interleaved, turned) -> None:
    torch.manual_seed(0)
    half = torch.randn(5, 1, 1, turned // 2)
    angles = half.repeat_interleave(2, -1) if interleaved else torch.cat((half, half), -1)
    heads = torch.randn(5, 1, 3, 16)
    config = SimpleNamespace(
        rotary_interleaved=interleaved, apply_rope_fusion=False, multi_latent_attention=False
    )
    expected = apply_rotary_pos_emb(
        heads, angles, config=config, cu_seqlens=None, cp_group=object()
    )
    found = Rotation.of(angles, heads.dtype, interleaved=interleaved)(heads)
    assert_close(found, expected)
