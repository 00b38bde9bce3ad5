"""Every layout computes what transformers computes: losses and gradients of one global batch."""

import pytest
import torch
from torch.testing import assert_close

from nemoalign.config.architecture import Architecture
from nemoalign.model.build import ModelSettings
from nemoalign.parallel.layout import ParallelLayout
from tests.model import tiny
from tests.model.runs import Job, Result, assert_gradients, joined, one_step
from tests.model.test_spec import COMMON, FAMILIES, family_canonical, family_model

LAYOUTS = {
    "tp2": ParallelLayout(2, tp=2),
    "tp2 sequence parallel": ParallelLayout(2, tp=2, sequence_parallel=True),
    "pp2": ParallelLayout(2, pp=2),
    "pp2 vp2": ParallelLayout(2, pp=2, vp=2),
    "dp2": ParallelLayout(2),
}


def reference(model, batches):
    """Log-probs of each batch and gradients of the mean loss over all labels, by transformers."""
    model = model.train()
    logprobs = [
        tiny.label_logprobs(model(b.tokens, attention_mask=None).logits, b.labels) for b in batches
    ]
    count = sum((b.labels >= 0).sum() for b in batches)
    (-sum(part.sum() for part in logprobs) / count).backward()
    tensors = {name: p.grad for name, p in model.named_parameters()}
    return [part.detach() for part in logprobs], tensors


def _job(*, tied=False, **options) -> tuple[Job, list[torch.Tensor], dict]:
    model = tiny.llama(tied=tied, layers=4)
    arch = tiny.architecture(model.config)
    # 11 positions: sequence parallelism must pad; ragged rows: ranks hold different label counts.
    batches = [tiny.batch(2, 11, seed=s, ignored=3 + s) for s in range(4)]
    arrays = tiny.weights(model, arch)
    logprobs, grads = reference(model, batches)
    return Job(arch, arrays, batches, **options), logprobs, tiny.canonical(grads, arch)


def _assert_equal(layout, results: list[Result], logprobs, grads):
    assert any(result.logprobs for result in results)
    for rank, result in enumerate(results):
        if result.logprobs:
            expected = logprobs[layout.coordinates(rank).dp :: layout.dp]
            for ours, theirs in zip(result.logprobs, expected, strict=True):
                assert_close(ours, theirs, rtol=0, atol=5e-6)
    assert_gradients(joined(results, layout), grads)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_one_rank_equals_transformers(tied, recompute):
    job, logprobs, grads = _job(tied=tied, settings=ModelSettings(recompute=recompute))
    layout = ParallelLayout(1)
    _assert_equal(layout, [one_step(layout, job)], logprobs, grads)


@pytest.mark.dist
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_equals_transformers(two_ranks, layout, tied):
    job, logprobs, grads = _job(tied=tied)
    _assert_equal(layout, two_ranks.run(one_step, layout, job), logprobs, grads)


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2", "tp2 sequence parallel", "pp2"])
@pytest.mark.parametrize("family", ["gpt2 learned positions", "qwen3 head norms"])
def test_biases_positions_and_head_norms_equal_transformers_too(two_ranks, family, name):
    config, fields = FAMILIES[family]
    model = family_model(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arch = Architecture(**{**COMMON, **fields})
    batches = [tiny.batch(2, 12, seed=s, ignored=3 + s) for s in range(2)]
    arrays = family_canonical(model.state_dict(), arch)
    logprobs, grads = reference(model, batches)
    results = two_ranks.run(one_step, LAYOUTS[name], Job(arch, arrays, batches))
    _assert_equal(LAYOUTS[name], results, logprobs, family_canonical(grads, arch))


@pytest.mark.dist
def test_recompute_changes_nothing_under_sequence_parallelism(two_ranks):
    layout = LAYOUTS["tp2 sequence parallel"]
    job, logprobs, grads = _job(settings=ModelSettings(recompute="full"))
    _assert_equal(layout, two_ranks.run(one_step, layout, job), logprobs, grads)


@pytest.mark.dist
def test_gradient_norm_and_steps_do_not_depend_on_the_layout(two_ranks):
    job, _, grads = _job(steps=2)
    one = one_step(ParallelLayout(1), job)
    norm = sum((grad**2).sum() for grad in grads.values()) ** 0.5
    assert one.grad_norm == pytest.approx(norm, rel=1e-5)
    for name in ("tp2", "tp2 sequence parallel", "pp2"):
        results = two_ranks.run(one_step, LAYOUTS[name], job)
        assert results[0].grad_norm == pytest.approx(norm, rel=1e-5), name
        assert results[-1].losses == pytest.approx(one.losses, rel=1e-5), name


@pytest.mark.dist
def test_dropout_is_recomputed_as_it_was_drawn(two_ranks):
    layout = LAYOUTS["tp2 sequence parallel"]
    norms = []
    for recompute in ("none", "full"):
        settings = ModelSettings(hidden_dropout=0.1, attention_dropout=0.1, recompute=recompute)
        job, _, _ = _job(settings=settings, steps=1)
        norms.append(two_ranks.run(one_step, layout, job)[0].grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    job, _, grads = _job()
    without = sum((grad**2).sum() for grad in grads.values()) ** 0.5
    assert norms[0] != pytest.approx(without, rel=1e-3)


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2 sequence parallel", "pp2", "dp2"])
def test_bf16_steps_follow_fp32_within_its_rounding(two_ranks, name):
    layout = LAYOUTS[name]
    exact, _, _ = _job(steps=2)
    rounded, _, _ = _job(steps=2, precision="bf16")
    expected = one_step(ParallelLayout(1), exact)
    results = two_ranks.run(one_step, layout, rounded)
    # Summed log-probs: equal on tp ranks, on the last stage only, and shared out over dp ranks.
    losses = results[-1].losses
    if layout.dp == 2:
        losses = [a + b for a, b in zip(results[0].losses, losses, strict=True)]
    assert losses == pytest.approx(expected.losses, rel=2e-2)
    assert results[0].grad_norm == pytest.approx(expected.grad_norm, rel=2e-2)
    assert expected.losses[1] > expected.losses[0]
