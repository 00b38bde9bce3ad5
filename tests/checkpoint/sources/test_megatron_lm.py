"""Checkpoints of Megatron-LM: found by their run, described by their arguments, never executed."""

from __future__ import annotations

import argparse
import os
import shutil
import signal

import pytest
import torch

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.inspect import inspect
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.nemo2_config import nemo_fields
from nemoalign.checkpoint.sources.megatron_lm import last_iteration, megatron_config
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.mcore import HF, MCORE
from tests.checkpoint.models import assert_same_tensors

RUN = MCORE / "trained"
NAME = "iter_0000001"
SIZES = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "seq_length": 32}


@pytest.fixture
def run(tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


def fields(**arguments):
    return nemo_fields({"config": megatron_config(SIZES | arguments)}, "args")


def write_arguments(run, arguments):
    torch.save({"args": arguments, "iteration": 1}, run / NAME / "common.pt")


@pytest.mark.parametrize("path", [RUN, RUN / NAME])
def test_a_run_and_its_iteration_are_recognised(path):
    report = inspect(path)
    assert report["kind"] == "Megatron-LM checkpoint"
    assert report["family"] == "llama"
    assert report["sizes"]["head_dim"] == 8
    assert report["sizes"]["rope"] == {"base": 50000.0}
    assert report["tokenizer"]["type"] == "somewhere/else"


@pytest.mark.parametrize("through_nemo", [False, True])
def test_the_weights_are_the_model_of_transformers_and_the_optimizer_is_left(
    tmp_path, quiet, through_nemo
):
    """The optimizer's step changed nothing: its gradients were zero."""
    source = RUN
    if through_nemo:
        source = tmp_path / "m.nemo"
        convert(RUN, source, reporter=quiet)
    export(source, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", HF)


def test_the_last_iteration_is_the_one_the_run_names(run):
    shutil.copytree(run / NAME, run / "iter_0000200")
    assert last_iteration(run).name == NAME
    (run / "latest_checkpointed_iteration.txt").write_text("200\n")
    assert last_iteration(run).name == "iter_0000200"
    (run / "iter_0000200").rename(run / "release")
    (run / "latest_checkpointed_iteration.txt").write_text("release")
    assert last_iteration(run).name == "release"


@pytest.mark.parametrize("named", ["7", "../../etc", "1" * 60, "", "\xff"])
def test_an_iteration_that_is_not_there_is_refused(run, named):
    (run / "latest_checkpointed_iteration.txt").write_text(named, encoding="latin-1")
    with pytest.raises(SourceError, match="Name a"):
        open_source(run)


def test_arguments_of_a_real_run_hold_a_signal_and_types(run):
    given = argparse.Namespace(**vars(_arguments()), exit_signal=signal.SIGTERM)
    write_arguments(run, given)
    assert open_source(run).arch.num_layers == 2


def test_arguments_that_would_run_something_are_refused(run):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch hacked",))

    write_arguments(run, argparse.Namespace(**vars(_arguments()), evil=Evil()))
    with pytest.raises(SourceError, match="was refused before anything ran"):
        open_source(run)


def test_arguments_of_another_model_are_refused(run):
    arguments = _arguments()
    arguments.ffn_hidden_size = 32
    write_arguments(run, arguments)
    with pytest.raises(ContentError, match="asks for"):
        open_source(run)


def _arguments():
    loaded = torch.load(RUN / NAME / "common.pt", weights_only=False)
    return loaded["args"]


def test_switches_choose_activation_and_norm():
    swiglu = fields(swiglu=True, normalization="RMSNorm", norm_epsilon=1e-6)
    assert (swiglu["activation"], swiglu["normalization"]) == ("fast-swiglu", "rmsnorm")
    assert swiglu["layernorm_epsilon"] == 1e-6
    squared = fields(squared_relu=True, apply_layernorm_1p=True)
    assert (squared["activation"], squared["normalization"]) == ("squared-relu", "layernorm1p")
    gelu = fields(bias_gelu_fusion=True, max_position_embeddings=64)
    assert (gelu["activation"], gelu["bias_activation_fusion"]) == ("gelu", True)
    assert gelu["encoder_seq_length"] == 64
    assert gelu["share_embeddings_and_output_weights"] is True


def test_query_groups_count_only_where_they_are_switched_on():
    assert "num_query_groups" not in fields(num_query_groups=1, group_query_attention=False)
    assert fields(num_query_groups=2, group_query_attention=True)["num_query_groups"] == 2


def test_scaled_positions_have_megatron_cores_constants():
    scaled = fields(
        use_rotary_position_embeddings=True, use_rope_scaling=True, rope_scaling_factor=32.0
    )
    assert scaled["position_embedding_type"] == "rope"
    assert scaled["scale_positional_embedding"] is True
    assert (scaled["scale_factor"], scaled["old_context_len"]) == (32.0, 8192)


def test_latent_attention_is_refused():
    with pytest.raises(ContentError, match="multi_latent_attention"):
        fields(multi_latent_attention=True)


@pytest.mark.parametrize("variant", ["stacked", "layers"])
def test_weights_alone_say_what_is_missing(variant):
    with pytest.raises(SourceError, match="does not say what model it is"):
        open_source(MCORE / variant)
