"""What ``inspect --diff`` names: every difference that matters, and none that does not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.diff import compare_values, diff
from tests.checkpoint.models import FIXTURES, save_llama

GATE = "model.layers.1.mlp.gate_proj.weight"
FC1 = "decoder.layers.1.mlp.linear_fc1.weight"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("hf_llama", "llama.nemo"),
        ("hf_llama", "llama_tp2_ranks.nemo"),
        ("hf_llama", "chatsft_tp1_file.nemo"),
        ("gpt_tp1_dist.nemo", "gpt_tp2pp2_ranks.nemo"),
    ],
)
def test_one_model_in_two_forms_of_nemo_is_the_same(left, right, quiet):
    """Their padded vocabularies differ (640 and 768 rows), and so does how they were saved."""
    report = diff(FIXTURES / left, FIXTURES / right, quiet)
    assert report["same"]
    assert report["differing"] == report["architecture"] == []
    assert report["compared"] == (52 if left.startswith("gpt") else 27)


def test_how_a_file_was_saved_is_told_but_does_not_count(quiet):
    report = diff(FIXTURES / "llama.nemo", FIXTURES / "llama_tp2_ranks.nemo", quiet)
    assert report["settings"] == [{"field": "tensor_model_parallel_size", "left": 1, "right": 2}]


@pytest.fixture
def changed(hf_llama, tmp_path):
    """Return a function that copies the model and changes its tensors or config.json."""

    def make(change=lambda state: None, **config):
        folder = shutil.copytree(hf_llama, tmp_path / "changed")
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stored | config))
        return folder

    return make


def test_values_are_counted_with_the_largest_difference(hf_llama, changed, tmp_path, quiet):
    def change(state):
        state[GATE][3, :5] += 0.25
        state[GATE][7, 0] -= 0.75

    convert(hf_llama, tmp_path / "m.nemo", reporter=quiet)
    (row,) = diff(tmp_path / "m.nemo", changed(change), quiet)["differing"]
    assert (row["name"], row["differing"], row["elements"]) == (FC1, 6, 2 * 48 * 32)
    assert row["max_abs_diff"] == pytest.approx(0.75, abs=1e-6)


def test_an_element_type_is_a_difference_even_with_equal_values(tmp_path, quiet):
    model = {"dtype": "bfloat16"}
    narrow, wide = (save_llama(tmp_path / n, **model) for n in ("narrow", "wide"))
    state = {name: t.float() for name, t in load_file(wide / "model.safetensors").items()}
    save_file(state, wide / "model.safetensors", {"format": "pt"})
    rows = diff(narrow, wide, quiet)["differing"]
    assert len(rows) == 21
    assert all(row["dtype"] == ["bfloat16", "float32"] for row in rows)
    assert all(row["differing"] == 0 for row in rows)


def test_the_architecture_is_named_by_field(hf_llama, changed, quiet):
    report = diff(hf_llama, changed(rms_norm_eps=1e-3), quiet)
    expected = {"field": "layernorm_epsilon", "left": 1e-5, "right": 1e-3}
    assert report["architecture"] == [expected]
    assert not report["same"]


def test_shapes_and_tensors_of_one_side_are_named(hf_llama, tmp_path, quiet):
    other = save_llama(tmp_path / "deep", num_hidden_layers=4, intermediate_size=40)
    report = diff(hf_llama, other, quiet)
    assert report["only_left"] == []
    assert all(name.startswith("decoder.layers.3.") for name in report["only_right"])
    shapes = {row["name"]: row["shape"] for row in report["differing"] if "shape" in row}
    assert shapes[FC1] == [[96, 32], [80, 32]]


def test_a_tokenizer_with_other_content_is_named(hf_llama, changed, quiet):
    folder = changed()
    (folder / "tokenizer.json").write_text("{}")
    (row,) = diff(hf_llama, folder, quiet)["tokenizer"]
    assert row["file"] == "tokenizer.json"


def test_an_adapter_and_its_base_share_no_tensor(quiet):
    report = diff(FIXTURES / "llama.nemo", FIXTURES / "lora_tp1.nemo", quiet)
    assert (report["compared"], len(report["only_left"]), len(report["only_right"])) == (0, 27, 32)
    assert {row["field"] for row in report["architecture"]} == {"lora.rank", "lora.alpha"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_values_are_compared_as_torch_compares_them(dtype):
    torch.manual_seed(3)
    kind = getattr(torch, dtype)
    left = torch.randn(3, 700_000, dtype=torch.float64).to(kind)
    right = torch.where(torch.rand(left.shape) < 0.01, (left + 1).to(kind), left)
    left[0, :4] = right[0, :4] = float("nan")
    left[1, 0], right[1, 0] = 0.0, -0.0
    raw = [
        t.view(torch.uint16).numpy() if dtype == "bfloat16" else t.numpy() for t in (left, right)
    ]
    found = compare_values(*raw, (dtype, dtype))
    expected = (left != right) & ~(left.isnan() & right.isnan())
    distance = (left.double() - right.double()).abs()[expected]
    assert found["differing"] == int(expected.sum())
    assert found["max_abs_diff"] == pytest.approx(float(distance.max()))


def test_a_value_that_is_no_number_on_one_side_differs_without_bound():
    left, right = np.zeros(4, np.float32), np.array([0, np.nan, 0, np.inf], np.float32)
    found = compare_values(left, right, ("float32", "float32"))
    assert (found["differing"], found["max_abs_diff"]) == (2, None)
