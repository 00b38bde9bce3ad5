"""Values of every position are a linear layer on transformers' hidden states, gradients too, in every layout."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nemoalign.model.build import ModelSettings
from nemoalign.model.forward import forward_values
from nemoalign.parallel.layout import ParallelLayout
from tests.model import tiny
from tests.model.runs import Job, assert_gradients, joined, one_step
from tests.model.test_layouts import LAYOUTS
from tests.model.test_packs import documents, pack

ONE = ParallelLayout(1)
HEAD = "rm_head."


def squared_error(values):
    return (values - 0.5).square()


def critic(**options) -> tuple[Job, dict[str, np.ndarray], list]:
    """A job without batches, its tensors, and its model and head as transformers and torch know them."""
    model = tiny.llama(layers=4).train()
    torch.manual_seed(3)
    head = torch.nn.Linear(64, 1)
    arch = tiny.architecture(model.config, num_attributes=1)
    arrays = tiny.weights(model, arch)
    for name, tensor in head.named_parameters():
        arrays[HEAD + name] = tensor.detach().numpy().copy()
    settings = ModelSettings(reward_bias_learns=True, **options)
    job = Job(arch, arrays, [], settings, forward=forward_values, objective=squared_error)
    return job, [model, head]


def expected_of(job, model, head, batches):
    """Values of each batch, and gradients of the mean objective over all labels."""
    count = sum((batch.labels >= 0).sum() for batch in batches)
    values = [head(model.model(batch.tokens).last_hidden_state).squeeze(-1) for batch in batches]
    for found, batch in zip(values, batches, strict=True):
        (squared_error(found)[batch.labels >= 0].sum() / count).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    grads["lm_head.weight"] = torch.zeros(0)
    tensors = tiny.canonical(grads, job.arch)
    del tensors["output_layer.weight"]  # it stays, and learns nothing
    for name, tensor in head.named_parameters():
        tensors[HEAD + name] = tensor.grad.numpy()
    return [found.detach() for found in values], tensors


def check(layout, results, values, grads):
    assert any(result.logprobs for result in results)
    for rank, result in enumerate(results):
        expected = values[layout.coordinates(rank).dp :: layout.dp]
        for ours, theirs in zip(result.logprobs, expected, strict=False):
            assert ours.dtype is torch.float32
            assert_close(ours, theirs, rtol=0, atol=5e-6)
    assert_gradients(joined(results, layout), grads)


def below_each_other():
    # 11 positions: sequence parallelism must pad; ragged rows: ranks hold different label counts.
    return [tiny.batch(2, 11, seed=s, ignored=3 + s) for s in range(4)]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_one_rank_equals_torch(recompute) -> None:
    job, models = critic(recompute=recompute)
    job.batches = below_each_other()
    values, grads = expected_of(job, *models, job.batches)
    check(ONE, [one_step(ONE, job)], values, grads)


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_equals_torch(two_ranks, layout) -> None:
    job, models = critic()
    job.batches = below_each_other()
    values, grads = expected_of(job, *models, job.batches)
    check(layout, two_ranks.run(one_step, layout, job), values, grads)


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2 sequence parallel", "pp2"])
def test_packs_have_the_values_of_their_documents(two_ranks, name) -> None:
    job, models = critic()
    # 35 and 26 positions: sequence parallelism must pad one of them.
    parts = [documents(seed=1), documents(seed=20, lengths=(11, 8, 7))]
    values, grads = expected_of(job, *models, [one for part in parts for one in part])
    job.batches = [pack(part) for part in parts]
    values = [torch.cat(values[:4], 1), torch.cat(values[4:], 1)]
    check(LAYOUTS[name], two_ranks.run(one_step, LAYOUTS[name], job), values, grads)


@pytest.mark.dist
def test_the_gradient_norm_does_not_depend_on_the_layout(two_ranks) -> None:
    job, _ = critic()
    job.batches, job.steps = below_each_other(), 2
    one = one_step(ONE, job)
    for name in ("tp2", "tp2 sequence parallel", "pp2"):
        results = two_ranks.run(one_step, LAYOUTS[name], job)
        assert results[0].grad_norm == pytest.approx(one.grad_norm, rel=1e-5), name
        assert results[-1].losses == pytest.approx(one.losses, rel=1e-4), name


def test_a_model_in_bf16_has_values_in_fp32() -> None:
    job, models = critic()
    job.batches, job.precision = below_each_other()[:1], "bf16"
    values, _ = expected_of(job, *models, job.batches)
    found = one_step(ONE, job).logprobs[0]
    assert found.dtype is torch.float32
    assert_close(found, values[0], rtol=0, atol=0.1)
