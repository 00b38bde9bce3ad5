"""One model in every layout reads as the same tensors."""

from __future__ import annotations

import io
import shutil
import tarfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.layouts import open_weights
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.mcore import HF, MCORE, as_unpacked_nemo
from tests.checkpoint.models import FIXTURES, assert_same_tensors

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def unpacked(archive, folder):
    with tarfile.open(FIXTURES / archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def rank_model(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)


@pytest.mark.parametrize(
    "name", ["llama_tp2_ranks.nemo", "llama_tp1_zarr.nemo", "chatsft_tp1_file.nemo"]
)
def test_rank_files_join_to_the_tensors_of_the_distributed_archive(name):
    ours, reference = open_source(FIXTURES / name), open_source(FIXTURES / "llama.nemo")
    assert ours.weights.tensors == reference.weights.tensors
    for tensor in reference.weights.tensors:
        np.testing.assert_array_equal(ours.weights.read(tensor), reference.weights.read(tensor))


def test_weights_in_the_torch_format_of_before_1_6_are_the_same(tmp_path):
    folder = unpacked("chatsft_tp1_file.nemo", tmp_path / "m")
    path = folder / "model_weights.ckpt"
    state = torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    ours, reference = open_source(folder), open_source(FIXTURES / "chatsft_tp1_file.nemo")
    assert ours.weights.tensors == reference.weights.tensors
    for tensor in reference.weights.tensors:
        np.testing.assert_array_equal(ours.weights.read(tensor), reference.weights.read(tensor))


def test_pipeline_stages_number_their_layers_from_zero():
    """Stage-local layers, a tied copy on the last stage, biases and learned positions."""
    ranks = open_source(FIXTURES / "gpt_tp2pp2_ranks.nemo")
    dist = open_source(FIXTURES / "gpt_tp1_dist.nemo")
    assert ranks.layout == "per-rank TP2 PP2"
    assert list(ranks.copies.tensors) == ["embedding.word_embeddings.weight"]
    for name in dist.weights.tensors:
        np.testing.assert_array_equal(ranks.weights.read(name)[:519], dist.weights.read(name)[:519])


def test_a_slice_of_a_joined_tensor_is_the_slice_of_the_whole():
    weights = open_source(FIXTURES / "llama_tp2_ranks.nemo").weights
    name = "decoder.layers.2.mlp.linear_fc1.weight"
    index = (slice(100, 150), slice(3, 9))
    np.testing.assert_array_equal(weights.read(name, index), weights.read(name)[index])


def test_a_layer_of_a_stacked_tensor_is_not_copied():
    weights = open_source(FIXTURES / "llama.nemo").weights
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    assert not weights.read(name).flags.owndata
    assert weights.read(name, (slice(2, 5),)).shape == (3, 64)


def test_a_missing_rank_is_named(tmp_path):
    folder = unpacked("gpt_tp2pp2_ranks.nemo", tmp_path / "m")
    shutil.rmtree(folder / "tp_rank_01_pp_rank_001")
    with pytest.raises(SourceError, match="tensor-parallel rank 1, pipeline rank 1: at TP2 PP2"):
        open_source(folder)


def test_replicated_tensors_that_differ_between_ranks_are_corruption(tmp_path):
    folder = unpacked("llama_tp2_ranks.nemo", tmp_path / "m")
    path = folder / "mp_rank_01/model_weights.ckpt"
    state = torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    state["model.decoder.final_layernorm.weight"][0] += 1
    torch.save(state, path)
    source = open_source(folder)
    with pytest.raises(ContentError, match="rank 1 holds other values than rank 0"):
        source.weights.read("decoder.final_layernorm.weight")


def test_ranks_of_different_saves_are_refused(tmp_path):
    folder = unpacked("llama_tp2_ranks.nemo", tmp_path / "m")
    path = folder / "mp_rank_01/model_weights.ckpt"
    state = torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    del state["model.output_layer.weight"]
    torch.save(state, path)
    with pytest.raises(ContentError, match=r"rank 1 lacks .output_layer\.weight"):
        open_source(folder)


def test_an_unfinished_distributed_save_is_refused(tmp_path):
    folder = unpacked("llama.nemo", tmp_path / "m")
    (folder / "model_weights/metadata.json").unlink()
    with pytest.raises(SourceError, match="never completed"):
        open_source(folder)


def test_a_configuration_without_weights_is_refused(tmp_path):
    (tmp_path / "model_config.yaml").write_text("num_layers: 1")
    arch = Architecture(num_layers=1, hidden_size=4, ffn_hidden_size=4, num_attention_heads=1)
    with pytest.raises(SourceError, match=r"no weights .* holds model_config.yaml"):
        open_weights(open_container(tmp_path), arch)


def test_adapter_layers_of_later_stages_are_numbered_on(tmp_path):
    """An adapter alone names no base layers, so stages are equal parts of the model."""
    arch = Architecture(num_layers=4, hidden_size=4, ffn_hidden_size=4, num_attention_heads=1)
    adapter = "self_attention.adapter_layer.lora_dense_attention_adapter"
    for tp in range(2):
        for stage in range(2):
            path = tmp_path / f"tp_rank_{tp:02d}_pp_rank_{stage:03d}/model_weights.ckpt"
            prefix = f"model.decoder.layers.1.{adapter}"
            value = 10 * stage + tp
            rank_model(
                path,
                {
                    f"{prefix}.linear_in.weight": torch.full((2, 2), value),
                    f"{prefix}.linear_out.weight": torch.full((2, 2), value),
                },
            )
    weights = open_weights(open_container(tmp_path), arch).adapter
    names = [f"decoder.layers.{layer}.{adapter}.linear_in.weight" for layer in (1, 3)]
    assert [name for name in weights.tensors if "linear_in" in name] == names
    # linear_in of a row-parallel layer is cut by columns, linear_out by rows.
    assert weights.read(names[1]).tolist() == [[10, 10, 11, 11]] * 2
    out = weights.read(names[1].replace("linear_in", "linear_out"))
    assert out.tolist() == [[10, 10], [10, 10], [11, 11], [11, 11]]


@pytest.mark.parametrize("variant", ["stacked", "layers", "singleton"])
def test_every_key_layout_of_megatron_core_is_the_model_of_transformers(variant, tmp_path, quiet):
    """No layer axis, gate and up apart: told by the keys alone."""
    folder = as_unpacked_nemo(variant, tmp_path / "m")
    export(folder, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", HF)


def test_experts_under_keys_of_their_own_are_numbered_globally(tmp_path):
    folder = as_unpacked_nemo("experts", tmp_path / "m", num_moe_experts=2)
    weights = open_source(folder).weights
    for layer, expert in ((0, 1), (1, 0)):
        prefix = f"decoder.layers.{layer}.mlp.experts"
        keys = [f"model.{prefix}.experts.{expert}.linear_fc1.weight_{half}" for half in "wv"]
        halves = {key: torch.zeros(24, 16) for key in keys}
        dcp.load(halves, checkpoint_id=MCORE / "experts", no_dist=True)
        read = weights.read(f"{prefix}.local_experts.{expert}.linear_fc1.weight")
        np.testing.assert_array_equal(read, np.concatenate([halves[key].numpy() for key in keys]))


def test_norms_stacked_under_the_names_of_early_local_layers_are_found(tmp_path, quiet):
    """What NeMo 1.21 wrote without Transformer Engine."""
    folder = as_unpacked_nemo("stacked", tmp_path / "m")
    store = DistStore(open_container(folder / "model_weights"))
    renamed = {}
    for key in store.tensors:
        name = key.replace("module.", "model.")
        name = name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
        name = name.replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
        renamed[name] = torch.from_numpy(store.read(key).copy())
    shutil.rmtree(folder / "model_weights")
    dcp.save(renamed, checkpoint_id=folder / "model_weights", no_dist=True)
    shutil.copy(MCORE / "stacked" / "metadata.json", folder / "model_weights")
    export(folder, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", HF)


def test_gate_without_up_is_refused(tmp_path):
    folder = as_unpacked_nemo("singleton", tmp_path / "m")
    index = folder / "model_weights" / ".metadata"
    index.write_bytes(index.read_bytes().replace(b"linear_fc1.weight_v", b"linear_fc1.weight_x"))
    with pytest.raises(ContentError, match=r"linear_fc1\.weight_"):
        open_source(folder)
