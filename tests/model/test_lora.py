from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nemoalign.model.build import ModelSettings
from nemoalign.model.forward import forward_logits
from nemoalign.model.lora import adapters_disabled
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.adapted import (
    ALL,
    ONE,
    RANK,
    built,
    fresh_adapters,
    pairs,
    tiny_arrays,
    trained_adapters,
)
from tests.model.runs import Job, assert_gradients, joined, one_step
from tests.model.test_layouts import LAYOUTS, reference


def _merged_llama(model, arch, adapters):
    """transformers' model with W + (alpha/dim) B A in place of W; unpacking written out here."""
    scale = ALL.alpha / RANK
    deltas = {base: scale * adapters[b] @ adapters[a] for base, a, b in pairs(arch)}
    groups, width = arch.query_groups, arch.head_dim
    for i, layer in enumerate(model.model.layers):
        prefix = f"decoder.layers.{i}."
        qkv = deltas[f"{prefix}self_attention.linear_qkv.weight"]
        parts = qkv.reshape(groups, -1, width, qkv.shape[1])
        gate, up = np.split(deltas[f"{prefix}mlp.linear_fc1.weight"], 2)
        attention, mlp = layer.self_attn, layer.mlp
        for linear, delta in (
            (attention.q_proj, parts[:, :-2].reshape(-1, qkv.shape[1])),
            (attention.k_proj, parts[:, -2].reshape(-1, qkv.shape[1])),
            (attention.v_proj, parts[:, -1].reshape(-1, qkv.shape[1])),
            (attention.o_proj, deltas[f"{prefix}self_attention.linear_proj.weight"]),
            (mlp.gate_proj, gate),
            (mlp.up_proj, up),
            (mlp.down_proj, deltas[f"{prefix}mlp.linear_fc2.weight"]),
        ):
            linear.weight.data += torch.from_numpy(np.ascontiguousarray(delta))
    return model


def _job(*, tied=False, **options):
    """A job with trained adapters, and what the merged model of transformers makes of it."""
    model = tiny.llama(layers=4, tied=tied)
    arch = tiny.architecture(model.config)
    arrays = tiny.weights(model, arch)
    adapters = trained_adapters(arch, arrays)
    batches = [tiny.batch(2, 11, seed=s, ignored=3 + s) for s in range(4)]
    logprobs, grads = reference(_merged_llama(model, arch, adapters), batches)
    whole = tiny.canonical(grads, arch)
    scale = ALL.alpha / RANK
    expected = {}
    for base, a, b in pairs(arch):
        expected[a] = scale * adapters[b].T @ whole[base]
        expected[b] = scale * whole[base] @ adapters[a].T
    job = Job(arch, {**arrays, **adapters}, batches, lora=ALL, **options)
    return job, logprobs, expected


def _assert_equal(layout, results, logprobs, expected):
    for rank, result in enumerate(results):
        theirs = logprobs[layout.coordinates(rank).dp :: layout.dp]
        for ours, wanted in zip(result.logprobs, theirs, strict=False):
            assert_close(ours, wanted, rtol=0, atol=1e-5)
    assert_gradients(joined(results, layout), expected, tolerance=5e-6)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_adapters_compute_what_the_merged_weights_compute(recompute):
    job, logprobs, expected = _job(settings=ModelSettings(recompute=recompute))
    _assert_equal(ONE, [one_step(ONE, job)], logprobs, expected)


@pytest.mark.dist
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_adapters_in_every_layout_equal_the_merged_weights(two_ranks, layout, tied):
    job, logprobs, expected = _job(tied=tied)
    _assert_equal(layout, two_ranks.run(one_step, layout, job), logprobs, expected)


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2", "tp2 sequence parallel"])
def test_gradient_norm_and_steps_do_not_depend_on_the_layout(two_ranks, name):
    job, _, expected = _job(steps=2)
    norm = sum((grad**2).sum() for grad in expected.values()) ** 0.5
    one = one_step(ONE, job)
    results = two_ranks.run(one_step, LAYOUTS[name], job)
    assert one.grad_norm == pytest.approx(norm, rel=1e-5)
    assert results[0].grad_norm == pytest.approx(norm, rel=1e-5)
    assert results[0].losses == pytest.approx(one.losses, rel=1e-5)


def test_fresh_adapters_change_nothing_and_only_they_are_trained():
    arch, arrays = tiny_arrays()
    batch = tiny.batch()
    with start(ONE, seed=1):
        plain = forward_logits(built(ONE, None, arch, arrays)[0], batch)
        model = built(ONE, ALL, arch, arrays)[0]
        assert torch.equal(forward_logits(model, batch), plain)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert set(trained) == {name for _, a, b in pairs(arch) for name in (a, b)}


def test_switched_off_adapters_leave_the_base():
    arch, arrays = tiny_arrays()
    adapters = trained_adapters(arch, arrays)
    batch = tiny.batch()
    with start(ONE, seed=1):
        plain = forward_logits(built(ONE, None, arch, arrays)[0], batch)
        chunks = built(ONE, ALL, arch, {**arrays, **adapters})
        with adapters_disabled(chunks):
            assert torch.equal(forward_logits(chunks[0], batch), plain)
        assert not torch.allclose(forward_logits(chunks[0], batch), plain, atol=1e-2)


@pytest.mark.parametrize(
    ("words", "adapters"),
    [
        (("attention_qkv",), ["lora_kqv_adapter"]),
        (("attention",), ["lora_kqv_adapter", "lora_dense_attention_adapter"]),
        (("mlp", "mlp_fc1"), ["lora_hto4h_adapter", "lora_4htoh_adapter"]),
    ],
)
def test_targets_are_nemos_words(words, adapters):
    arch, arrays = tiny_arrays()
    fresh = fresh_adapters(ONE, replace(ALL, target_modules=words), arch, arrays)
    assert {name.split("adapter_layer.")[1].split(".")[0] for name in fresh} == set(adapters)


def test_only_the_selected_layers_get_adapters():
    arch, arrays = tiny_arrays()
    lora = replace(ALL, layer_selection=(2,))
    whole, chosen = (fresh_adapters(ONE, one, arch, arrays) for one in (ALL, lora))
    assert set(chosen) == {name for name in whole if name.startswith("decoder.layers.1.")}
    for name, (_, array) in chosen.items():
        assert np.array_equal(array, whole[name][1])
