"""A ViT through convert, reshard and export: there and back bit for bit, and what is refused."""

import json

import numpy as np
import pytest

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.checkpoint.vit.commands import convert_vit
from nemoalign.cli import app
from tests.checkpoint.models import assert_same_tensors
from tests.checkpoint.vits import (
    NEMO_VIT,
    TOLERANCE,
    images,
    logits_of,
    save_hf,
)
from tests.cli.running import run

VARIANTS = {
    "plain": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16", "hidden_act": "gelu_new"},
    "quick gelu": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-6},
    "no biases": {"qkv_bias": False},
    "wide images": {"image_size": [16, 32], "num_channels": 1},
    "labels": {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0}},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_vit_of_transformers_comes_back_bit_for_bit(tmp_path, quiet, changes):
    folder = save_hf(tmp_path / "hf", **changes)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    convert(folder, tmp_path / "m.nemo", reporter=quiet)
    convert(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    assert_same_tensors(tmp_path / "back", folder)
    for name in ("config.json", "preprocessor_config.json"):
        found, expected = ((path / name).read_text() for path in (tmp_path / "back", folder))
        assert json.loads(found) == json.loads(expected)


def test_the_real_commands_take_it_there_through_two_ranks_and_back(tmp_path):
    folder = save_hf(tmp_path / "hf")
    one, two, back = tmp_path / "m.nemo", tmp_path / "two.nemo", tmp_path / "back"
    for command in (
        ("convert", folder, "-o", one),
        ("reshard", one, "-o", two, "--tp", 2),
        ("export", two, "-o", back),
    ):
        ended = run(*command)
        assert ended.code == 0, ended.err
    assert_same_tensors(back, folder)
    assert np.array_equal(logits_of(back, images()), logits_of(folder, images()))


def test_without_the_original_config_the_fields_follow_from_nemos(tmp_path, quiet):
    """What NeMo alone records gives a config.json that transformers builds the same model from."""
    folder = save_hf(tmp_path / "hf", hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    source = open_checkpoint(folder)
    object.__setattr__(source, "files", {})
    convert_vit(source, tmp_path / "m.nemo", WriteOptions(), quiet, "auto")
    convert(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    assert_same_tensors(tmp_path / "back", folder)
    assert np.array_equal(logits_of(tmp_path / "back", images()), logits_of(folder, images()))
    found, original = (
        json.loads((path / "config.json").read_text()) for path in (tmp_path / "back", folder)
    )
    assert found.keys() - original.keys() == {"torch_dtype"}
    unread = {"dtype", "encoder_stride", "pooler_act", "pooler_output_size", "transformers_version"}
    assert original.keys() - found.keys() == unread
    assert {name: found[name] for name in found.keys() & original.keys()} == {
        name: original[name] for name in found.keys() & original.keys()
    }


def test_nemo_2_gets_a_convolution_without_bias(tmp_path, quiet):
    folder = save_hf(tmp_path / "hf")
    command = ["convert", str(folder), "-o", str(tmp_path / "m.nemo"), "--to", "nemo2"]
    assert app.run(command) == 0
    report = json.loads((tmp_path / "m.nemo.conversion.json").read_text())
    assert "not bit for bit" in report["notes"][0]
    written = open_checkpoint(tmp_path / "m.nemo")
    assert written.arch.generation == 2
    assert written.config["nemo_version"].startswith("2.")
    convert(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    difference = logits_of(tmp_path / "back", images()) - logits_of(folder, images())
    assert np.abs(difference).max() < TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reshard", "--tp", 2, "--pp", 2), "tensor-parallel ranks only"),
        (("reshard", "--tp", 2, "--format", "dist"), "a file for every rank only"),
        (("reshard", "--tp", 8), "use --tp 1, 2 or 4"),
        (("convert", "--tokenizer", NEMO_VIT), "neither tokenizer nor adapter"),
    ],
)
def test_what_a_vit_has_not_is_a_wrong_command(tmp_path, capsys, arguments, sentence):
    command, *flags = map(str, arguments)
    assert app.run([command, str(NEMO_VIT), "-o", str(tmp_path / "m.nemo"), *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_vit_and_a_language_model_have_nothing_to_compare(tmp_path, nemo_llama):
    codes = {str(nemo_llama): 4, str(NEMO_VIT): 0, str(save_hf(tmp_path / "hf")): 6}
    for other, code in codes.items():
        assert app.run(["inspect", str(NEMO_VIT), "--diff", other]) == code
