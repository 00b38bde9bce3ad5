"""Checkpoints of a run, in every layout NeMo trained in, are the model they were cut from."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch.distributed import checkpoint as dcp

from nemoalign.checkpoint.check import check
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.inspect import inspect_source
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.lightning import open_run
from nemoalign.checkpoint.sources.lightning_files import saved_at
from nemoalign.checkpoint.targets.writing import check_copies
from nemoalign.errors import ContentError, SourceError
from nemoalign.log import PlainReporter
from tests.checkpoint.models import FIXTURES, logits_of
from tests.checkpoint.ranked import (
    assert_same,
    legacy,
    nested,
    rank_folder,
    settings,
    shard_of,
    stage_of,
    whole_model,
)

NAME = "megatron_gpt--val_loss=6.21-step=5-consumed_samples=20.0"
GENUINE = FIXTURES / "plckpt_dist"


def lightning(state, config=None, **more):
    """The dictionary that Trainer.save_checkpoint writes."""
    hparams = {} if config is None else {"hparams_name": "cfg", "hyper_parameters": config}
    loops = {"fit_loop": {"epoch_progress": {"total": {"completed": 0}}}}
    return {
        "epoch": 0,
        "global_step": 5,
        "pytorch-lightning_version": "2.0.7",
        "state_dict": state,
        "loops": loops,
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        **hparams,
        **more,
    }


def run_of(folder, files, *, config=None):
    """A run's folder with ``checkpoints/`` and, given a configuration, ``hparams.yaml``."""
    for name, content in files.items():
        path = folder / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    if config is not None:
        (folder / "hparams.yaml").write_text(yaml.safe_dump({"cfg": config}))
    return folder


def as_saved(shard, *, gated=True, tied=True):
    return {f"model.{key}": t for key, t in legacy(shard, gated=gated, tied=tied).items()}


@pytest.fixture
def model():
    return whole_model(2, gated=True, tied=True)


CONFIG = settings(2, gated=True, tied=True)


def test_a_genuine_distributed_checkpoint_gives_the_logits_nemo_computed(tmp_path, quiet):
    convert(GENUINE, tmp_path / "m.nemo", reporter=quiet)
    export(tmp_path / "m.nemo", tmp_path / "hf", reporter=quiet)
    stored = np.load(FIXTURES / "plckpt_logits.npz")
    assert np.abs(logits_of(tmp_path / "hf", stored["input_ids"]) - stored["logits"]).max() < 2e-5


def test_a_genuine_checkpoint_by_any_of_its_names():
    folder = GENUINE / "checkpoints"
    sources = [open_source(path) for path in (GENUINE, folder, folder / NAME)]
    assert {source.path for source in sources} == {folder / NAME}
    assert [source.folder for source in sources] == [GENUINE, folder, None]
    for source in sources:
        assert (source.kind, source.layout) == ("lightning", "torch_dist")
        assert source.config["hidden_size"] == 64
    report = inspect_source(sources[0])
    assert report["training"]["checkpoint"]["step"] == 5
    assert report["size_bytes"] == sum(f.stat().st_size for f in (folder / NAME).iterdir())


def test_ranks_that_lightnings_own_trainer_saved():
    """Settings as a pickled DictConfig, and real states of loops, callbacks and AdamW."""
    source = open_source(FIXTURES / "lightning_ranks")
    assert source.layout == "per-rank TP2 PP1, legacy names"
    assert source.config["max_position_embeddings"] == 10
    assert_same(source.weights, whole_model(2, gated=True, tied=False))
    assert source.optimizer is None
    assert check(FIXTURES / "lightning_ranks", PlainReporter(quiet=True))["intact"]


def test_the_state_of_the_optimizer_is_there_by_name():
    """The fixture's weights took AdamW steps; its moments are those of plain torch's checkpoint."""
    source = open_source(GENUINE)
    assert len(source.optimizer.tensors) == 2 * len(source.weights.tensors)
    key = "optimizer.state.exp_avg_sq.model.decoder.layers.mlp.linear_fc1.weight"
    expected = {key: torch.empty(4, 256, 64)}
    dcp.load(expected, checkpoint_id=GENUINE / "checkpoints" / NAME, no_dist=True)
    ours = source.optimizer.read("exp_avg_sq.decoder.layers.2.mlp.linear_fc1.weight")
    np.testing.assert_array_equal(ours, expected[key][2].numpy())
    assert open_source(FIXTURES / "llama.nemo").optimizer is None


