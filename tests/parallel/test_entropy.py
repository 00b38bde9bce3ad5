"""Entropies and their gradients, against the softmax of gathered logits."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from nemoalign.parallel import vocabulary
from nemoalign.parallel.entropy import vocab_parallel_entropy
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

ORACLE = json.loads((Path(__file__).parents[1] / "fixtures/vectors/ppo_losses.json").read_text())
VOCAB = 519


def _tiny(columns=768, dtype=torch.float32):
    torch.manual_seed(3)
    # From nearly uniform rows to rows of a single token.
    logits = torch.randn(18, columns) * torch.logspace(-3, 2, 18)[:, None]
    return logits.to(dtype), torch.randn(18)


def _with_gradient(logits, weights, vocab_size):
    logits = logits.clone().requires_grad_()
    result = vocab_parallel_entropy(logits, vocab_size)
    (result * weights).sum().backward()
    return result.detach(), logits.grad


def _expected(logits, weights, vocab_size):
    logits = logits.double().requires_grad_()
    table = logits[:, :vocab_size].log_softmax(-1)
    result = -(table.exp() * table).sum(-1)
    (result * weights).sum().backward()
    return result.detach(), logits.grad


def _sharded(layout, logits, weights, vocab_size):
    with start(layout, seed=1):
        rank = torch.distributed.get_rank()
        return _with_gradient(logits.chunk(layout.tp, -1)[rank], weights, vocab_size)


@pytest.mark.parametrize("chunk_elements", [1, 2000, 1 << 20])
def test_one_rank_equals_the_entropy_of_the_real_vocabulary(monkeypatch, chunk_elements) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk_elements)
    logits, weights = _tiny()
    ours, grad = _with_gradient(logits, weights, VOCAB)
    expected, expected_grad = _expected(logits, weights, VOCAB)
    assert ours.dtype is torch.float32
    assert_close(ours.double(), expected, rtol=0, atol=3e-6)
    assert_close(grad.double(), expected_grad, rtol=0, atol=2e-6)
    assert (grad[:, VOCAB:] == 0).all()


@pytest.mark.dist
@pytest.mark.parametrize("vocab_size", [VOCAB, 300], ids=["both shards", "one shard all padding"])
def test_two_shards_equal_the_entropy_of_gathered_logits(two_ranks, vocab_size) -> None:
    logits, weights = _tiny()
    results = two_ranks.run(_sharded, ParallelLayout(2, tp=2), logits, weights, vocab_size)
    expected, expected_grad = _expected(logits, weights, vocab_size)
    for ours, _ in results:
        assert_close(ours.double(), expected, rtol=0, atol=3e-6)
    grad = torch.cat([grad for _, grad in results], -1)
    assert_close(grad.double(), expected_grad, rtol=0, atol=2e-6)


def test_bf16_logits_lose_nothing_but_the_rounding_of_the_gradient() -> None:
    logits, weights = _tiny(dtype=torch.bfloat16)
    ours, grad = _with_gradient(logits, weights, VOCAB)
    expected, expected_grad = _expected(logits, weights, VOCAB)
    assert ours.dtype is torch.float32
    assert grad.dtype is torch.bfloat16
    assert_close(ours.double(), expected, rtol=0, atol=3e-6)
    assert_close(grad.double(), expected_grad, rtol=2**-8, atol=2e-6)


def test_four_equal_chances_are_two_bits_and_certainty_is_none() -> None:
    logits = torch.zeros(2, 4)
    logits[1, 2] = 1e4
    found = vocab_parallel_entropy(logits, 4) / math.log(2)
    assert found.tolist() == [2.0, 0.0]


def test_the_masked_mean_is_nemo_aligners() -> None:
    logits = torch.tensor(ORACLE["logits"])[:, :-1]
    mask = torch.tensor(ORACLE["mask"])
    found = vocab_parallel_entropy(logits.flatten(0, 1), logits.shape[-1]).view(mask.shape)
    mean = (found * mask).sum() / mask.sum()
    assert mean.item() == pytest.approx(ORACLE["masked_entropy"], abs=2e-6)


def test_what_only_watches_keeps_nothing() -> None:
    logits = _tiny()[0].requires_grad_()
    with torch.no_grad():
        assert vocab_parallel_entropy(logits, VOCAB).grad_fn is None
