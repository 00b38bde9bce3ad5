"""Settings of a downloaded file may hold anything: it is refused in a sentence or it does not matter."""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.checkpoint.inspect import inspect
from nemoalign.checkpoint.settings.values import read_architecture, section, text, whole_number
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config, load_checkpoint_config
from nemoalign.errors import ContentError, NemoAlignError
from tests.checkpoint.models import FIXTURES

GPT = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 4}
JUNK = [None, 0, -1, 5, 1.5, float("inf"), 10**30, "x", "", [], [1, "a"], [None], {}, {"a": [1]}]
JUNK += [True, False, "nemo:../x", "1e-5", {"rope_type": [], "factor": {}}]


def test_a_section_is_a_mapping_or_empty():
    config = {"data": {"train_ds": {"a": 1}}, "optim": 3}
    assert section(config, "data", "train_ds") == {"a": 1}
    assert section(config, "optim", "sched") == {}
    assert section(config, "nowhere") == {}


def test_a_text_is_a_text_or_none():
    config = {"a": "x", "b": "", "c": 5}
    assert [text(config, name) for name in "abcd"] == ["x", None, None, None]


def test_a_number_is_above_zero_or_refused():
    assert whole_number({"a": 5}, "a", "config.json") == 5
    assert whole_number({"a": None}, "a", "config.json") is None
    for value in (0, -1, True, 1.5, "5", [5]):
        with pytest.raises(ContentError, match=r"config\.json has a .* no number above 0"):
            whole_number({"a": value}, "a", "config.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_layers": 10**9}, "num_layers 1000000000, which no model has"),
        ({"num_attention_heads": 0}, "num_attention_heads|zero"),
        ({"hidden_size": -8}, "hidden_size -8"),
        ({"kv_channels": -2}, "head_dim -2"),
        ({"ffn_hidden_size": float("inf")}, "infinity"),
        ({"num_query_groups": 3}, "4 attention heads in 3 query groups"),
        ({"activation": ["gelu"]}, "activation .'gelu'., which is no word"),
        ({"window_size": 5}, "not iterable"),
        ({"make_vocab_size_divisible_by": 0}, "make_vocab_size_divisible_by 0"),
    ],
)
def test_impossible_architectures_are_refused(changes, match):
    assert read_architecture(GPT, "model_config.yaml").num_layers == 2
    with pytest.raises(ContentError, match=match):
        read_architecture(GPT | changes, "model_config.yaml")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A fine-tuned archive, unpacked: it has every section."""
    folder = tmp_path_factory.mktemp("chatsft")
    with tarfile.open(FIXTURES / "chatsft_tp1_file.nemo") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return shutil.copytree(FIXTURES / "hf_llama", tmp_path_factory.mktemp("hf") / "m")


def mappings(tree):
    yield tree
    for child in tree.values():
        if isinstance(child, dict):
            yield from mappings(child)


def put_junk(tree, data):
    holders = [mapping for mapping in mappings(tree) if mapping]
    holder = data.draw(st.sampled_from(holders))
    holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(st.sampled_from(JUNK))


def inspect_or_refuse(folder):
    with contextlib.suppress(NemoAlignError):
        inspect(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_any_value_anywhere_in_model_config_yaml_is_survived(unpacked, data):
    original = (unpacked / "model_config.yaml").read_text()
    config = load_checkpoint_config(original, "model_config.yaml")
    put_junk(config, data)
    (unpacked / "model_config.yaml").write_text(dump_checkpoint_config(config))
    try:
        inspect_or_refuse(unpacked)
    finally:
        (unpacked / "model_config.yaml").write_text(original)


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(["config.json", "tokenizer_config.json"]))
def test_any_value_anywhere_in_a_models_json_is_survived(hf_folder, data, name):
    original = (hf_folder / name).read_text()
    config = json.loads(original)
    put_junk(config, data)
    (hf_folder / name).write_text(json.dumps(config))
    try:
        inspect_or_refuse(hf_folder)
    finally:
        (hf_folder / name).write_text(original)