@pytest.mark.parametrize(
    "hparams",
    [
        CONFIG,
        {"cfg": CONFIG},
        OmegaConf.create({"cfg": CONFIG}),
        OmegaConf.create(CONFIG),
        {"cfg": OmegaConf.create({**CONFIG, "tokenizer": {"special_tokens": ["a"]}})},
        OmegaConf.create({"cfg": {"model": CONFIG, "trainer": {"devices": 8}}}),
    ],
    ids=["flat", "nested", "DictConfig", "flat DictConfig", "DictConfig inside", "whole run"],
)
def test_the_configuration_lies_in_the_checkpoint(hparams, model, tmp_path):
    torch.save(lightning(as_saved(model), hparams), tmp_path / "last.ckpt")
    source = open_source(tmp_path / "last.ckpt")
    assert (source.kind, source.layout) == ("lightning", "single file, legacy names")
    assert_same(source.weights, model)
    assert open_source(tmp_path).path == tmp_path / "last.ckpt"


def test_the_configuration_lies_beside_the_run(model, tmp_path):
    config = {**CONFIG, "max_position_embeddings": "${.encoder_seq_length}", "seed": "???"}
    run_of(tmp_path, {"last.ckpt": lightning(as_saved(model))}, config=config)
    source = open_source(tmp_path)
    assert source.path == tmp_path / "checkpoints/last.ckpt"
    assert source.stored_config["max_position_embeddings"] == 10
    assert_same(source.weights, model)


def test_references_may_start_at_the_runs_own_configuration(model, tmp_path):
    config = {**CONFIG, "ffn_hidden_size": "${model.wide}", "wide": 12}
    run_of(tmp_path, {"last.ckpt": lightning(as_saved(model))}, config=config)
    assert open_source(tmp_path).arch.ffn_hidden_size == 12


def test_without_any_configuration_it_says_where_it_looked(model, tmp_path):
    run_of(tmp_path, {"last.ckpt": lightning(as_saved(model))})
    with pytest.raises(SourceError, match=r"no hparams.yaml in .*checkpoints, .*Put the run's"):
        open_source(tmp_path)


@pytest.mark.parametrize("tp", [1, 2])
def test_ranks_of_a_run_by_any_of_their_names(tp, model, tmp_path):
    """Sizes come from the folders, not from the configuration, which may be stale."""
    stale = {**CONFIG, "tensor_model_parallel_size": 8, "pipeline_model_parallel_size": 4}
    files = {}
    for pp in range(2):
        stage = stage_of(model, [pp], first=pp == 0, last=pp == 1)
        for rank in range(tp):
            shard = as_saved(shard_of(stage, tp, rank, gated=True))
            files[f"{rank_folder(rank, pp, 2)}/{NAME}.ckpt"] = lightning(shard, stale)
    run = run_of(tmp_path, files)
    home = run / "checkpoints"
    rank = home / "tp_rank_00_pp_rank_001"
    for path in (run, home, home / f"{NAME}.ckpt", rank / f"{NAME}.ckpt", rank):
        source = open_source(path)
        assert source.path == home / f"{NAME}.ckpt"
        assert source.layout == f"per-rank TP{tp} PP2, legacy names"
        assert_same(source.weights, model)
        check_copies(source)
    sizes = [file.stat().st_size for file in home.rglob("*.ckpt")]
    assert inspect_source(open_source(run))["size_bytes"] == sum(sizes)
    (rank / f"{NAME}.ckpt").unlink()
    lacking = "rank 0, pipeline rank 1: at TP2 PP2" if tp == 2 else "lacks .decoder.layers.1"
    with pytest.raises((SourceError, ContentError), match=lacking):
        open_source(run)


@pytest.mark.parametrize("is_legacy", [True, False])
@pytest.mark.parametrize("stages", [[(0,), (1,), (2,), (3,)], [(0, 1), (2,), (3,), (4, 5)]])
def test_virtual_stages_come_chunk_by_chunk(stages, is_legacy, tmp_path):
    """The first chunks of all ranks, then the second ones: rank 0 of 2 holds stages 0 and 2."""
    tp, layers = 2, stages[-1][-1] + 1
    model = whole_model(layers, gated=True, tied=True)
    files = {}
    for pp in range(2):
        for rank in range(tp):
            chunks = {}
            for chunk in range(2):
                number = 2 * chunk + pp
                stage = stage_of(model, stages[number], first=number == 0, last=number == 3)
                shard = shard_of(stage, tp, rank, gated=True)
                named = nested(legacy(shard, gated=True, tied=True)) if is_legacy else shard
                chunks[f"model{chunk}"] = named
            name = f"{rank_folder(rank, pp, 2)}/{NAME}.ckpt"
            files[name] = lightning({}, settings(layers, gated=True, tied=True), **chunks)
    source = open_source(run_of(tmp_path, files))
    assert source.layout.startswith("per-rank TP2 PP2 VP2")
    assert_same(source.weights, model)
    assert list(source.copies.tensors) == ["embedding.word_embeddings.weight"]
    check_copies(source)


