"""What an opened checkpoint says of itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.source import AdapterInfo
from nemoalign.checkpoint.sources.stores import PlacedStore
from tests.checkpoint.models import FIXTURES


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "llama.nemo",
            "NeMo archive (torch_dist), llama model, 4 layers of width 64, 214 thousand",
        ),
        ("hf_llama", "Hugging Face model (safetensors), llama model"),
        ("llhf_dist_dir", "unpacked NeMo archive (torch_dist)"),
        ("gpt_tp2pp2_ranks.nemo", "NeMo archive (per-rank TP2 PP2), gpt model"),
        ("lora_tp1.nemo", "LoRA adapter, 4 layers of width 64, 26.6 thousand parameters, float32"),
    ],
)
def test_one_line_says_what_it_is(name, words):
    assert words in open_source(FIXTURES / name).describe()


def test_large_models_are_counted_in_billions():
    source = open_source(FIXTURES / "llama.nemo")
    assert "68.7 billion parameters" in replace(source, vocab_size=1 << 19 << 10).describe()


def test_dtypes_come_with_the_most_frequent_first():
    mixed = SimpleNamespace(
        tensors={
            "decoder.final_layernorm.weight": TensorInfo((64,), "float32"),
            "embedding.word_embeddings.weight": TensorInfo((512, 64), "bfloat16"),
        }
    )
    source = replace(open_source(FIXTURES / "llama.nemo"), weights=mixed)
    assert source.dtypes == ("bfloat16", "float32")


def test_an_adapters_strength_is_alpha_over_rank():
    adapter = AdapterInfo(dim=8, alpha=16.0, targets=(), base=None, weights=PlacedStore({}))
    assert adapter.scale == 2.0
