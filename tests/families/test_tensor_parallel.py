"""Two tensor-parallel ranks of every family together compute what transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import GemmaConfig, NemotronConfig, Qwen3Config, Starcoder2Config

from nemoalign.parallel.layout import ParallelLayout
from tests.checkpoint.models import logits_of
from tests.families import checks, test_gpt2

CONFIGS = {
    "qwen3": Qwen3Config(**checks.SIZES, head_dim=16),
    "gemma": GemmaConfig(**checks.SIZES, head_dim=16),
    "nemotron": NemotronConfig(**checks.SIZES),
    "starcoder2": Starcoder2Config(**checks.SIZES, sliding_window=6),
    "gpt2": test_gpt2.config(),
}


@pytest.mark.dist
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_at_tp2(config, two_ranks, tmp_path):
    hf = checks.save_model(tmp_path / "hf", config)
    nemo, ids = checks.assert_round_trip(hf, tmp_path), checks.tokens()
    columns = two_ranks.run(checks.megatron_logits, nemo, ids, ParallelLayout(2, tp=2))
    ours = np.concatenate(columns, axis=-1)[..., : checks.VOCAB]
    assert np.abs(ours - logits_of(hf, ids)).max() < checks.TOLERANCE
