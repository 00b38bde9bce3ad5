import pytest
import torch
from torch.testing import assert_close

from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import (
    forward_concentrations,
    forward_entropies,
    forward_logits,
    forward_logprobs,
)
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.test_layouts import LAYOUTS

ONE = ParallelLayout(1)


def _forward(layout, arch, arrays, batch):
    with start(layout, seed=1), torch.no_grad():
        (model,) = build_model(arch, tiny.VOCAB, layout, precision="fp32", settings=ModelSettings())
        load_weights([model], tiny.Store(arrays), arch, layout, tiny.VOCAB)
        return forward_logprobs(model, batch), forward_logits(model, batch)


@pytest.fixture(scope="module")
def llama_arrays():
    model = tiny.llama()
    arch = tiny.architecture(model.config)
    return model, arch, tiny.weights(model, arch)


def test_logprobs_and_logits_are_those_of_transformers(llama_arrays):
    model, arch, arrays = llama_arrays
    batch = tiny.batch()
    logprobs, logits = _forward(ONE, arch, arrays, batch)
    with torch.no_grad():
        expected = model(batch.tokens).logits
    assert torch.equal(logits[..., : tiny.VOCAB], expected)
    assert_close(logprobs, tiny.label_logprobs(expected, batch.labels), rtol=0, atol=3e-6)
    assert logprobs.dtype is torch.float32
    assert not logprobs[batch.labels < 0].any()


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2", "tp2 sequence parallel"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_odd_length_works_in_every_layout(two_ranks, llama_arrays, name, masked):
    _, arch, arrays = llama_arrays
    batch = tiny.batch(length=11)
    if masked:
        # Two rows packed into one: positions 6 and later do not see what came before.
        hidden = torch.ones(11, 11, dtype=torch.bool).triu(1)
        hidden[6:, :6] = True
        batch.attention_mask = hidden[None, None]
    expected_logprobs, expected_logits = _forward(ONE, arch, arrays, batch)
    results = two_ranks.run(_forward, LAYOUTS[name], arch, arrays, batch)
    for logprobs, _ in results:
        assert_close(logprobs, expected_logprobs, rtol=0, atol=3e-6)
    whole = torch.cat([logits for _, logits in results], -1)[..., : tiny.VOCAB]
    assert_close(whole, expected_logits[..., : tiny.VOCAB], rtol=0, atol=3e-6)


def test_a_block_mask_keeps_packed_rows_apart(llama_arrays):
    model, arch, arrays = llama_arrays
    batch = tiny.batch(rows=1, length=10, ignored=0)
    hidden = torch.ones(10, 10, dtype=torch.bool).triu(1)
    hidden[6:, :6] = True
    batch.attention_mask = hidden[None, None]
    _, logits = _forward(ONE, arch, arrays, batch)
    with torch.no_grad():
        alone = torch.cat([model(part).logits for part in batch.tokens.split([6, 4], 1)], 1)
    assert_close(logits[..., : tiny.VOCAB], alone, rtol=0, atol=5e-6)


def _weights(batch):
    return torch.linspace(-1, 2, batch.labels.numel() * 2).view(*batch.labels.shape, 2)


def _entropies(layout, arch, arrays, batch, learned):
    """Log-probs with entropies, and the gradients of a weighted sum at both ends of the model."""
    with start(layout, seed=1):
        (model,) = build_model(arch, tiny.VOCAB, layout, precision="fp32", settings=ModelSettings())
        load_weights([model], tiny.Store(arrays), arch, layout, tiny.VOCAB)
        found = forward_entropies(model, batch, learned=learned)
        (found * _weights(batch)).sum().backward()
        ends = model.output_layer.weight, model.embedding.word_embeddings.weight
        return found.detach(), *(weight.grad for weight in ends)


def _expected_entropies(model, batch, learned):
    model.zero_grad()
    table = model(batch.tokens).logits.log_softmax(-1)
    entropies = -(table.exp() * table).sum(-1)
    known = (
        tiny.label_logprobs(table, batch.labels),
        (entropies if learned else entropies.detach()).where(batch.labels >= 0, 0.0),
    )
    found = torch.stack(known, -1)
    (found * _weights(batch)).sum().backward()
    return found.detach(), model.lm_head.weight.grad, model.model.embed_tokens.weight.grad


@pytest.mark.dist
@pytest.mark.parametrize("learned", [False, True], ids=["watched", "learned"])
@pytest.mark.parametrize("name", ["one rank", "tp2", "tp2 sequence parallel"])
def test_entropies_stand_beside_logprobs_and_teach_if_asked(two_ranks, llama_arrays, name, learned):
    model, arch, arrays = llama_arrays
    batch = tiny.batch(length=11)
    expected = _expected_entropies(model, batch, learned)
    if name == "one rank":
        results = [_entropies(ONE, arch, arrays, batch, learned)]
    else:
        results = two_ranks.run(_entropies, LAYOUTS[name], arch, arrays, batch, learned)
    for found, *_ in results:
        assert_close(found, expected[0], rtol=0, atol=5e-6)
        assert not found[batch.labels < 0].any()
    for ours, theirs in zip(list(zip(*results, strict=True))[1:], expected[1:], strict=True):
        whole = torch.cat(ours)[: tiny.VOCAB]
        assert_close(whole, theirs, rtol=0, atol=float(2e-6 * theirs.abs().max()))


def test_what_was_asked_for_once_is_not_asked_for_again(llama_arrays):
    _, arch, arrays = llama_arrays
    batch = tiny.batch()
    with start(ONE, seed=1), torch.no_grad():
        (model,) = build_model(arch, tiny.VOCAB, ONE, precision="fp32", settings=ModelSettings())
        load_weights([model], tiny.Store(arrays), arch, ONE, tiny.VOCAB)
        plain = forward_logprobs(model, batch)
        for found in (
            forward_entropies(model, batch, learned=True),
            forward_concentrations(model, batch),
        ):
            assert torch.equal(found[..., 0], plain)
            assert torch.equal(forward_logprobs(model, batch), plain)
