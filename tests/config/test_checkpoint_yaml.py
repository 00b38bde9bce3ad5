"""A checkpoint's configuration: OmegaConf's numbers, NeMo's four resolvers, and nothing hostile."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemoalign.config.checkpoint_yaml import dump_checkpoint_config, load_checkpoint_config
from nemoalign.errors import ContentError, SourceError


def load(text: str):
    return load_checkpoint_config(text, "m.nemo: model_config.yaml")


def test_scientific_notation_is_a_number():
    assert load("layernorm_epsilon: 1e-5\nrotary_base: 10000.0") == {
        "layernorm_epsilon": 1e-5,
        "rotary_base": 10000.0,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${multiply:${n},3}", 36),
        ("${int_div:${n},5}", 2),
        ("${subtract:${n},5}", 7),
        ("${sum:${.n},-1}", 11),
        ("${.n}", 12),
    ],
)
def test_the_four_resolvers_of_nemo_are_evaluated(text, value):
    assert load(f"n: 12\nx: {text}")["x"] == value


def test_values_nobody_can_resolve_stay_as_written_and_missing_ones_are_none():
    config = load("a: ${model.nowhere}\nb: ???\nc: {d: [1, '${.0}', '${...lost}']}\ne: x${a}y")
    assert config == {
        "a": "${model.nowhere}",
        "b": None,
        "c": {"d": [1, 1, "${...lost}"]},
        "e": "x${a}y",
    }


@pytest.mark.parametrize(
    "text",
    [
        "x: ${oc.env:HOME}",
        "x: ${oc.decode:'1'}",
        "x: {y: ['${oc.create:1}']}",
        "x: ${${y}:1}\ny: oc.env",
        "x: ${oc.${y}:HOME}\ny: env",
        "x: '${ oc.env : HOME }'",
    ],
)
def test_any_other_resolver_is_denied(text):
    with pytest.raises(ContentError, match="may not do"):
        load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a ["
        + "1," * 9
        + "]\n"
        + "\n".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [" + f"*{chr(97 + n)}," * 9 + "]" for n in range(12)
        ),
        "a: &a [*a]",
        "a: " + "[" * 1_000_000,
    ],
    ids=["laughs", "itself", "deep"],
)
def test_yaml_bombs_are_refused_at_once(text):
    started = time.perf_counter()
    with pytest.raises(SourceError):
        load(text)
    assert time.perf_counter() - started < 2


def test_chained_interpolations_cannot_grow_without_bound():
    doubling = "\n".join(f"s{n}: ${{s{n - 1}}}${{s{n - 1}}}" for n in range(1, 60))
    squaring = "\n".join(f"n{n}: ${{multiply:${{n{n - 1}}},${{n{n - 1}}}}}" for n in range(1, 60))
    config = load(f"s0: ha\nn0: 7\n{doubling}\n{squaring}")
    assert config["s1"] == "${s0}${s0}"
    assert config["n1"] == 49
    assert config["n59"] == "${multiply:${n58},${n58}}"


@pytest.mark.parametrize("text", ["- 1\n- 2", "just words", "a: [1", "\x00"])
def test_what_is_no_configuration_is_a_source_error(text):
    with pytest.raises(SourceError, match=r"m\.nemo"):
        load(text)


def test_what_is_written_reads_back_the_same():
    config = {
        "b": 1e-5,
        "a": None,
        "list": [1, 2.5, "x"],
        "same": [1],
        "deep": {"on": True, "text": "a: b\n${c} ???", "numeric_text": "16"},
        "unicode": "é\x12",
    }
    text = dump_checkpoint_config(config)
    assert list(load(text)) == list(config)
    assert load(text) == config
    assert "&" not in text


@given(st.text("0123456789+-._eE:xinfaN", min_size=1, max_size=8))
@example("1e-5")
@example("1_000.5")
@example("2020-01-01")
@example("0o17")
@example("12:30:45.5")
@example(".5e-3")
def test_every_scalar_means_what_it_means_to_omegaconf(scalar):
    try:
        expected = OmegaConf.create(f"a: {scalar}")["a"]
    except (ValueError, OmegaConfBaseException, yaml.YAMLError):
        return
    found = load(f"a: {scalar}")["a"]
    assert (type(found), repr(found)) == (type(expected), repr(expected))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc_1", min_size=1), inner),
        max_leaves=8,
    )
)
@example("1e-5")
@example("2020-01-01")
@example("null")
def test_any_tree_reads_back_the_same_here_and_in_omegaconf(value):
    text = dump_checkpoint_config({"a": value})
    if "???" not in text and "${" not in text:
        assert load(text) == {"a": value}
        assert OmegaConf.to_container(OmegaConf.create(text)) == {"a": value}


def test_a_key_that_comes_twice_is_refused_instead_of_the_last_one_winning():
    with pytest.raises(SourceError, match="twice"):
        load("a: 1\nb: 2\na: 3")
