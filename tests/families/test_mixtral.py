"""Mixtral between transformers' files, megatron-core's own archives and ours."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from transformers import MixtralConfig, MixtralForCausalLM

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.inspect import inspect
from nemoalign.checkpoint.open import open_source
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.families.registry import family_for_nemo
from nemoalign.log import PlainReporter
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.weights.config_rules import nemo_fields
from tests.checkpoint.models import FIXTURES, assert_same_tensors
from tests.fixtures.make_mixtral import build, make_hf, mcore_tensors, weights_of

HF = FIXTURES / "hf_mixtral"
QUIET = PlainReporter(quiet=True)


@pytest.mark.parametrize("archive", ["mixtral_ep2_dist", "mixtral_tp2_ranks"])
def test_what_megatron_core_wrote_becomes_the_model_transformers_wrote(archive, tmp_path):
    convert(FIXTURES / archive, tmp_path / "hf", reporter=QUIET)
    assert_same_tensors(tmp_path / "hf", HF)
    assert open_source(tmp_path / "hf").arch == replace(
        open_source(HF).arch, init_method_std=0.02, moe_aux_loss_coeff=0.0
    )


def test_the_way_there_and_back_keeps_every_bit_and_the_config(tmp_path):
    convert(HF, tmp_path / "m.nemo", reporter=QUIET)
    convert(tmp_path / "m.nemo", tmp_path / "hf", reporter=QUIET)
    assert_same_tensors(tmp_path / "hf", HF)
    assert (tmp_path / "hf/config.json").read_text() == (HF / "config.json").read_text()


def test_megatron_core_loads_what_we_write_strictly(tmp_path):
    """With NeMo's keys: experts doubled, the norm of experts its own; nothing missing, nothing over."""
    convert(HF, tmp_path / "m.nemo", reporter=QUIET)
    with tarfile.open(tmp_path / "m.nemo") as tar:
        tar.extractall(tmp_path / "m", filter="data")
    folder = str(tmp_path / "m/model_weights")
    assert "model.decoder.layers.pre_mlp_layernorm.weight" in (
        dist_checkpointing.load_tensors_metadata(folder)
    )
    with start(ParallelLayout(1), seed=1):
        model = build(tp=1, ep=1)
        wanted = weights_of(model)
        loaded = dist_checkpointing.load(wanted, folder, strict=StrictHandling.RAISE_ALL)
    for name, tensor in mcore_tensors(make_hf(), range(4)).items():
        assert torch.equal(loaded[f"model.{name}"], tensor), name


def test_the_routing_is_transformers_and_that_of_nemos_script_is_told(tmp_path):
    convert(HF, tmp_path / "m.nemo", reporter=QUIET)
    ours = open_source(tmp_path / "m.nemo")
    assert ours.config["moe_router_pre_softmax"] is False
    assert not ours.warnings
    theirs = open_source(FIXTURES / "mixtral_ep2_dist")
    assert theirs.arch.moe_router_pre_softmax
    assert any("moe_router_pre_softmax" in warning for warning in theirs.warnings)


def test_inspect_counts_what_one_token_goes_through():
    found = inspect(FIXTURES / "mixtral_ep2_dist")
    total = sum(p.numel() for p in make_hf().parameters())
    expert = 3 * 24 * 16
    assert found["parameters"]["total"] == total
    assert found["parameters"]["active"] == total - 2 * 2 * expert
    assert (found["sizes"]["experts"], found["sizes"]["top_k"]) == (4, 2)


def test_the_config_comes_back_as_transformers_understands_it():
    config = MixtralConfig(num_local_experts=16, num_experts_per_tok=4, router_aux_loss_coef=0.02)
    config.architectures = ["MixtralForCausalLM"]
    family = open_source(HF).family
    arch = Architecture.from_nemo(nemo_fields(family.config, config.to_dict()) | {"bias": False})
    back = {name: value for rule in family.config for name, value in rule.to_hf(arch).items()}
    again = MixtralConfig(**back)
    for name in back.keys() - {"rope_theta", "rope_scaling", "head_dim"}:
        assert getattr(again, name) == getattr(config, name), name
    assert again.rope_parameters == config.rope_parameters


def test_experts_make_a_mixtral_and_none_a_llama():
    config = dict(open_source(HF).config)
    assert family_for_nemo(config).name == "mixtral"
    assert family_for_nemo(config | {"num_moe_experts": None}).name == "llama"


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_shared_expert_intermediate_size": 8},
        {"moe_layer_freq": 2},
        {"moe_router_topk": 5},
        {"num_moe_experts": 1 << 40},
    ],
)
def test_experts_of_other_kinds_are_refused(changes, tmp_path):
    folder = shutil.copytree(FIXTURES / "mixtral_tp2_ranks", tmp_path / "m")
    config = folder / "model_config.yaml"
    lines = [line for line in config.read_text().splitlines() if line.split(":")[0] not in changes]
    lines += [f"{name}: {value}" for name, value in changes.items()]
    config.write_text("\n".join(lines))
    with pytest.raises(ContentError, match="experts"):
        open_source(folder)


def test_transformers_computes_the_same_with_what_we_export(tmp_path):
    convert(FIXTURES / "mixtral_tp2_ranks", tmp_path / "hf", reporter=QUIET)
    ids = torch.tensor([[1, 5, 60, 7, 12, 0, 33, 2]])
    with torch.no_grad():
        ours = MixtralForCausalLM.from_pretrained(tmp_path / "hf").eval()(ids).logits
        theirs = make_hf()(ids).logits
    assert torch.equal(ours, theirs)
