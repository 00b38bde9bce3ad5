"""Reading NeMo's ViTs: a file, a folder, ranks, checkpoints of a run, and what contradicts itself."""

import pickle
import tarfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.vit.ranks import with_shards
from nemoalign.cli import app
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.vits import (
    NEMO_VIT,
    TOLERANCE,
    assert_same,
    expected_logits,
    fixture_config,
    fixture_state,
    logits_of,
    save_nemo,
    save_ranks,
    sliced,
    values_of,
    with_extra_states,
)

QKV = "backbone.transformer.layers.{}.self_attention.query_key_value.{}"


def test_nemos_own_file_is_read_bit_for_bit():
    assert_same(values_of(NEMO_VIT), fixture_state())


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
        with_shards(source, [shard], (1, 1))


def lightning(state, config):
    """The dictionary that NeMo's trainer saves, its settings as the real omegaconf pickles them."""
    config = fixture_config() | config
    return {
        "epoch": 0,
        "global_step": 2,
        "pytorch-lightning_version": "2.0.7",
        "state_dict": OrderedDict(with_extra_states(state)),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "cfg",
        "hyper_parameters": {"cfg": OmegaConf.create(config)},
    }


def test_a_checkpoint_of_a_run_becomes_a_nemo_file(tmp_path):
    """Its settings lie in the file, or beside it as hparams.yaml."""
    saved = lightning(fixture_state(), {"restore_from_path": "${precision}"})
    torch.save(saved, tmp_path / "run.ckpt")
    with pytest.raises(pickle.UnpicklingError):  # it holds more than tensors
        torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert app.run(["convert", str(tmp_path / "run.ckpt"), "-o", str(tmp_path / "m.nemo")]) == 0
    assert_same(values_of(tmp_path / "m.nemo"), fixture_state())
    del saved["hyper_parameters"]
    torch.save(saved, tmp_path / "run.ckpt")
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump({"cfg": fixture_config()}))
    source = open_checkpoint(tmp_path / "run.ckpt")
    assert (source.kind, source.layout) == ("lightning", "single file")
    assert source.arch == open_checkpoint(NEMO_VIT).arch


def test_a_run_of_two_ranks_becomes_one_nemo_file(tmp_path):
    name = "megatron_vit_classify--val_loss=2.30-step=2-consumed_samples=4.0.ckpt"
    for rank in range(2):
        state = {key: sliced(tensor, key, rank) for key, tensor in fixture_state().items()}
        file = tmp_path / "run" / "checkpoints" / f"mp_rank_0{rank}" / name
        file.parent.mkdir(parents=True)
        torch.save(lightning(state, {"tensor_model_parallel_size": 2}), file)
    assert open_checkpoint(tmp_path / "run").layout == "per-rank TP2"
    command = ["convert", str(tmp_path / "run"), "-o", str(tmp_path / "m.nemo")]
    assert app.run(command) == 0
    written = open_checkpoint(tmp_path / "m.nemo")
    assert written.config["tensor_model_parallel_size"] == 1
    assert_same(values_of(tmp_path / "m.nemo"), fixture_state())
    assert app.run(["inspect", str(tmp_path / "run"), "--check"]) == 0


def test_interleaved_stages_are_refused(tmp_path):
    saved = lightning({}, {})
    saved |= {f"model{number}": with_extra_states(fixture_state()) for number in range(2)}
    torch.save(saved, tmp_path / "run.ckpt")
    with pytest.raises(ContentError, match="does not document"):
        open_checkpoint(tmp_path / "run.ckpt")
