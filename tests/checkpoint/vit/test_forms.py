"""Scales, centred norms and a missing bias are folded into what Hugging Face has, and it is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.sources.stores import Made, MadeStore
from nemoalign.checkpoint.vit.forms import plain_form, second_generation
from nemoalign.errors import ContentError
from tests.checkpoint import vits
from tests.checkpoint.vits import TOLERANCE, expected_logits, fixture_state, logits_of, save_nemo

LAYERS = "backbone.transformer.layers"


def with_layerscale(state):
    """Return a state and scales whose product is the fixture's: dense / gamma, and gamma."""
    state = dict(state)
    for layer in range(2):
        for name, dense in (
            ("post_attention_layerscale", "self_attention.dense"),
            ("post_mlp_layerscale", "mlp.dense_4h_to_h"),
        ):
            gamma = torch.linspace(0.5, 2.0, 64)
            state[f"{LAYERS}.{layer}.{name}.gamma"] = gamma
            for kind in ("weight", "bias"):
                key = f"{LAYERS}.{layer}.{dense}.{kind}"
                state[key] = state[key] / gamma.view(-1, *[1] * (state[key].dim() - 1))
    return state


def with_centred_norms(state):
    norms = [name for name in state if name.endswith("layernorm.weight")]
    return state | {name: state[name] - 1 for name in norms}


@pytest.mark.parametrize(
    ("change", "settings", "note"),
    [
        (with_layerscale, {"layerscale": True}, "layerscale"),
        (with_centred_norms, {"normalization": "layernorm1p"}, "layernorm1p"),
        (vits.second_generation, {}, "no bias"),
    ],
)
def test_the_same_function_in_another_form_has_the_same_logits(
    tmp_path, quiet, change, settings, note
):
    path = save_nemo(tmp_path / "m.nemo", change(fixture_state()), **settings)
    report = export(path, tmp_path / "hf", reporter=quiet)
    assert note in report["notes"][0]
    pixels, expected = expected_logits()
    assert np.abs(logits_of(tmp_path / "hf", pixels) - expected).max() < TOLERANCE


def test_the_bias_moves_into_the_positions_as_torch_computes_it():
    form = second_generation(open_checkpoint(vits.NEMO_VIT))
    expected = vits.second_generation(fixture_state())
    assert form.source.weights.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(form.source.weights.read(name), tensor.numpy()), name
    assert "not bit for bit" in form.notes[0]
    assert second_generation(form.source).notes == ()


def test_half_precision_is_computed_wide_and_rounded_once(tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in with_layerscale(fixture_state()).items()}
    path = save_nemo(tmp_path / "m.nemo", state, layerscale=True)
    form = plain_form(open_checkpoint(path))
    name = f"{LAYERS}.1.mlp.dense_4h_to_h.weight"
    product = state[name].float() * state[f"{LAYERS}.1.post_mlp_layerscale.gamma"].float()[:, None]
    found = torch.from_numpy(form.source.weights.read(name).copy()).view(torch.bfloat16)
    assert torch.equal(found, product.bfloat16())


def test_a_tensor_without_a_place_is_never_dropped():
    source = open_checkpoint(vits.NEMO_VIT)
    made = {
        name: Made(info, (name,), lambda: np.zeros(1))
        for name, info in source.weights.tensors.items()
    }
    extra = {"spare.weight": made["head.bias"]}
    with pytest.raises(ContentError, match=r"spare\.weight"):
        plain_form(replace(source, weights=MadeStore(made | extra)))
