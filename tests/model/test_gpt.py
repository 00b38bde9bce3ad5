import pytest
import torch
from megatron.core.models.gpt import GPTModel
from torch.testing import assert_close

from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logprobs
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny

ONE = ParallelLayout(1)


@pytest.fixture
def llama_pair():
    theirs = tiny.llama()
    arch = tiny.architecture(theirs.config)
    with start(ONE, seed=1):
        chunks = build_model(arch, tiny.VOCAB, ONE, precision="fp32", settings=ModelSettings())
        load_weights(chunks, tiny.Store(tiny.weights(theirs, arch)), arch, ONE, tiny.VOCAB)
        yield chunks[0], theirs


def test_the_model_is_megatron_cores(llama_pair):
    assert isinstance(llama_pair[0], GPTModel)


def test_only_labelled_positions_reach_the_output_layer(llama_pair):
    ours, theirs = llama_pair
    batch = tiny.batch()
    seen = []
    ours.output_layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    logprobs = ours(batch.tokens, batch.position_ids, None, labels=batch.labels)
    assert seen == [((batch.labels >= 0).sum(), 1, 64)]
    expected = tiny.label_logprobs(theirs(batch.tokens).logits, batch.labels)
    assert_close(logprobs, expected, rtol=0, atol=3e-6)


def test_a_batch_without_any_label_gives_zeros_and_a_graph(llama_pair):
    ours, _ = llama_pair
    batch = tiny.batch()
    logprobs = ours(
        batch.tokens, batch.position_ids, None, labels=torch.full_like(batch.labels, -100)
    )
    assert not logprobs.any()
    logprobs.sum().backward()
    assert not ours.output_layer.weight.grad.any()


def test_other_numbers_of_a_label_follow_its_logprob_and_none_without_a_label(llama_pair):
    ours, theirs = llama_pair
    batch = tiny.batch()
    ours.beside = (lambda logits, size: logits[:, 0], lambda logits, size: logits[:, size - 1])
    found = ours(batch.tokens, batch.position_ids, None, labels=batch.labels)
    logits, known = theirs(batch.tokens).logits, batch.labels >= 0
    expected = torch.stack([logits[..., 0], logits[..., -1]], -1).where(known[..., None], 0.0)
    assert_close(found[..., 0], tiny.label_logprobs(logits, batch.labels), rtol=0, atol=3e-6)
    assert_close(found[..., 1:], expected, rtol=0, atol=3e-6)
    nothing = ours(
        batch.tokens, batch.position_ids, None, labels=torch.full_like(batch.labels, -100)
    )
    assert nothing.shape == found.shape
    assert not nothing.any()


def test_padding_rows_of_the_vocabulary_get_no_gradient(llama_pair):
    ours, _ = llama_pair
    batch = tiny.batch()
    ours(batch.tokens, batch.position_ids, None, labels=batch.labels).sum().backward()
    for weight in (ours.output_layer.weight, ours.embedding.word_embeddings.weight):
        assert weight.shape[0] == 640
        assert not weight.grad[tiny.VOCAB :].any()


def test_nemos_softmax_counts_the_padding_columns():
    model = tiny.llama()
    arch, layout = tiny.architecture(model.config), ParallelLayout(1)
    batch = tiny.batch()
    with start(layout, seed=1):
        (chunk,) = build_model(
            arch, tiny.VOCAB, layout, precision="fp32",
            settings=ModelSettings(softmax_over_padding=True),
        )  # fmt: skip
        load_weights([chunk], tiny.Store(tiny.weights(model, arch)), arch, layout, tiny.VOCAB)
        ours = forward_logprobs(chunk, batch)
    padding = arch.padded_vocab_size(tiny.VOCAB, 1) - tiny.VOCAB
    assert padding > 0
    # Rows of padding are zero, and so are their logits.
    logits = torch.nn.functional.pad(model(batch.tokens).logits, (0, padding))
    assert_close(ours, tiny.label_logprobs(logits, batch.labels), rtol=0, atol=5e-6)
