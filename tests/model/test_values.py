"""Values of every position are a linear layer on transformers' hidden states, gradients too, in every layout.

They come from a critic's own model, or from a policy's beside log-probs and entropies.
"""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from nemoalign.model.build import ModelSettings
from nemoalign.model.forward import forward_entropies, forward_logprobs, forward_values
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from tests.model import tiny
from tests.model.runs import Job, assert_gradients, joined, one_step
from tests.model.test_layouts import LAYOUTS
from tests.model.test_packs import documents, pack

ONE = ParallelLayout(1)
HEAD = "rm_head."
LOGPROBS = partial(forward_logprobs, with_values=True)
ENTROPIES = partial(forward_entropies, learned=True, with_values=True)


def squared_error(values):
    return (values - 0.5).square()


def likely_and_valued(output):
    """Of log-probs, entropies where they were asked for, and values, all of which learn."""
    entropies = 0.3 * output[..., 1] if output.shape[-1] == 3 else 0.0
    return squared_error(output[..., -1]) - output[..., 0] - entropies


def a_head():
    torch.manual_seed(3)
    return torch.nn.Linear(64, 1)


def critic(**options) -> tuple[Job, list]:
    """A job without batches, and its model and head as transformers and torch know them."""
    model, head = tiny.llama(layers=4).train(), a_head()
    arch = tiny.architecture(model.config, num_attributes=1)
    arrays = tiny.weights(model, arch)
    for name, tensor in head.named_parameters():
        arrays[HEAD + name] = tensor.detach().numpy().copy()
    settings = ModelSettings(reward_bias_learns=True, **options)
    job = Job(arch, arrays, [], settings, forward=forward_values, objective=squared_error)
    return job, [model, head]


def policy(forward, *, tied=False, **options) -> tuple[Job, list]:
    """The same of a policy with a value head, which is in no checkpoint: it is given its numbers here."""
    model = tiny.llama(layers=4, tied=tied).train()
    arch = tiny.architecture(model.config)
    settings = ModelSettings(value_head=True, **options)
    job = Job(
        arch, tiny.weights(model, arch), [], settings, forward=forward, prepare=give_head,
        objective=likely_and_valued,
    )  # fmt: skip
    return job, [model, a_head()]


def give_head(chunks):
    for chunk in chunks:
        if chunk.post_process:
            assert not chunk.value_head.weight.any()
            chunk.value_head.load_state_dict(a_head().state_dict())


def outputs_of(job, model, head, batch):
    """What the job's forward returns, by transformers and torch."""
    values = head(model.model(batch.tokens).last_hidden_state).squeeze(-1)
    if job.forward is forward_values:
        return values
    table = model(batch.tokens).logits.log_softmax(-1)
    entropies = (-(table.exp() * table).sum(-1)).where(batch.labels >= 0, 0.0)
    entropies = [] if job.forward is LOGPROBS else [entropies]
    return torch.stack([tiny.label_logprobs(table, batch.labels), *entropies, values], -1)


def expected_of(job, model, head, batches):
    """Outputs for each batch, and gradients of the mean objective over all labels."""
    count = sum((batch.labels >= 0).sum() for batch in batches)
    outputs = [outputs_of(job, model, head, batch) for batch in batches]
    for found, batch in zip(outputs, batches, strict=True):
        (job.objective(found)[batch.labels >= 0].sum() / count).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    is_critic = job.arch.num_attributes == 1
    grads.setdefault("lm_head.weight", torch.zeros(0))
    tensors = tiny.canonical(grads, job.arch)
    if is_critic:
        del tensors["output_layer.weight"]  # it stays, and learns nothing
    for name, tensor in head.named_parameters():
        tensors[("rm_head." if is_critic else "value_head.") + name] = tensor.grad.numpy()
    return [found.detach() for found in outputs], tensors


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


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("forward", [LOGPROBS, ENTROPIES], ids=["log-probs", "entropies"])
def test_values_beside_log_probs_equal_torch(forward, tied) -> None:
    job, models = policy(forward, tied=tied)
    job.batches = below_each_other()
    found, grads = expected_of(job, *models, job.batches)
    check(ONE, [one_step(ONE, job)], found, grads)


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_values_beside_log_probs_equal_torch_in_every_layout(two_ranks, layout) -> None:
    job, models = policy(ENTROPIES)
    job.batches = below_each_other()
    found, grads = expected_of(job, *models, job.batches)
    check(layout, two_ranks.run(one_step, layout, job), found, grads)


def test_a_policys_head_learns_beside_adapters_and_starts_at_zero() -> None:
    job, _ = policy(LOGPROBS)
    job.batches, job.lora, job.prepare = below_each_other(), LoraSettings(adapter_dim=2), list
    result = one_step(ONE, job)
    assert not any(found[..., 1].any() for found in result.logprobs)
    learning = set(result.grads)
    assert {"value_head.weight", "value_head.bias"} < learning
    assert all("adapter_layer" in name or name.startswith("value_head.") for name in learning)
    assert result.grads["value_head.weight"][1].any()


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
