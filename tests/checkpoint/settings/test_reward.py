"""Reward models between NeMo-Aligner's archives, transformers' classifiers and our own model."""

from __future__ import annotations

import json
import shutil
import tarfile
from types import SimpleNamespace

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from transformers import AutoModelForSequenceClassification, Qwen2Config

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.inspect import inspect
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.reward import (
    BIAS,
    WEIGHT,
    Standardization,
    attribute_weights,
    reward_standardization,
)
from nemoalign.config.checkpoint_yaml import load_checkpoint_config
from nemoalign.errors import ContentError
from nemoalign.log import PlainReporter
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_rewards
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.checkpoint.models import FIXTURES, assert_same_tensors
from tests.fixtures import make_reward
from tests.fixtures.make_reward import BIAS as TRAINED_BIAS

HF = FIXTURES / "hf_reward"
QUIET = PlainReporter(quiet=True)
ONE = ParallelLayout(1)
ARCHIVES = ("reward_tp2_dist", "reward_tp2_ranks")


class Told(PlainReporter):
    def __init__(self):
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_what_megatron_core_wrote_becomes_transformers_classifier(archive, tmp_path):
    told = Told()
    convert(FIXTURES / archive, tmp_path / "hf", reporter=told)
    assert_same_tensors(tmp_path / "hf", HF)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert list(config["id2label"]) == ["0", "1", "2"]
    lost = [warning for warning in told.warnings if "bias" in warning]
    assert len(lost) == 1
    assert all(str(value) in lost[0] for value in TRAINED_BIAS)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_head_cut_by_columns_is_joined_and_stays_in_fp32(archive):
    source = open_source(FIXTURES / archive)
    expected = AutoModelForSequenceClassification.from_pretrained(
        HF, dtype=torch.float32
    ).score.weight
    assert torch.equal(torch.tensor(source.weights.read(WEIGHT)), expected.data)
    assert source.weights.read(BIAS).tolist() == list(TRAINED_BIAS)
    assert source.weights.tensors[WEIGHT].dtype == "float32"
    assert source.dtypes == ("bfloat16", "float32")


def test_a_conversion_keeps_the_head_its_bias_and_the_unused_output_layer(tmp_path):
    convert(FIXTURES / ARCHIVES[1], tmp_path / "m.nemo", reporter=QUIET)
    before, after = open_source(FIXTURES / ARCHIVES[0]), open_source(tmp_path / "m.nemo")
    assert after.weights.tensors == before.weights.tensors
    for name in (WEIGHT, BIAS, "output_layer.weight"):
        assert (after.weights.read(name) == before.weights.read(name)).all()


def test_a_classifier_becomes_what_nemo_aligner_restores_and_comes_back(tmp_path):
    convert(HF, tmp_path / "m.nemo", reporter=QUIET)
    source = open_source(tmp_path / "m.nemo")
    assert source.config["target"].endswith("MegatronGPTRegressionRewardModel")
    assert source.config["regression"]["num_attributes"] == 3
    assert source.config["share_embeddings_and_output_weights"] is False
    assert not source.weights.read(BIAS).any()
    assert source.weights.tensors["output_layer.weight"].shape == (64, 16)
    told = Told()
    convert(tmp_path / "m.nemo", tmp_path / "hf", reporter=told)
    assert_same_tensors(tmp_path / "hf", HF)
    assert (tmp_path / "hf/config.json").read_text() == (HF / "config.json").read_text()
    assert not [warning for warning in told.warnings if "bias" in warning]


def test_inspect_shows_the_head():
    found = inspect(FIXTURES / ARCHIVES[0])
    assert found["reward_head"] == {"outputs": 3, "type": "regression", "dtype": "float32"}
    assert found["parameters"]["reward head"] == 3 * 16 + 3
    assert "llama reward model" in found["what"]


def test_any_family_with_a_classifier_goes_there_and_back(tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        num_labels=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "qwen2")
    convert(tmp_path / "qwen2", tmp_path / "m.nemo", reporter=QUIET)
    assert open_source(tmp_path / "m.nemo").config["reward_model_type"] == "binary_ranking"
    convert(tmp_path / "m.nemo", tmp_path / "hf", reporter=QUIET)
    assert_same_tensors(tmp_path / "hf", tmp_path / "qwen2")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").num_labels == 1


