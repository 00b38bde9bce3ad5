import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from nemoalign.parallel import vocabulary
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.logprobs import vocab_parallel_concentration, vocab_parallel_logprobs
from nemoalign.parallel.state import start

ORACLE = json.loads((Path(__file__).parents[1] / "fixtures/vectors/tp_logprobs.json").read_text())
VOCAB = 519


def _plain(logits, labels, vocab_size):
    """Log-softmax over the real vocabulary, in double precision."""
    table = logits[..., :vocab_size].double().log_softmax(-1)
    chosen = table.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.where(labels >= 0, 0.0)


def _tiny(columns=768, dtype=torch.float32):
    torch.manual_seed(3)
    logits = (torch.randn(2, 9, columns) * 5).to(dtype)
    labels = torch.randint(0, VOCAB, (2, 9))
    labels[0, :4] = -100
    labels[1, 0], labels[1, 1] = VOCAB - 1, 0
    return logits, labels, torch.randn(2, 9)


def _with_gradient(logits, labels, weights, vocab_size, **options):
    logits = logits.clone().requires_grad_()
    result = vocab_parallel_logprobs(logits, labels, vocab_size, **options)
    (result * weights).sum().backward()
    return result.detach(), logits.grad


def _sharded(layout, logits, labels, weights, vocab_size):
    with start(layout, seed=1):
        rank = torch.distributed.get_rank()
        return _with_gradient(
            logits.chunk(layout.tp, -1)[rank], labels, weights, vocab_size, reuse_logits=rank == 0
        )


def _expected(logits, labels, weights, vocab_size):
    logits = logits.double().requires_grad_()
    result = _plain(logits, labels, vocab_size)
    (result * weights).sum().backward()
    return result.detach(), logits.grad


@pytest.mark.parametrize("reuse_logits", [False, True])
@pytest.mark.parametrize("chunk_elements", [1, 2000, 1 << 20])
def test_one_rank_equals_log_softmax_of_the_real_vocabulary(
    monkeypatch, reuse_logits, chunk_elements
):
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", chunk_elements)
    logits, labels, weights = _tiny()
    ours, grad = _with_gradient(logits, labels, weights, VOCAB, reuse_logits=reuse_logits)
    expected, expected_grad = _expected(logits, labels, weights, VOCAB)
    assert_close(ours.double(), expected, rtol=0, atol=3e-6)
    assert_close(grad.double(), expected_grad, rtol=0, atol=2e-6)
    assert (grad[..., VOCAB:] == 0).all()


def test_bf16_logits_lose_nothing_but_the_rounding_of_the_gradient():
    logits, labels, weights = _tiny(dtype=torch.bfloat16)
    ours, grad = _with_gradient(logits, labels, weights, VOCAB)
    expected, expected_grad = _expected(logits, labels, weights, VOCAB)
    assert ours.dtype is torch.float32
    assert_close(ours.double(), expected, rtol=0, atol=3e-6)
    assert_close(grad.double(), expected_grad, rtol=2**-8, atol=2e-6)


def test_padding_columns_do_not_matter():
    logits, labels, weights = _tiny()
    wild = logits.clone()
    wild[..., VOCAB:] = 1e4
    for one, other in zip(
        _with_gradient(logits, labels, weights, VOCAB),
        _with_gradient(wild, labels, weights, VOCAB),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_negative_label_gives_zero_and_no_gradient():
    logits, labels, weights = _tiny()
    ours, grad = _with_gradient(logits, labels, weights, VOCAB)
    assert (ours[0, :4] == 0).all()
    assert (grad[0, :4] == 0).all()


@pytest.mark.dist
@pytest.mark.parametrize("vocab_size", [VOCAB, 300], ids=["both shards", "one shard all padding"])
def test_two_shards_equal_log_softmax(two_ranks, vocab_size):
    logits, labels, weights = _tiny()
    labels = labels.clamp(max=vocab_size - 1)
    results = two_ranks.run(_sharded, ParallelLayout(2, tp=2), logits, labels, weights, vocab_size)
    expected, expected_grad = _expected(logits, labels, weights, vocab_size)
    for ours, _ in results:
        assert_close(ours.double(), expected, rtol=0, atol=3e-6)
    grad = torch.cat([grad for _, grad in results], -1)
    assert_close(grad.double(), expected_grad, rtol=0, atol=2e-6)


def _oracle_inputs():
    logits = torch.tensor(ORACLE["logits"])
    # The reference takes unshifted tokens and gives one column less.
    labels = torch.tensor(ORACLE["target"]).roll(-1, 1)
    labels[:, -1] = -100
    weights = torch.zeros(labels.shape)
    count = labels[:, :-1].numel()
    weights[:, :-1] = torch.arange(1.0, count + 1).view(labels.shape[0], -1)
    return logits, labels, weights


def test_one_rank_equals_nemo_aligners_numbers():
    logits, labels, weights = _oracle_inputs()
    ours, grad = _with_gradient(logits, labels, weights, logits.shape[-1])
    assert_close(ours[:, :-1], torch.tensor(ORACLE["logprobs"]), rtol=0, atol=2e-6)
    assert_close(grad, torch.tensor(ORACLE["grad"]), rtol=0, atol=2e-6)


@pytest.mark.dist
def test_two_shards_equal_nemo_aligners_numbers(two_ranks):
    logits, labels, weights = _oracle_inputs()
    layout = ParallelLayout(2, tp=2)
    results = two_ranks.run(_sharded, layout, logits, labels, weights, logits.shape[-1])
    for ours, _ in results:
        assert_close(ours[:, :-1], torch.tensor(ORACLE["logprobs"]), rtol=0, atol=2e-6)
    grad = torch.cat([grad for _, grad in results], -1)
    assert_close(grad, torch.tensor(ORACLE["grad"]), rtol=0, atol=2e-6)


def _concentrations(layout, logits, vocab_size):
    with start(layout, seed=1):
        rank = torch.distributed.get_rank()
        return vocab_parallel_concentration(logits.chunk(layout.tp, -1)[rank], vocab_size)


def test_concentration_is_the_log_of_squared_probabilities_in_every_layout(two_ranks) -> None:
    logits = _tiny()[0].flatten(0, 1)
    expected = logits[:, :VOCAB].double().log_softmax(-1).mul(2).logsumexp(-1).float()
    assert_close(vocab_parallel_concentration(logits, VOCAB), expected, atol=1e-5, rtol=1e-5)
    for found in two_ranks.run(_concentrations, ParallelLayout(2, tp=2), logits, VOCAB):
        assert_close(found, expected, atol=1e-5, rtol=1e-5)
