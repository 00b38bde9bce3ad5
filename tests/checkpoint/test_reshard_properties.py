"""Random models through random layouts: composition, and the way back, are exact."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.log import PlainReporter
from tests.checkpoint.rank_files import load_ranks

QUIET = PlainReporter(quiet=True)
HEAD_DIM, HIDDEN = 2, 8


@dataclass(frozen=True)
class Model:
    """A tiny GPT of any shape, and layouts it can be cut into."""

    config: dict
    layouts: list[dict] = field(default_factory=list)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor of one rank by its key, as megatron-core's modules have them."""
        c = self.config
        vocabulary = -(-c["nemoalign"]["vocab_size"] // 4) * 4
        heads, groups = c["num_attention_heads"], c["num_query_groups"]
        qkv, width = (heads + 2 * groups) * HEAD_DIM, c["ffn_hidden_size"]
        fc1 = width * (2 if "glu" in c["activation"] else 1)
        mlp = {"linear_fc1.weight": (fc1, HIDDEN), "linear_fc2.weight": (HIDDEN, width)}
        if c["bias"]:
            mlp |= {"linear_fc1.bias": (fc1,), "linear_fc2.bias": (HIDDEN,)}
        layer = {
            "self_attention.linear_qkv.layer_norm_weight": (HIDDEN,),
            "self_attention.linear_qkv.weight": (qkv, HIDDEN),
            "self_attention.linear_proj.weight": (HIDDEN, heads * HEAD_DIM),
        }
        if c["bias"]:
            layer |= {"self_attention.linear_qkv.bias": (qkv,)}
            layer |= {"self_attention.linear_proj.bias": (HIDDEN,)}
        experts = c.get("num_moe_experts")
        if experts:
            layer |= {"pre_mlp_layernorm.weight": (HIDDEN,), "mlp.router.weight": (experts, HIDDEN)}
            for expert in range(experts):
                prefix = f"mlp.experts.local_experts.{expert}."
                layer |= {prefix + name: shape for name, shape in mlp.items()}
        else:
            layer |= {"mlp.linear_fc1.layer_norm_weight": (HIDDEN,)}
            layer |= {f"mlp.{name}": shape for name, shape in mlp.items()}
        shapes = {"embedding.word_embeddings.weight": (vocabulary, HIDDEN)}
        if c["position_embedding_type"] == "learned_absolute":
            shapes["embedding.position_embeddings.weight"] = (c["encoder_seq_length"], HIDDEN)
        for number in range(c["num_layers"]):
            shapes |= {f"decoder.layers.{number}.{name}": s for name, s in layer.items()}
        shapes["decoder.final_layernorm.weight"] = (HIDDEN,)
        if not c["share_embeddings_and_output_weights"]:
            shapes["output_layer.weight"] = (vocabulary, HIDDEN)
        return {f"model.{name}": shape for name, shape in shapes.items()}

    def save(self, folder: Path, seed: int) -> dict[str, torch.Tensor]:
        """Write an unpacked archive of one rank with random weights, and return them."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: torch.randn(shape, generator=generator).bfloat16()
            for key, shape in self.shapes().items()
        }
        folder.mkdir()
        (folder / "model_config.yaml").write_text(yaml.safe_dump(self.config))
        torch.save(tensors, folder / "model_weights.ckpt")
        return tensors


@st.composite
def models(draw) -> Model:
    groups = draw(st.sampled_from([1, 2, 4, 8]))
    layers = draw(st.integers(1, 6))
    dense = draw(st.booleans())
    config = {
        "mcore_gpt": True,
        "transformer_engine": True,
        "num_layers": layers,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": 8 * draw(st.integers(1, 2)),
        "num_attention_heads": groups * draw(st.integers(1, 3)),
        "num_query_groups": groups,
        "kv_channels": HEAD_DIM,
        "encoder_seq_length": 6,
        "max_position_embeddings": 6,
        "normalization": "rmsnorm",
        "activation": draw(st.sampled_from(["gelu", "fast-swiglu", "squared-relu", "geglu"])),
        "bias": dense and draw(st.booleans()),
        "position_embedding_type": draw(st.sampled_from(["rope", "learned_absolute"])),
        "share_embeddings_and_output_weights": draw(st.booleans()),
        "make_vocab_size_divisible_by": 4,
        "nemoalign": {"vocab_size": draw(st.integers(3, 30))},
        "account_for_embedding_in_pipeline_split": draw(st.booleans()),
        "account_for_loss_in_pipeline_split": draw(st.booleans()),
    }
    if not dense:
        config["num_moe_experts"] = draw(st.integers(2, 3))
    counted = layers + sum(config[key] for key in config if key.startswith("account_for"))
    stages = [1, *(pp for pp in range(2, counted + 1) if counted % pp == 0)]
    layout = st.fixed_dictionaries(
        {
            "tp": st.sampled_from([tp for tp in (1, 2, 4, 8) if groups % tp == 0]),
            "pp": st.sampled_from(stages),
            "format": st.sampled_from(["dist", "ranks"]),
        }
    )
    return Model(config, [draw(layout) for _ in range(2)])


def go(source: Path, target: Path, **options) -> Path:
    reshard(source, target, ReshardOptions(**options), reporter=QUIET)
    return target


def whole(archive: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of an archive as torch reads it when one rank holds all."""
    path = go(archive, folder / f"{archive.stem}-{random.random()}.nemo", tp=1, format="ranks")
    return load_ranks(path)["model_weights.ckpt"]


@settings(max_examples=15, phases=[Phase.generate])
@given(models(), st.integers(0, 1 << 30))
def test_any_layout_and_back_and_by_way_of_another_is_the_same_model(model, seed):
    first, second = model.layouts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = model.save(folder / "a", seed)
        b = go(folder / "a", folder / "b.nemo", **first)
        direct = go(folder / "a", folder / "ac.nemo", **second)
        by_way = go(b, folder / "abc.nemo", **second)
        assert members(direct) == members(by_way)
        for archive in (b, direct, by_way):
            back = whole(archive, folder)
            assert back.keys() == tensors.keys()
            for key, tensor in tensors.items():
                table = "word_embeddings" in key or "output_layer" in key
                rows = model.config["nemoalign"]["vocab_size"] if table else len(tensor)
                assert torch.equal(back[key][:rows], tensor[:rows]), key
                assert not back[key][rows:].any()


def members(archive: Path) -> dict[str, dict[str, bytes]]:
    """Return the bytes of every tensor of every rank's file; nothing for a directory."""
    return {
        name: {key: tensor.view(torch.uint8).numpy().tobytes() for key, tensor in tensors.items()}
        for name, tensors in load_ranks(archive).items()
    }
