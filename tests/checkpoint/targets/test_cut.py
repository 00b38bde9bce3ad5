"""Where tensors go: stages in order, sizes that fit, and what the configuration then says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.cut import WHOLE, Cut, cut_for
from nemoalign.errors import ConfigError
from tests.checkpoint.models import FIXTURES


def test_tensors_are_written_as_stages_hold_them():
    cut = Cut(pp=2, stages=(range(1), range(1, 12)))
    names = [
        "output_layer.weight",
        "decoder.layers.10.mlp.linear_fc1.weight",
        "decoder.layers.2.mlp.linear_fc1.weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "embedding.word_embeddings.weight",
    ]
    assert cut.in_order(names) == list(reversed(names))
    assert [cut.stage_of(name) for name in names] == [1, 1, 1, 0, 0]


def test_settings_of_other_layouts_are_kept_out():
    config = {"sequence_parallel": True, "expert_model_parallel_size": 4}
    assert WHOLE.settings(config) == {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": 1,
        "sequence_parallel": False,
    }
    assert "sequence_parallel" not in Cut(tp=2).settings(config)
    assert "expert_model_parallel_size" not in Cut(tp=2).settings({})


def test_stages_follow_the_checkpoints_own_settings():
    source = open_source(FIXTURES / "gpt_tp1_dist.nemo")
    uneven = {"account_for_embedding_in_pipeline_split": True}
    uneven |= {"account_for_loss_in_pipeline_split": True}
    cut = cut_for(replace(source, config=source.config | uneven), tp=1, pp=3, ep=1, vp=None)
    assert cut.stages == (range(1), range(1, 3), range(3, 4))
    with pytest.raises(ConfigError, match="use --pp 1, 2 or 4"):
        cut_for(source, tp=1, pp=3, ep=1, vp=None)


def test_an_adapter_is_not_cut_through_its_rank():
    source = open_source(FIXTURES / "lora_tp1.nemo")
    assert source.adapter is not None
    odd = replace(source, adapter=replace(source.adapter, dim=9))
    with pytest.raises(ConfigError, match=r"rank 9, .* --tp 2; use --tp 1, 3 or 9"):
        cut_for(odd, tp=2, pp=1, ep=1, vp=None)


def test_experts_are_shared_out_whole():
    source = open_source(FIXTURES / "gpt_tp1_dist.nemo")
    mixture = replace(source, arch=replace(source.arch, num_moe_experts=6))
    assert cut_for(mixture, tp=1, pp=1, ep=3, vp=None).ep == 3
    with pytest.raises(ConfigError, match=r"6 experts, .* --ep 4; use --ep 1, 2, 3 or 6"):
        cut_for(mixture, tp=1, pp=1, ep=4, vp=None)
