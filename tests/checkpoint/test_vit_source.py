"""Reading NeMo's ViTs: a file, a folder, ranks, both generations, and what contradicts itself."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_checkpoint, open_source
from nemoalign.checkpoint.vit_source import is_vit, with_shards
from nemoalign.errors import ContentError, ShapeError, SourceError
from tests.checkpoint.vits import (
    NEMO_VIT,
    TOLERANCE,
    expected_logits,
    fixture_config,
    fixture_state,
    logits_of,
    save_nemo,
    save_ranks,
)

QKV = "backbone.transformer.layers.{}.self_attention.query_key_value.{}"


def values_of(path) -> dict[str, np.ndarray]:
    source = open_checkpoint(path)
    return {name: np.asarray(source.weights.read(name)) for name in source.weights.tensors}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor.numpy()), name


def sliced(tensor: torch.Tensor, name: str, rank: int) -> torch.Tensor:
    """Return a rank's half of a tensor as megatron's two kinds of parallel layers cut it."""
    if name.endswith(("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")):
        return tensor.chunk(2, 1)[rank].clone()
    if ".query_key_value." in name or ".dense_h_to_4h." in name:
        return tensor.chunk(2, 0)[rank].clone()
    return tensor


def test_nemos_own_file_is_read_bit_for_bit():
    assert_same(values_of(NEMO_VIT), fixture_state())


def test_it_says_what_it_is():
    source = open_checkpoint(NEMO_VIT)
    assert source.parameters()["total"] == sum(t.numel() for t in fixture_state().values())
    words = "vit classifier of 10 classes, 2 layers of width 64, 16x16 images in patches of 4"
    assert words in source.describe()


def test_an_unpacked_archive_is_the_same(tmp_path):
    with tarfile.open(NEMO_VIT) as tar:
        tar.extractall(tmp_path, filter="data")
    assert open_checkpoint(tmp_path).kind == "nemo directory"
    assert_same(values_of(tmp_path), fixture_state())


def test_the_files_of_two_ranks_are_joined(tmp_path):
    state = fixture_state()
    files = {
        f"mp_rank_{rank:02d}/model_weights.ckpt": {n: sliced(t, n, rank) for n, t in state.items()}
        for rank in range(2)
    }
    path = save_ranks(tmp_path / "m.nemo", files, tensor_model_parallel_size=2)
    assert open_checkpoint(path).layout == "per-rank TP2"
    assert_same(values_of(path), state)


def test_the_legacy_packing_is_read_into_the_usual_one(tmp_path):
    """One file, and two ranks of it, give the logits NeMo computed with the usual packing."""
    state = fixture_state()
    for layer in range(2):
        for kind in ("weight", "bias"):
            name = QKV.format(layer, kind)
            heads = state[name].view(4, 3, 16, *state[name].shape[1:])
            state[name] = heads.transpose(0, 1).reshape(state[name].shape).clone()
    ranks = {}
    for rank in range(2):
        ranks[f"mp_rank_0{rank}/model_weights.ckpt"] = part = {}
        for name, tensor in state.items():
            if ".query_key_value." in name:
                three = tensor.view(3, 4, 16, *tensor.shape[1:])[:, 2 * rank : 2 * rank + 2]
                part[name] = three.reshape(-1, *tensor.shape[1:]).clone()
            else:
                part[name] = sliced(tensor, name, rank)
    one = save_nemo(tmp_path / "one.nemo", state, megatron_legacy=True)
    two = save_ranks(
        tmp_path / "two.nemo", ranks, megatron_legacy=True, tensor_model_parallel_size=2
    )
    for path in (one, two):
        assert_same(values_of(path), fixture_state())
        source = open_checkpoint(path)
        assert "megatron_legacy" in source.warnings[0]
        assert source.stored_config["megatron_legacy"] is False


def test_positions_kept_as_a_bare_parameter_are_read(tmp_path, quiet):
    state = fixture_state()
    state["backbone.position_embeddings"] = state.pop("backbone.position_embeddings.weight")
    path = save_nemo(tmp_path / "m.nemo", state, position_embedding_type="learned_parameters")
    assert_same(values_of(path), state)
    export(path, tmp_path / "hf", reporter=quiet)
    pixels, expected = expected_logits()
    assert np.abs(logits_of(tmp_path / "hf", pixels) - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"class_token_length": 8}, ShapeError, r"cls_token.*\[1, 1, 64\].*\[1, 8, 64\]"),
        ({"finetune": False}, ContentError, 'holds "head.weight"'),
        ({"img_h": 32}, ShapeError, "NeMo would resize the positions"),
        ({"num_layers": 3}, ContentError, "layers.2"),
        ({"num_layers": 10**9}, ContentError, "which no model has"),
        ({"num_attention_heads": 5}, ContentError, "5 heads do not divide"),
        ({"img_w": 15}, ContentError, "16x15"),
        ({"position_embedding_type": "rope"}, ContentError, "rope"),
        ({"layerscale": True}, ContentError, "post_attention_layerscale"),
        ({"class_token_length": 0}, ContentError, "class_token_length 0"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, changes, error, sentence):
    path = save_nemo(tmp_path / "m.nemo", fixture_state(), **changes)
    with pytest.raises(error, match=sentence):
        open_checkpoint(path)


def test_ranks_of_different_saves_are_refused(tmp_path):
    state = fixture_state()
    less = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    names = [f"mp_rank_0{rank}/model_weights.ckpt" for rank in range(2)]
    path = save_ranks(tmp_path / "m.nemo", dict(zip(names, (state, less), strict=True)))
    with pytest.raises(ContentError, match=r"ranks 0 and 1 holds \"head\.bias\""):
        open_checkpoint(path)


def test_a_missing_rank_is_named(tmp_path):
    path = save_ranks(tmp_path / "m.nemo", {"mp_rank_01/model_weights.ckpt": fixture_state()})
    with pytest.raises(SourceError, match="none of tensor-parallel rank 0"):
        open_checkpoint(path)


def test_pipeline_stages_are_refused(tmp_path):
    files = {f"tp_rank_00_pp_rank_00{p}/model_weights.ckpt": fixture_state() for p in range(2)}
    path = save_ranks(tmp_path / "m.nemo", files, pipeline_model_parallel_size=2)
    with pytest.raises(ContentError, match="2 pipeline stages"):
        open_checkpoint(path)


def test_an_archive_without_weights_is_refused(tmp_path):
    with pytest.raises(SourceError, match="has no weights"):
        open_checkpoint(save_ranks(tmp_path / "m.nemo", {}))


def test_a_tensor_stored_twice_is_refused():
    source = open_checkpoint(NEMO_VIT)
    shard = open_checkpoint(NEMO_VIT).weights
    shard.tensors = {**shard.tensors, "model.head.bias": shard.tensors["head.bias"]}
    with pytest.raises(ContentError, match=r'"head\.bias" is stored twice'):
        with_shards(replace(source), [shard])


def test_commands_for_language_models_say_that_it_is_none():
    with pytest.raises(ContentError, match="image classifier"):
        open_source(NEMO_VIT)


def test_a_vit_is_known_by_its_class_or_its_settings():
    config = fixture_config()
    assert is_vit(config)
    assert is_vit(config | {"target": None})
    assert not is_vit(config | {"target": "nemo.x.MegatronCLIPModel"})
    assert not is_vit({"num_layers": 2})
