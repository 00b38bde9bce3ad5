import pytest
import torch

from nemoalign.errors import ConfigError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.test_layouts import LAYOUTS


def _arch(**changes):
    return tiny.architecture(tiny.llama(layers=4).config, **changes)


def _shapes(layout, arch):
    with start(layout, seed=1):
        chunks = build_model(arch, tiny.VOCAB, layout, precision="bf16", settings=ModelSettings())
        return [
            {name: (tuple(p.shape), p.dtype) for name, p in chunk.named_parameters()}
            for chunk in chunks
        ]


@pytest.mark.dist
def test_each_stage_holds_its_layers_and_ends(two_ranks):
    for name, chunks_per_stage in (("pp2", 1), ("pp2 vp2", 2)):
        first, last = two_ranks.run(_shapes, LAYOUTS[name], _arch())
        assert len(first) == len(last) == chunks_per_stage
        assert "embedding.word_embeddings.weight" in first[0]
        assert "output_layer.weight" in last[-1]
        assert "output_layer.weight" not in first[-1]
        layers = {key.split(".")[2] for chunk in first for key in chunk if "layers" in key}
        assert layers == ({"0", "1"} if chunks_per_stage == 1 else {"0"})


@pytest.mark.dist
def test_tensor_parallel_ranks_hold_padded_halves_in_the_models_type(two_ranks):
    for (chunk,) in two_ranks.run(_shapes, LAYOUTS["tp2"], _arch()):
        assert chunk["embedding.word_embeddings.weight"] == ((384, 64), torch.bfloat16)
        prefix = "decoder.layers.0."
        assert chunk[f"{prefix}self_attention.linear_qkv.weight"][0] == (64, 64)
        assert chunk[f"{prefix}self_attention.linear_proj.weight"][0] == (64, 32)
        assert chunk[f"{prefix}mlp.linear_fc1.weight"][0] == (96, 64)
        assert chunk[f"{prefix}mlp.linear_fc2.weight"][0] == (64, 48)
        assert {dtype for _, dtype in chunk.values()} == {torch.bfloat16}


def test_learned_positions_are_of_the_models_type_and_length():
    arch = _arch(position_embedding_type="learned_absolute", encoder_seq_length=48)
    (chunk,) = _shapes(ParallelLayout(1), arch)
    assert chunk["embedding.position_embeddings.weight"] == ((48, 64), torch.bfloat16)


def test_a_layout_that_cannot_hold_the_model_is_refused():
    layout = ParallelLayout(1)
    with start(layout, seed=1), pytest.raises(ConfigError, match="use --tp 1 or 2"):
        build_model(
            _arch(),
            tiny.VOCAB,
            ParallelLayout(4, tp=4),
            precision="fp32",
            settings=ModelSettings(),
        )
