"""Archives written by NeMo itself, and the logits NeMo computed from them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.log import PlainReporter
from nemoalign.model.adapters import WithAdapters
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits
from nemoalign.model.load import load_weights
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

FIXTURES = Path(__file__).parents[1] / "fixtures"
ONE = ParallelLayout(1)
TOLERANCE = 2e-5
BF16_TOLERANCE = 0.06


def _difference(layout, source_name, logits_name, adapter_name=None):
    """Return the largest difference to NeMo's logits over this rank's shard of the vocabulary."""
    source = open_source(FIXTURES / source_name)
    stored = np.load(FIXTURES / logits_name)
    tokens = torch.from_numpy(stored["input_ids"]).long()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    weights, lora = source.weights, None
    if adapter_name:
        adapter = open_source(FIXTURES / adapter_name).adapter
        weights = WithAdapters(weights, adapter.weights)
        lora = LoraSettings(
            adapter_dim=adapter.dim, alpha=adapter.alpha, target_modules=adapter.targets
        )
    with start(layout, seed=1), torch.no_grad():
        (model,) = build_model(
            source.arch,
            source.vocab_size,
            layout,
            precision="fp32",
            settings=ModelSettings(),
            lora=lora,
        )
        load_weights([model], weights, source.arch, layout, source.vocab_size)
        batch = SimpleNamespace(tokens=tokens, labels=tokens, position_ids=positions)
        ours = forward_logits(model.eval(), batch).numpy()
    columns = slice(
        torch.distributed.get_rank() * ours.shape[-1] if torch.distributed.is_initialized() else 0,
        source.vocab_size,
    )
    expected = stored["logits"][..., columns][..., : ours.shape[-1]]
    return np.abs(ours[..., : expected.shape[-1]] - expected).max()


@pytest.mark.parametrize(
    ("source", "logits", "adapter"),
    [
        ("gpt_tp1_dist.nemo", "gpt_logits.npz", None),
        ("gpt_tp2pp2_ranks.nemo", "gpt_logits.npz", None),
        ("llama_tp2_ranks.nemo", "llama_logits.npz", None),
        ("llhf_dist_dir", "llhf_logits.npz", None),
        ("llama_tp2_ranks.nemo", "lora_tp1_logits.npz", "lora_tp1.nemo"),
        ("plckpt_dist", "plckpt_logits.npz", None),
        ("legacyllama_tp1_file.nemo", "legacyllama_logits.npz", None),
    ],
)
def test_logits_are_those_nemo_computed(source, logits, adapter):
    assert _difference(ONE, source, logits, adapter) < TOLERANCE


def test_a_gpt_from_before_megatron_core_gives_the_logits_nemo_computed_in_bf16(tmp_path):
    original = FIXTURES / "legacygptO2_tp1_file.nemo"
    upgraded = tmp_path / "upgraded.nemo"
    convert(original, upgraded, reporter=PlainReporter(quiet=True))
    for source in (original, upgraded):
        assert _difference(ONE, source, "legacygptO2_logits.npz") < BF16_TOLERANCE


@pytest.mark.dist
def test_logits_at_tp2_are_those_nemo_computed(two_ranks):
    layout = ParallelLayout(2, tp=2)
    for names in (
        ("gpt_tp1_dist.nemo", "gpt_logits.npz"),
        ("llama_tp2_ranks.nemo", "lora_tp1_logits.npz", "lora_tp1.nemo"),
    ):
        assert max(two_ranks.run(_difference, layout, *names)) < TOLERANCE
