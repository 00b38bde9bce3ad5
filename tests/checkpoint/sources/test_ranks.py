"""Ranks of NeMo's own GPT and of megatron-core's become the whole model they were cut from."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.canonical import Found, find_tensors
from nemoalign.checkpoint.sources.ranks import join_ranks, parallel_sizes, rank_of
from nemoalign.checkpoint.sources.source import EMBEDDING
from nemoalign.checkpoint.targets.writing import check_copies
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.ranked import (
    assert_same,
    legacy,
    nested,
    rank_folder,
    save_unpacked,
    settings,
    shard_of,
    stage_of,
    whole_model,
)
from tests.checkpoint.sources.test_stores import Arrays


def ranks_of(model, stages, tp, *, gated, tied, rename):
    files = {}
    for pp, layers in enumerate(stages):
        stage = stage_of(model, layers, first=pp == 0, last=pp == len(stages) - 1)
        for rank in range(tp):
            shard = shard_of(stage, tp, rank, gated=gated)
            name = f"{rank_folder(rank, pp, len(stages))}/model_weights.ckpt"
            files[name] = rename(shard)
    return files


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("stages", "tp"), [([(0, 1, 2)], 2), ([(0,), (1, 2)], 2), ([(0,), (1, 2)], 1)]
)
def test_ranks_of_nemos_own_gpt(stages, tp, gated, tied, tmp_path):
    """Gate and up as two matrices, uneven stages, a copy of tied embeddings on the last stage."""
    model = whole_model(3, gated=gated, tied=tied)

    def rename(shard):
        return {f"model.{k}": t for k, t in legacy(shard, gated=gated, tied=tied).items()}

    files = ranks_of(model, stages, tp, gated=gated, tied=tied, rename=rename)
    folder = save_unpacked(tmp_path / "m", settings(3, gated=gated, tied=tied), files)
    source = open_source(folder)
    assert source.layout == f"per-rank TP{tp} PP{len(stages)}, legacy names"
    assert source.config["mcore_gpt"] is True
    assert_same(source.weights, model)
    assert bool(source.copies.tensors) == (tied and len(stages) > 1)
    check_copies(source)


@pytest.mark.parametrize("gated", [True, False])
def test_ranks_of_megatron_core_with_uneven_stages(gated, tmp_path):
    model = whole_model(4, gated=gated, tied=False)
    stages = [(0,), (1, 2, 3), ()]
    files = ranks_of(
        model,
        stages,
        2,
        gated=gated,
        tied=False,
        rename=lambda shard: {f"model.{k}": t for k, t in shard.items()},
    )
    folder = save_unpacked(tmp_path / "m", settings(4, gated=gated, tied=False), files)
    source = open_source(folder)
    assert source.layout == "per-rank TP2 PP3"
    assert_same(source.weights, model)


@pytest.mark.parametrize("gated", [True, False])
def test_nested_dictionaries(gated, tmp_path):
    model = whole_model(2, gated=gated, tied=True)
    tree = nested(legacy(model, gated=gated, tied=True))
    config = settings(2, gated=gated, tied=True)
    for name, content in (("a", tree), ("b", {"model": tree})):
        folder = save_unpacked(tmp_path / name, config, {"model_weights.ckpt": content})
        assert_same(open_source(folder).weights, model)


@pytest.mark.parametrize("prefix", ["model.language_model.encoder.", "model.decoder."])
def test_layers_of_transformer_engine_in_ranks(prefix, tmp_path):
    """Its TransformerLayer fuses norms into the layers after them, under names of its own."""
    model = whole_model(2, gated=True, tied=True)
    names = {
        "self_attention.linear_qkv.": "self_attention.layernorm_qkv.",
        "self_attention.linear_proj.": "self_attention.proj.",
        "mlp.linear_fc1.layer_norm_": "layernorm_mlp.layer_norm_",
        "mlp.linear_fc1.": "layernorm_mlp.fc1_",
        "mlp.linear_fc2.": "layernorm_mlp.fc2_",
        "decoder.": prefix,
    }

    def rename(shard):
        renamed = {}
        for name, tensor in shard.items():
            for new, old in names.items():
                name = name.replace(new, old, 1)
            if name.startswith("embedding."):
                name = prefix.rpartition("encoder.")[0].rpartition("decoder.")[0] + name
            renamed[name] = tensor
        return renamed

    files = ranks_of(model, [(0, 1)], 2, gated=True, tied=True, rename=rename)
    config = settings(2, gated=True, tied=True)
    assert_same(open_source(save_unpacked(tmp_path / "m", config, files)).weights, model)


def test_a_copy_of_tied_embeddings_that_differs_is_reported(tmp_path):
    model = whole_model(2, gated=False, tied=True)
    stages = [(0,), (1,)]
    files = ranks_of(
        model,
        stages,
        1,
        gated=False,
        tied=True,
        rename=lambda shard: legacy(shard, gated=False, tied=True),
    )
    files["tp_rank_00_pp_rank_001/model_weights.ckpt"]["word_embeddings.weight"] += 1
    folder = save_unpacked(tmp_path / "m", settings(2, gated=False, tied=True), files)
    with pytest.raises(ContentError, match="other values"):
        check_copies(open_source(folder))


def test_a_tensor_on_two_stages_is_refused(tmp_path):
    model = whole_model(2, gated=False, tied=False)
    files = ranks_of(model, [(0,), (1,)], 1, gated=False, tied=False, rename=dict)
    extra = "embedding.position_embeddings.weight"
    files["tp_rank_00_pp_rank_001/model_weights.ckpt"][extra] = model[extra]
    folder = save_unpacked(tmp_path / "m", settings(2, gated=False, tied=False), files)
    with pytest.raises(ContentError, match=f"two pipeline stages hold .{extra}"):
        open_source(folder)


def test_two_saves_in_one_folder_are_refused(tmp_path):
    model = whole_model(1, gated=False, tied=False)
    files = {
        f"{name}/model_weights.ckpt": model for name in ("mp_rank_00", "tp_rank_00_pp_rank_000")
    }
    folder = save_unpacked(tmp_path / "m", settings(1, gated=False, tied=False), files)
    with pytest.raises(ContentError, match="the same rank of two saves"):
        open_source(folder)


def test_what_only_the_old_model_has_is_refused(tmp_path):
    model = whole_model(1, gated=False, tied=False)
    state = legacy(model, gated=False, tied=False)
    config = settings(1, gated=False, tied=False, megatron_legacy=True)
    with pytest.raises(ContentError, match="megatron_legacy True"):
        open_source(save_unpacked(tmp_path / "a", config, {"model_weights.ckpt": state}))
    state["language_model.encoder.layers.0.post_attention_normformer_norm.weight"] = torch.ones(8)
    config = settings(1, gated=False, tied=False)
    with pytest.raises(ContentError, match="normformer"):
        open_source(save_unpacked(tmp_path / "b", config, {"model_weights.ckpt": state}))


@hypothesis.settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 2), min_size=4, max_size=4).filter(sum),
    grid=st.sampled_from([(1, 4), (2, 2), (4, 1)]),
    tp=st.sampled_from([1, 2, 4]),
    gated=st.booleans(),
    tied=st.booleans(),
    is_legacy=st.booleans(),
)
def test_any_stages_of_any_ranks_join_to_the_model(sizes, grid, tp, gated, tied, is_legacy):
    """``grid`` is pipeline ranks and virtual stages of each; stages may be of any size, or empty."""
    (pp, _), layers = grid, sum(sizes)
    model = whole_model(layers, gated=gated, tied=tied)
    ranks: dict[tuple[int, int], list[Found]] = {}
    for number, size in enumerate(sizes):
        first = sum(sizes[:number])
        held = range(first, first + size)
        stage = stage_of(model, held, first=number == 0, last=number == len(sizes) - 1)
        for rank in range(tp):
            shard = shard_of(stage, tp, rank, gated=gated)
            shard = legacy(shard, gated=gated, tied=tied) if is_legacy else shard
            store = Arrays(**{name: tensor.numpy() for name, tensor in shard.items()})
            ranks.setdefault((number % pp, rank), []).append(find_tensors(store, "m"))
    arch = Architecture.from_nemo(settings(layers, gated=gated, tied=tied))
    joined = join_ranks(ranks, arch, "m", "ranks")
    assert_same(joined.model, model)
    assert joined.is_legacy == is_legacy
    if tied:
        assert_same(joined.copies, {EMBEDDING: model[EMBEDDING]})


def test_an_adapter_of_nemos_own_gpt(tmp_path):
    prefix = "model.language_model.encoder.layers.{}.self_attention.adapter_layer.lora_kqv_adapter."
    state = {
        prefix.format(layer) + name: torch.randn(shape)
        for layer in (0, 1)
        for name, shape in (("linear_in.weight", (2, 8)), ("linear_out.weight", (24, 2)))
    }
    peft = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 2}}
    config = settings(2, gated=False, tied=True, peft=peft)
    source = open_source(save_unpacked(tmp_path / "m", config, {"model_weights.ckpt": state}))
    assert source.is_adapter_only
    for key, tensor in state.items():
        name = key.replace("model.language_model.encoder", "decoder")
        assert torch.equal(torch.from_numpy(source.adapter.weights.read(name).copy()), tensor)


def test_a_partial_adapter_of_uneven_stages_is_refused(tmp_path):
    prefix = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter."
    state = {
        f"{prefix}linear_in.weight": torch.zeros(2, 8),
        f"{prefix}linear_out.weight": torch.zeros(24, 2),
    }
    files = {f"tp_rank_00_pp_rank_{pp:03d}/model_weights.ckpt": state for pp in range(2)}
    folder = save_unpacked(tmp_path / "m", settings(5, gated=False, tied=True), files)
    with pytest.raises(ContentError, match="unclear which ones"):
        open_source(folder)


def test_folders_of_ranks():
    assert rank_of("mp_rank_03") == (0, 3)
    assert rank_of("tp_rank_01_pp_rank_012") == (12, 1)
    assert rank_of("mp_rank_03_fsdp_shard_00000") is None
    assert rank_of("weights") is None


def test_sizes_follow_from_the_ranks_that_are_there():
    assert parallel_sizes({(p, t): None for p in range(3) for t in range(2)}, "m") == (3, 2)
    with pytest.raises(SourceError, match="tensor-parallel rank 0, pipeline rank 1: at TP2 PP2"):
        parallel_sizes({(0, 0): None, (0, 1): None, (1, 1): None}, "m")
