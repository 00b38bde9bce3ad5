import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.testing import assert_close

from nemoalign.config.peft import LoraTuning, Peft
from nemoalign.errors import ConfigError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits, forward_logprobs
from nemoalign.model.load import load_weights, local_tensors
from nemoalign.model.lora import LoraSettings, adapters_disabled, lora_settings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.runs import Job, assert_gradients, joined, one_step
from tests.model.test_layouts import LAYOUTS, reference

RANK = 6
ALL = LoraSettings(adapter_dim=RANK, alpha=9.0, target_modules=("all",))
ADAPTERS = {
    "self_attention.linear_qkv": "self_attention.adapter_layer.lora_kqv_adapter",
    "self_attention.linear_proj": "self_attention.adapter_layer.lora_dense_attention_adapter",
    "mlp.linear_fc1": "mlp.adapter_layer.lora_hto4h_adapter",
    "mlp.linear_fc2": "mlp.adapter_layer.lora_4htoh_adapter",
}
ONE = ParallelLayout(1)


def _trained_adapters(arch, arrays) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    made = {}
    for layer in range(arch.num_layers):
        for base, adapter in ADAPTERS.items():
            out_size, in_size = arrays[f"decoder.layers.{layer}.{base}.weight"].shape
            prefix = f"decoder.layers.{layer}.{adapter}"
            made[f"{prefix}.linear_in.weight"] = draw.normal(0, 0.2, (RANK, in_size))
            made[f"{prefix}.linear_out.weight"] = draw.normal(0, 0.1, (out_size, RANK))
    return {name: array.astype(np.float32) for name, array in made.items()}


def _pairs(arch):
    for layer in range(arch.num_layers):
        for base, adapter in ADAPTERS.items():
            prefix = f"decoder.layers.{layer}."
            yield (
                f"{prefix}{base}.weight",
                f"{prefix}{adapter}.linear_in.weight",
                f"{prefix}{adapter}.linear_out.weight",
            )


def _merged_llama(model, arch, adapters):
    """transformers' model with W + (alpha/dim) B A in place of W; unpacking written out here."""
    scale = ALL.alpha / RANK
    deltas = {base: scale * adapters[b] @ adapters[a] for base, a, b in _pairs(arch)}
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
    adapters = _trained_adapters(arch, arrays)
    batches = [tiny.batch(2, 11, seed=s, ignored=3 + s) for s in range(4)]
    logprobs, grads = reference(_merged_llama(model, arch, adapters), batches)
    whole = tiny.canonical(grads, arch)
    scale = ALL.alpha / RANK
    expected = {}
    for base, a, b in _pairs(arch):
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


def _built(layout, lora, arch, arrays, seed=1):
    chunks = build_model(
        arch,
        tiny.VOCAB,
        layout,
        precision="fp32",
        settings=ModelSettings(seed=seed),
        lora=lora,
    )
    load_weights(chunks, tiny.Store(arrays), arch, layout, tiny.VOCAB)
    return chunks


def _tiny_arrays():
    model = tiny.llama()
    arch = tiny.architecture(model.config)
    return arch, tiny.weights(model, arch)


def _fresh(layout, lora, arch, arrays):
    with start(layout, seed=1):
        chunks = _built(layout, lora, arch, arrays)
        return {
            t.name: (t.split, t.parameter.detach().numpy())
            for t in local_tensors(chunks, layout)
            if t.parameter.requires_grad
        }


def test_fresh_adapters_change_nothing_and_only_they_are_trained():
    arch, arrays = _tiny_arrays()
    batch = tiny.batch()
    with start(ONE, seed=1):
        plain = forward_logits(_built(ONE, None, arch, arrays)[0], batch)
        model = _built(ONE, ALL, arch, arrays)[0]
        assert torch.equal(forward_logits(model, batch), plain)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert set(trained) == {name for _, a, b in _pairs(arch) for name in (a, b)}


@pytest.mark.parametrize(
    ("method", "deviation"),
    [
        ("xavier", lambda width: math.sqrt(2 / (width + 64))),
        ("kaiming", lambda width: math.sqrt(1 / (3 * width))),
        ("normal", lambda width: 0.2),
        ("zero", lambda width: 0.0),
    ],
)
def test_the_first_factor_starts_with_the_spread_its_method_says(method, deviation):
    arch, arrays = _tiny_arrays()
    lora = replace(ALL, adapter_dim=64, column_init_method=method)
    fresh = _fresh(ONE, lora, arch, arrays)
    for _, a, b in _pairs(arch):
        first = fresh[a][1]
        assert first.std() == pytest.approx(deviation(first.shape[1]), rel=0.1)
        assert not fresh[b][1].any()


