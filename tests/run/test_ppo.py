"""What takes the steps of a run is made of the run's settings; what is saved beside the policy."""

import pytest
import yaml

from nemoalign.rollouts.trainee import PpoTrainee
from tests.run.roleplay import assembled


def test_answers_are_drawn_as_the_settings_say(judged) -> None:
    flags = {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_new_tokens": 2,
        "max_new_tokens": 20,
        "stop": ["\n"],
        "slots": 3,
        "model.seed": 99,
    }
    with assembled(judged, **flags) as trainer:
        trainee = trainer.learner
        assert isinstance(trainee, PpoTrainee)
        drawn = trainee.sampling
        assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.7, 5, 0.9)
        assert (drawn.min_new_tokens, drawn.seed) == (2, 99)
        writing = trainee.writing
        assert (writing.max_new_tokens, writing.stops, writing.slots) == (20, ("\n",), 3)
        assert trainee.update_size == 8


@pytest.mark.parametrize(("packs", "capacity"), [("true", 2 * 64), ("false", None)])
def test_rows_are_packed_unless_told_otherwise(packs, capacity, judged) -> None:
    sets = [f"model.data.train_ds.packed_sequence={packs}"]
    with assembled(judged, *sets) as trainer:
        batching = trainer.learner.batching
        assert (batching.micro_batch_size, batching.pack_capacity) == (2, capacity)
        assert (batching.dp_rank, batching.dp_size, batching.pad_to) == (0, 1, 1)
        assert batching.eos_id == 2


@pytest.mark.parametrize("lora", [False, True])
def test_a_critic_is_saved_as_a_reward_model_that_says_where_it_comes_from(lora, judged) -> None:
    flags = {"model.peft.lora_tuning.adapter_dim": 2} if lora else {}
    with assembled(judged, **flags) as trainer:
        models = trainer.checkpointer.models
        assert models.keys() == {"", "critic"}
        learner, contents = models["critic"]
        assert learner is trainer.learner.roles.critic
        assert models[""][0] is trainer.learner.roles.policy
        assert contents.adapters_only is lora
        config = yaml.safe_load(contents.model_config_yaml)
    assert config["reward_model_type"] == "binary_ranking"
    assert config["nemoalign"]["role"] == "critic"
    assert config["nemoalign"]["from"] == str(judged / "rm")
    assert ("peft" in config) is lora


@pytest.mark.parametrize("flags", [{"advantage": "grpo"}, {"share_trunk": True}])
def test_without_a_model_of_its_own_nothing_is_saved_beside_the_policy(flags, judged) -> None:
    with assembled(judged, **flags) as trainer:
        assert trainer.checkpointer.models.keys() == {""}


def test_what_went_wrong_with_rewards_is_in_the_books(judged) -> None:
    with assembled(judged) as trainer:
        trainer.learner.warn("a reward went wrong")
        assert trainer.books.warnings == ["step 1: a reward went wrong"]
