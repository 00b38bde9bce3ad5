"""Documents laid end to end compute what each computes alone; the expected numbers are transformers'."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import MixtralForCausalLM

from nemoalign.config.architecture import Architecture
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.checkpoint.models import FIXTURES
from tests.families.test_gemma2 import save_gemma2
from tests.model import tiny
from tests.model.runs import Job, assert_gradients, joined, one_step
from tests.model.test_layers import loaded
from tests.model.test_layouts import LAYOUTS, reference
from tests.model.test_spec import COMMON, FAMILIES, family_canonical, family_model

ONE = ParallelLayout(1)
LENGTHS = (12, 9, 9, 5)


def pack(documents):
    """Return batches of one row each as one row."""
    lengths = tuple(part.tokens.shape[1] for part in documents)
    names = ("tokens", "labels", "position_ids")
    joint = {name: torch.cat([vars(part)[name] for part in documents], 1) for name in names}
    return SimpleNamespace(**joint, documents=lengths)


def documents(seed=1, lengths=LENGTHS, vocab=tiny.VOCAB):
    made = [tiny.batch(1, length, seed=seed + n, ignored=3) for n, length in enumerate(lengths)]
    for part in made:
        part.tokens %= vocab
    return made


def pack_logits(arch, arrays, batch):
    with start(ONE, seed=1), torch.no_grad():
        (model,) = build_model(arch, tiny.VOCAB, ONE, precision="fp32", settings=ModelSettings())
        load_weights([model], tiny.Store(arrays), arch, ONE, tiny.VOCAB)
        return forward_logits(model, batch)[..., : tiny.VOCAB]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_documents_alone(family):
    config, fields = FAMILIES[family]
    model = family_model(config)
    arch = Architecture(**{**COMMON, **fields})
    parts = documents()
    found = pack_logits(arch, family_canonical(model.state_dict(), arch), pack(parts))
    with torch.no_grad():
        alone = torch.cat([model(part.tokens).logits for part in parts], 1)
        together = model(pack(parts).tokens).logits
    assert_close(found, alone, rtol=0, atol=2e-6)
    assert (found - together).abs().max() > 1e-3, (
        "the documents must differ when they see each other"
    )


def test_windows_under_capped_scores_stay_in_their_document(tmp_path):
    model = save_gemma2(tmp_path / "hf")
    parts = documents(lengths=(20, 17, 17, 5), vocab=64)
    with start(ONE, seed=1), torch.no_grad():
        found = forward_logits(loaded(tmp_path / "hf").eval(), pack(parts))
        alone = torch.cat([model(part.tokens).logits for part in parts], 1)
    assert_close(found[..., :64], alone, rtol=0, atol=1e-6)


def test_experts_are_chosen_by_the_token_alone():
    model = MixtralForCausalLM.from_pretrained(FIXTURES / "hf_mixtral")
    parts = documents(vocab=64)
    with start(ONE, seed=1), torch.no_grad():
        found = forward_logits(loaded(FIXTURES / "hf_mixtral").eval(), pack(parts))
        alone = torch.cat([model(part.tokens).logits for part in parts], 1)
    assert_close(found[..., :64], alone, rtol=0, atol=1e-6)


def test_no_bit_of_a_document_depends_on_its_neighbours():
    model = tiny.llama()
    arch = tiny.architecture(model.config)
    arrays = tiny.weights(model, arch)
    first, second = documents(seed=1), documents(seed=50)
    second[1] = first[1]
    start_, end = LENGTHS[0], LENGTHS[0] + LENGTHS[1]
    ours, others = (pack_logits(arch, arrays, pack(parts)) for parts in (first, second))
    assert torch.equal(ours[:, start_:end], others[:, start_:end])
    assert not torch.equal(ours[:, :start_], others[:, :start_])


def _job(**options):
    model = tiny.llama(layers=4)
    arch = tiny.architecture(model.config)
    # 35 and 26 positions: sequence parallelism must pad one of them.
    parts = [documents(seed=1), documents(seed=20, lengths=(11, 8, 7))]
    logprobs, grads = reference(model, [part for pack_ in parts for part in pack_])
    joint = [torch.cat(logprobs[:4], 1), torch.cat(logprobs[4:], 1)]
    job = Job(arch, tiny.weights(model, arch), [pack(p) for p in parts], **options)
    return job, joint, tiny.canonical(grads, arch)


def _assert_equal(layout, results, logprobs, grads):
    for rank, result in enumerate(results):
        if result.logprobs:
            expected = logprobs[layout.coordinates(rank).dp :: layout.dp]
            for ours, theirs in zip(result.logprobs, expected, strict=True):
                assert_close(ours, theirs, rtol=0, atol=5e-6)
    assert_gradients(joined(results, layout), grads)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_gradients_are_those_of_the_documents(recompute):
    job, logprobs, grads = _job(settings=ModelSettings(recompute=recompute))
    _assert_equal(ONE, [one_step(ONE, job)], logprobs, grads)


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_every_layout_computes_the_documents(two_ranks, layout, recompute):
    job, logprobs, grads = _job(settings=ModelSettings(recompute=recompute))
    _assert_equal(layout, two_ranks.run(one_step, layout, job), logprobs, grads)


def test_learned_positions_start_anew_in_gradients_too():
    config, fields = FAMILIES["gpt2 learned positions"]
    model = family_model(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arch = Architecture(**{**COMMON, **fields})
    parts = documents()
    arrays = family_canonical(model.state_dict(), arch)
    logprobs, grads = reference(model, parts)
    result = one_step(ONE, Job(arch, arrays, [pack(parts)]))
    assert_close(result.logprobs[0], torch.cat(logprobs, 1), rtol=0, atol=5e-6)
    expected = family_canonical(grads, arch)
    assert_gradients(joined([result], ONE), expected)
    name = "embedding.position_embeddings.weight"
    assert np.any(expected[name][: max(LENGTHS)])
    assert not np.any(joined([result], ONE)[name][max(LENGTHS) :])
