"""Experts, norms behind layers and capped logits against transformers and megatron-core."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ConfigError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits, forward_logprobs
from nemoalign.model.load import load_weights, local_tensors
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.checkpoint.models import FIXTURES
from tests.families.test_gemma2 import save_gemma2

ONE = ParallelLayout(1)
TP2 = ParallelLayout(2, tp=2, sequence_parallel=True)
VOCAB = 64


def batch(tokens, labels=None):
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    return SimpleNamespace(tokens=tokens, position_ids=positions, labels=labels)


def loaded(folder, layout=ONE, **changes):
    source = open_source(folder)
    arch = replace(source.arch, **changes)
    chunks = build_model(arch, VOCAB, layout, precision="fp32", settings=ModelSettings())
    load_weights(chunks, source.weights, arch, layout, VOCAB)
    return chunks[0]


def logits(folder, tokens, layout=ONE):
    with start(layout, seed=1), torch.no_grad():
        return forward_logits(loaded(folder, layout).eval(), batch(tokens))


def some_tokens(rows=2, length=20):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma2") / "hf"
    return folder, save_gemma2(folder)


def test_mixtral_computes_what_transformers_computes():
    tokens = some_tokens()
    with torch.no_grad():
        expected = MixtralForCausalLM.from_pretrained(FIXTURES / "hf_mixtral")(tokens).logits
    assert (logits(FIXTURES / "hf_mixtral", tokens) - expected).abs().max() < 1e-6


def test_routing_without_renormalising_is_honoured():
    """As NeMo's converter writes it; the numbers are megatron-core's own model's, on two ranks."""
    stored = np.load(FIXTURES / "mixtral_logits.npz")
    ours = logits(FIXTURES / "mixtral_ep2_dist", torch.tensor(stored["input_ids"]))
    np.testing.assert_allclose(ours.numpy(), stored["logits"], atol=1e-6)


def test_gemma2_computes_what_transformers_computes_beyond_its_window(gemma2):
    folder, model = gemma2
    tokens = some_tokens(length=20)
    with torch.no_grad():
        expected = model(tokens).logits
    assert (logits(folder, tokens) - expected).abs().max() < 1e-6
    labels = tokens.roll(-1, 1)
    with start(ONE, seed=1), torch.no_grad():
        found = forward_logprobs(loaded(folder).eval(), batch(tokens, labels))
    wanted = expected.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["mixtral", "gemma2"])
def test_two_tensor_parallel_ranks_compute_the_same(kind, two_ranks, gemma2):
    folder = gemma2[0] if kind == "gemma2" else FIXTURES / "hf_mixtral"
    tokens = some_tokens()
    halves = two_ranks.run(logits, folder, tokens, TP2)
    whole = torch.cat(halves, -1)[..., :VOCAB]  # two ranks pad the vocabulary further
    assert (whole - logits(folder, tokens)).abs().max() < 1e-5


def _gradients(model, weigh):
    with start(ONE, seed=1):
        ours = model()
        weigh(ours).backward()
        tensors = {t.name: t.parameter.grad for t in local_tensors([ours], ONE)}
        return {name: grad.clone() for name, grad in tensors.items()}


def test_gradients_of_router_and_experts_are_transformers():
    tokens = some_tokens()
    labels = tokens.roll(-1, 1)
    labels[:, :5] = -100
    theirs = MixtralForCausalLM.from_pretrained(FIXTURES / "hf_mixtral")
    chosen = theirs(tokens).logits.log_softmax(-1).gather(-1, labels.clamp(0)[..., None])[..., 0]
    (chosen * (labels >= 0)).sum().backward()
    grads = _gradients(
        lambda: loaded(FIXTURES / "hf_mixtral", moe_aux_loss_coeff=0.0).train(),
        lambda model: forward_logprobs(model, batch(tokens, labels)).sum(),
    )
    for layer in range(2):
        mlp = theirs.model.layers[layer].mlp
        prefix = f"decoder.layers.{layer}.mlp."
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(grads[f"{prefix}router.weight"], mlp.gate.weight.grad, **close)
        for expert in range(4):
            name = f"{prefix}experts.local_experts.{expert}.linear_fc"
            up, down = mlp.experts.gate_up_proj.grad, mlp.experts.down_proj.grad
            torch.testing.assert_close(grads[f"{name}1.weight"], up[expert], **close)
            torch.testing.assert_close(grads[f"{name}2.weight"], down[expert], **close)


def test_the_balancing_loss_counts_what_is_learned_once_a_token(tmp_path):
    """Experts x coefficient x sum of (share of choices x mean probability), by the token."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    theirs = MixtralForCausalLM(config)
    theirs.save_pretrained(tmp_path / "hf")
    tokens = some_tokens()
    labels = tokens.roll(-1, 1)
    labels[:, :5] = -100
    seen: list[torch.Tensor] = []
    layer = theirs.model.layers[0]
    layer.mlp.gate.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    theirs(tokens)
    learned = seen[0].reshape(-1, 16)[labels.reshape(-1) >= 0]
    scores = (learned @ layer.mlp.gate.weight.T).softmax(-1)
    share = torch.zeros(4).index_add(
        0, scores.topk(2).indices.flatten(), torch.ones(scores.numel() // 2)
    )
    share = share / share.sum()
    (0.1 * 4 * (share * scores.mean(0)).sum() * len(scores)).backward()

    def gradient(coefficient):
        return _gradients(
            lambda: loaded(tmp_path / "hf", moe_aux_loss_coeff=coefficient).train(),
            lambda model: forward_logprobs(model, batch(tokens, labels)).sum(),
        )["decoder.layers.0.mlp.router.weight"]

    difference = gradient(0.1) - gradient(0.0)
    torch.testing.assert_close(difference, layer.mlp.gate.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("mixtral", "mlp_fc1", "an MLP of experts"),
        ("gemma2", "attention_dense", "a norm behind that layer"),
    ],
)
def test_adapters_where_none_can_be_put_are_refused(kind, target, words, gemma2):
    source = open_source(gemma2[0] if kind == "gemma2" else FIXTURES / "hf_mixtral")
    lora = LoraSettings(target_modules=(target,))
    with start(ONE, seed=1), pytest.raises(ConfigError, match=words):
        build_model(source.arch, VOCAB, ONE, precision="fp32", settings=ModelSettings(), lora=lora)


def test_experts_over_tensor_parallel_ranks_need_the_sequence_cut():
    arch = open_source(FIXTURES / "hf_mixtral").arch
    with pytest.raises(ConfigError, match="--sequence-parallel; add it"):
        ParallelLayout(2, tp=2).check(arch)
    TP2.check(arch)