@pytest.mark.dist
def test_the_start_depends_on_the_seed_and_not_on_the_layout(two_ranks):
    arch, arrays = _tiny_arrays()
    lora = replace(ALL, row_init_method="normal")
    one = _fresh(ONE, lora, arch, arrays)
    for name in ("tp2", "pp2"):
        results = two_ranks.run(_fresh, LAYOUTS[name], lora, arch, arrays)
        for tensor, (split, array) in one.items():
            shards = [result[tensor][1] for result in results if tensor in result]
            whole = split.join(shards) if len(shards) > 1 else shards[0]
            assert np.array_equal(whole, array), (name, tensor)
    starts = [array.tobytes() for _, array in one.values()]
    assert len(set(starts)) == len(starts)


def test_switched_off_adapters_leave_the_base():
    arch, arrays = _tiny_arrays()
    adapters = _trained_adapters(arch, arrays)
    batch = tiny.batch()
    with start(ONE, seed=1):
        plain = forward_logits(_built(ONE, None, arch, arrays)[0], batch)
        chunks = _built(ONE, ALL, arch, {**arrays, **adapters})
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
    arch, arrays = _tiny_arrays()
    fresh = _fresh(ONE, replace(ALL, target_modules=words), arch, arrays)
    assert {name.split("adapter_layer.")[1].split(".")[0] for name in fresh} == set(adapters)


def test_an_unknown_target_or_width_is_refused():
    with pytest.raises(ConfigError, match="'q_proj'; the targets are attention_qkv"):
        LoraSettings(target_modules=("q_proj",)).targets()
    with pytest.raises(ConfigError, match="--lora is 0"):
        LoraSettings(adapter_dim=0).targets()


def _dropped(layout, position, arch, arrays):
    lora = replace(ALL, adapter_dropout=0.3, dropout_position=position)
    with start(layout, seed=1), torch.no_grad():
        chunks = _built(layout, lora, arch, arrays)
        trained = forward_logprobs(chunks[0].train(), tiny.batch())
        return trained, forward_logprobs(chunks[0].eval(), tiny.batch())


@pytest.mark.dist
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("name", ["tp2", "tp2 sequence parallel"])
def test_dropout_keeps_tp_ranks_together_and_ends_with_training(two_ranks, position, name):
    arch, arrays = _tiny_arrays()
    arrays |= _trained_adapters(arch, arrays)
    plain = _dropped(ONE, position, arch, arrays)[1]
    (one, one_eval), (two, _) = two_ranks.run(_dropped, LAYOUTS[name], position, arch, arrays)
    assert torch.equal(one, two)
    assert_close(one_eval, plain, rtol=0, atol=1e-5)
    assert (one - one_eval).abs().max() > 1e-3


def _sharded_pieces(layout, arch, arrays):
    """What this rank would write: key, place in the whole tensor, values."""
    with start(layout, seed=1):
        chunks = _built(layout, ALL, arch, arrays)
        pieces = []
        for chunk in chunks:
            for value in chunk.sharded_state_dict().values():
                tensors = value.build() if isinstance(value, ShardedTensorFactory) else [value]
                for tensor in tensors:
                    if "adapter" in tensor.key:
                        offset = tensor.global_offset
                        place = (tensor.global_shape, offset, tensor.data.detach().numpy())
                        pieces.append((tensor.key, *place))
        return pieces


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2", "pp2"])
def test_megatron_checkpoints_hold_the_whole_adapters(two_ranks, name):
    arch, arrays = _tiny_arrays()
    adapters = _trained_adapters(arch, arrays)
    results = two_ranks.run(_sharded_pieces, LAYOUTS[name], arch, {**arrays, **adapters})
    whole: dict[str, np.ndarray] = {}
    for key, shape, offset, data in (piece for result in results for piece in result):
        target = whole.setdefault(key, np.full(shape, np.nan, np.float32))
        data = data.reshape((1,) * (len(shape) - data.ndim) + data.shape)
        target[tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))] = data
    for tensor, array in adapters.items():
        layer, _, rest = tensor.removeprefix("decoder.layers.").partition(".")
        stacked = whole[f"decoder.layers.{rest}"]
        assert np.array_equal(stacked[int(layer)], array), tensor


def test_a_runs_settings_become_adapters_or_none():
    assert lora_settings(Peft()) is None
    tuning = LoraTuning(adapter_dim=4, alpha=8.0, target_modules=("mlp",))
    settings = lora_settings(Peft(peft_scheme="lora", lora_tuning=tuning))
    assert settings is not None
    assert settings.scale == 2.0
    assert settings.targets() == ("mlp_fc1", "mlp_fc2")