def test_a_partly_trained_checkpoint_becomes_a_nemo(model, tmp_path, quiet):
    """On one process, whatever it was trained in; the tokenizer's file lies beside the run."""
    shutil.copy(FIXTURES / "tokenizers/sentencepiece.model", tmp_path / "tok.model")
    tokenizer = {"library": "sentencepiece", "model": "/somewhere/else/tok.model"}
    config = {**CONFIG, "tokenizer": tokenizer}
    files = {
        f"mp_rank_{rank:02d}/{NAME}.ckpt": lightning(as_saved(shard_of(model, 2, rank, gated=True)))
        for rank in range(2)
    }
    convert(run_of(tmp_path, files, config=config), tmp_path / "m.nemo", reporter=quiet)
    written = open_source(tmp_path / "m.nemo")
    assert written.config["mcore_gpt"] is True
    assert written.config["activation"] == "swiglu"
    assert written.config["tensor_model_parallel_size"] == 1
    (name,) = written.files
    assert written.stored_config["tokenizer"]["model"] == f"nemo:{name}"
    assert written.files[name].read(1 << 20) == (tmp_path / "tok.model").read_bytes()
    assert_same(written.weights, model)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ([1, 2], SourceError, "no dictionary"),
        ({"epoch": 1}, SourceError, "does not say what model it is"),
        ({"epoch": 1, "hyper_parameters": CONFIG}, SourceError, "without weights of a run"),
        (lightning({}, CONFIG), SourceError, "without weights of a run"),
        (lightning({}, CONFIG, model1={}), ContentError, r"virtual pipeline stages \[1\]"),
        (lightning({}, CONFIG, model00={}), SourceError, "without weights of a run"),
        (lightning({"a": torch.ones(1)}, CONFIG, model0={}), ContentError, "beside its virtual"),
        (lightning({"x": torch.ones(1)}, {"hidden_size": 1}), ContentError, "lacks num_layers"),
    ],
)
def test_other_torch_files_are_refused_with_what_they_hold(content, error, match, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(error, match=match):
        open_source(tmp_path / "x.ckpt")


def test_a_link_beside_the_run_is_no_tokenizer(model, tmp_path):
    (tmp_path / "tok.model").symlink_to(FIXTURES / "tokenizers/sentencepiece.model")
    config = {**CONFIG, "tokenizer": {"library": "sentencepiece", "model": "tok.model"}}
    torch.save(lightning(as_saved(model), config), tmp_path / "last.ckpt")
    assert not open_source(tmp_path / "last.ckpt").files


def test_an_adapter_in_training_is_an_adapter(tmp_path):
    """With PEFT, NeMo's state_dict holds the adapter alone."""
    prefix = "model.decoder.layers.{}.self_attention.adapter_layer.lora_kqv_adapter."
    state = {
        prefix.format(layer) + name: torch.randn(shape)
        for layer in (0, 1)
        for name, shape in (("linear_in.weight", (2, 8)), ("linear_out.weight", (24, 2)))
    }
    config = {**CONFIG, "peft": {"lora_tuning": {"adapter_dim": 2}}, "restore_from_path": "b.nemo"}
    torch.save(lightning(state, config), tmp_path / "last.ckpt")
    source = open_source(tmp_path / "last.ckpt")
    assert source.is_adapter_only
    assert source.adapter.base == "b.nemo"
    assert len(source.adapter.weights.tensors) == 4


def test_a_run_is_opened_before_it_is_known_what_model_it_is(tmp_path):
    config = {"num_layers": 1, "target": "x.MegatronVitClassificationModel"}
    torch.save(lightning({"model.a.weight": torch.ones(2)}, config), tmp_path / "last.ckpt")
    run = open_run(saved_at(tmp_path / "last.ckpt"))
    assert run.config == config
    (store,) = run.stores()[0, 0]
    assert store.read("model.a.weight").tolist() == [1, 1]
