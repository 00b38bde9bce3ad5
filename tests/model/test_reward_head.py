"""Where an answer's reward is read, and what a new head is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ConfigError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_values
from nemoalign.model.load import load_weights
from nemoalign.model.reward_head import Answers, RewardHead, folded_head, with_reward_head
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny

ONE = ParallelLayout(1)
LENGTHS = [3, 5, 1]


@pytest.mark.parametrize("averages", [False, True], ids=["last", "mean"])
def test_answers_below_each_other_and_end_to_end_have_the_same_states(averages) -> None:
    torch.manual_seed(0)
    rows = [torch.randn(length, 4) for length in LENGTHS]
    expected = torch.stack([row.mean(0) if averages else row[-1] for row in rows])
    lengths = torch.tensor(LENGTHS, dtype=torch.float32)
    below = torch.randn(7, 3, 4)  # two places more than the longest, as padding leaves them
    for number, row in enumerate(rows):
        below[: len(row), number] = row
    torch.testing.assert_close(Answers(lengths, None, averages).states(below), expected)
    packed = torch.cat([*rows, torch.randn(2, 4)])[:, None]
    for documents in ((3, 5, 1), (3, 5, 1, 2)):
        found = Answers(lengths, documents, averages).states(packed)
        torch.testing.assert_close(found, expected)


def test_a_head_computes_in_fp32_whatever_comes() -> None:
    head = RewardHead(4, 2, "cpu")
    torch.nn.init.ones_(head.weight)
    hidden = torch.ones(2, 1, 4, dtype=torch.bfloat16)
    rewards = head(hidden, Answers(torch.tensor([2.0]), None, averages=False))
    assert rewards.dtype is torch.float32
    assert rewards.tolist() == [[4.0, 4.0]]


def test_values_are_of_every_position_and_of_one_output() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 2, 4, dtype=torch.bfloat16), RewardHead(4, 1, "cpu")
    with torch.no_grad():
        head.weight.normal_()
        head.bias.fill_(0.25)
    expected = (hidden.float() @ head.weight[0] + 0.25).t()
    torch.testing.assert_close(head.values(hidden), expected)
    with pytest.raises(AssertionError, match="one value"):
        RewardHead(4, 2, "cpu").values(hidden)


STANDARD = {"mean": 2.5, "std": 0.5}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda out: out.mean(-1)),
        ({"attribute_weights": [0.0, 2.0, -1.0]}, lambda out: 2 * out[..., 1] - out[..., 2]),
        (STANDARD, lambda out: (out.mean(-1) - 2.5) / 0.5),
        ({"attribute_weights": (1, 0, 0), **STANDARD}, lambda out: (out[..., 0] - 2.5) / 0.5),
    ],
    ids=["mean", "weighted", "standardized", "one of them, standardized"],
)
def test_a_folded_head_is_merged_and_standardized_outputs(options, expected) -> None:
    model = tiny.llama()
    arch = tiny.architecture(model.config, num_attributes=3)
    arrays = tiny.weights(model, arch)
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 64), torch.randn(3)
    arrays |= {"rm_head.weight": weight.numpy(), "rm_head.bias": bias.numpy()}
    folded = folded_head(tiny.Store(arrays), **options)
    assert set(folded.tensors) == set(arrays)
    batch = tiny.batch()
    with start(ONE, seed=1), torch.no_grad():
        chunks = build_model(
            replace(arch, num_attributes=1), tiny.VOCAB, ONE, precision="fp32",
            settings=ModelSettings(),
        )  # fmt: skip
        load_weights(chunks, folded, replace(arch, num_attributes=1), ONE, tiny.VOCAB)
        hidden = model.model(batch.tokens).last_hidden_state
        outputs = hidden @ weight.T + bias
        torch.testing.assert_close(
            forward_values(chunks[0], batch), expected(outputs), rtol=0, atol=3e-5
        )


def test_a_head_in_bf16_is_folded_in_fp32() -> None:
    weight = torch.tensor([[1.0, 0.5], [3.0, 0.25]])
    raw = weight.bfloat16().view(torch.uint16).numpy()
    arrays = {"rm_head.weight": raw, "rm_head.bias": raw[0].copy()}
    folded = folded_head(tiny.Store(arrays, "bfloat16"))
    assert folded.tensors["rm_head.weight"].dtype == "float32"
    assert folded.read("rm_head.weight").tolist() == [[2.0, 0.375]]
    assert folded.read("rm_head.bias").tolist() == [0.75]


def test_as_many_weights_as_attributes() -> None:
    arrays = {"rm_head.weight": np.ones((3, 4), np.float32), "rm_head.bias": np.ones(3, np.float32)}
    with pytest.raises(ConfigError, match="has 2 weights for 3 attributes"):
        folded_head(tiny.Store(arrays), attribute_weights=[1.0, 1.0])


def test_a_new_head_depends_on_the_seed_alone_and_a_tied_model_gets_an_output_layer() -> None:
    model = tiny.llama(tied=True)
    arch: Architecture = tiny.architecture(model.config, num_attributes=3)
    base = tiny.Store(tiny.weights(model, arch))
    one, again, other = (with_reward_head(base, arch, seed=seed) for seed in (1, 1, 2))
    head = torch.tensor(one.read("rm_head.weight"))
    assert head.shape == (3, 64)
    assert head.std().item() == pytest.approx(arch.init_method_std, rel=0.2)
    assert (one.read("rm_head.weight") == again.read("rm_head.weight")).all()
    assert not (one.read("rm_head.weight") == other.read("rm_head.weight")).any()
    assert not one.read("rm_head.bias").any()
    embedding = base.read("embedding.word_embeddings.weight")
    assert (one.read("output_layer.weight") == embedding).all()
    assert with_reward_head(one, arch, seed=None).tensors == one.tensors
