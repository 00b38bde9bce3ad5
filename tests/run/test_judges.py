"""Reward models as they are read for a run: one number each, of the policy's own tokens, or refused."""

import shutil
from dataclasses import replace

import pytest
import torch

from nemoalign.errors import ConfigError, ContentError
from nemoalign.run.judges import fresh_critic, read_judge
from tests.data.tiny import save_hf_tokenizer
from tests.run.roleplay import prepared, scores


def test_a_reward_model_is_read_with_the_runs_layout_and_its_own_tensors(judged) -> None:
    _, made = prepared(judged)
    judge = read_judge(judged / "rm", made)
    assert (judge.averages, judge.is_new) == (False, False)
    assert judge.describe() == str(judged / "rm")
    assert judge.made.arch.num_attributes == 1
    assert not judge.made.arch.share_embeddings_and_output_weights
    assert (judge.made.layout, judge.made.tokenizer) == (made.layout, made.tokenizer)
    head = judge.source.weights.read("rm_head.weight")
    assert torch.equal(torch.from_numpy(head.copy()), scores(judged / "rm"))


def test_several_rewards_become_their_mean(judged) -> None:
    _, made = prepared(judged)
    judge = read_judge(judged / "rm3", made)
    assert judge.made.arch.num_attributes == 1
    head = torch.from_numpy(judge.source.weights.read("rm_head.weight").copy())
    torch.testing.assert_close(head, scores(judged / "rm3").mean(0, keepdim=True))


def test_a_model_without_a_head_judges_nothing_and_may_be_a_critics_start(judged) -> None:
    _, made = prepared(judged)
    with pytest.raises(ContentError, match=r"hf has no reward head.*nemoalign rm.*--reward MODULE"):
        read_judge(judged / "hf", made)
    critic = read_judge(judged / "hf", made, may_be_new=True)
    own = fresh_critic(made)
    for judge in (critic, own):
        assert judge.is_new
        assert judge.describe() == f"{judged / 'hf'}, with a new head"
        assert judge.made.arch.num_attributes == 1
        assert judge.source.weights.tensors["rm_head.weight"].shape == (1, 64)
    assert not read_judge(judged / "rm", made, may_be_new=True).is_new
    assert made.arch.num_attributes == 0


def test_a_model_of_other_tokens_is_refused(judged, tmp_path) -> None:
    _, made = prepared(judged)
    other = shutil.copytree(judged / "rm", tmp_path / "other")
    save_hf_tokenizer(other)
    with pytest.raises(ContentError, match=r"other splits text into other tokens.*the policy's"):
        read_judge(other, made)


def test_positions_that_a_model_never_learned_are_refused(judged) -> None:
    _, made = prepared(judged)
    arch = replace(made.source.arch, position_embedding_type="learned_absolute")
    made = replace(
        made,
        source=replace(made.source, arch=arch),
        arch=replace(made.arch, encoder_seq_length=arch.encoder_seq_length + 1),
    )
    with pytest.raises(ConfigError, match=r"learned 256 positions.*--seq-len 256 or less"):
        fresh_critic(made)