def test_transformers_rewards_are_ours_without_the_bias():
    """Of the last token that is not padding, as transformers takes it."""
    tokens = torch.tensor([[5, 9, 33, 2, 0, 0], [1, 7, 12, 60, 8, 3]])
    classifier = AutoModelForSequenceClassification.from_pretrained(HF, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = classifier(tokens, attention_mask=(tokens != 0).long()).logits
    source = open_source(FIXTURES / ARCHIVES[1])
    batch = SimpleNamespace(
        tokens=tokens,
        position_ids=torch.arange(6).expand(2, 6),
        documents=None,
        fields={"length": torch.tensor([4.0, 6.0])},
    )
    with start(ONE, seed=1), torch.no_grad():
        (model,) = build_model(source.arch, 64, ONE, precision="fp32", settings=ModelSettings())
        load_weights([model], source.weights, source.arch, ONE, 64)
        rewards = forward_rewards(model.eval(), batch)
    assert (rewards - torch.tensor(TRAINED_BIAS) - expected).abs().max() < 1e-6


def _restored(folder):
    """Runs on each of two ranks: what megatron-core's strict loader puts into NeMo-Aligner's module."""
    with start(ParallelLayout(2, tp=2), seed=1), torch.no_grad():
        wanted = make_reward.weights_of(make_reward.build())
        state = dist_checkpointing.load(wanted, str(folder), strict=StrictHandling.RAISE_ALL)
    return {name: state[f"model.{name}"].clone() for name in (WEIGHT, BIAS, "output_layer.weight")}


@pytest.mark.dist
def test_nemo_aligners_head_takes_its_columns_from_what_we_write(two_ranks, tmp_path):
    convert(FIXTURES / ARCHIVES[0], tmp_path / "m.nemo", reporter=QUIET)
    with tarfile.open(tmp_path / "m.nemo") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    parts = two_ranks.run(_restored, tmp_path / "unpacked/model_weights")
    expected = AutoModelForSequenceClassification.from_pretrained(HF, dtype=torch.float32)
    assert torch.equal(torch.cat([part[WEIGHT] for part in parts], 1), expected.score.weight)
    assert [part[BIAS].tolist() for part in parts] == [list(TRAINED_BIAS)] * 2
    assert parts[0][WEIGHT].dtype is torch.float32


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_attributes: 3", "num_attributes: 2", "asks for 2"),
        ("use_avg_pool: false", "use_avg_pool: true", "averages its rewards"),
    ],
)
def test_what_contradicts_or_cannot_be_represented_is_refused(old, new, words, tmp_path):
    folder = shutil.copytree(FIXTURES / ARCHIVES[1], tmp_path / "m")
    config = folder / "model_config.yaml"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ContentError, match=words):
        convert(folder, tmp_path / "hf", reporter=QUIET)


def test_a_classifier_without_its_head_is_refused(tmp_path):
    convert(FIXTURES / "hf_mixtral", tmp_path / "hf.nemo", reporter=QUIET)
    convert(tmp_path / "hf.nemo", tmp_path / "hf", reporter=QUIET)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    config["architectures"] = ["MixtralForSequenceClassification"]
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    with pytest.raises(ContentError, match=r"without its score\.weight"):
        open_source(tmp_path / "hf")


def standardized(text: str):
    return reward_standardization(load_checkpoint_config(text, "m.yaml"), "m.yaml")


def test_rewards_are_standardized_where_the_configuration_enables_it():
    assert standardized("reward_standardization: {enable: true, mean: 5, std: 1.25}") == (
        Standardization(5.0, 1.25)
    )
    for text in (
        "hidden_size: 4",
        "reward_standardization: null",
        "reward_standardization: {enable: false, mean: 1, std: 2}",
    ):
        assert standardized(text) is None


@pytest.mark.parametrize("numbers", ["mean: null, std: 1", "mean: 1, std: 0", "mean: .nan, std: 1"])
def test_a_standardization_without_usable_numbers_is_refused(numbers):
    with pytest.raises(ContentError, match="two numbers, the second above 0"):
        standardized(f"reward_standardization: {{enable: true, {numbers}}}")


def test_weights_of_attributes_are_a_list_of_numbers_or_all_the_same():
    for text, expected in (
        ("regression: {num_attributes: 2}", None),
        ("regression: {attribute_weights: null}", None),
        ("regression: {attribute_weights: [0, 0.5]}", (0.0, 0.5)),
    ):
        assert attribute_weights(load_checkpoint_config(text, "m.yaml"), "m.yaml") == expected
    for stated in ("[]", "[a, 1]", "0.5", "[true, 1]"):
        config = load_checkpoint_config(f"regression: {{attribute_weights: {stated}}}", "m.yaml")
        with pytest.raises(ContentError, match="no list of numbers"):
            attribute_weights(config, "m.yaml")
