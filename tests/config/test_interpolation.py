"""References and sums in a checkpoint's configuration, against OmegaConf's own evaluation."""

from __future__ import annotations

import time

import pytest
from omegaconf import OmegaConf

from nemoalign.config.interpolation import Interpolation

TREE = {
    "n": 12,
    "half": 0.5,
    "same": "${n}",
    "model": {
        "layers": 4,
        "sibling": "${.layers}",
        "aunt": "${..n}",
        "absolute": "${model.layers}",
        "list": [7, "${.0}", "${..layers}", "${...n}"],
        "deep": {"great_aunt": "${...n}", "through": "${model.aunt}"},
    },
    "element": "${model.list.0}",
    "branch": "${model.deep}",
}


def test_references_mean_what_omegaconf_means():
    expected = OmegaConf.to_container(OmegaConf.create(TREE), resolve=True)
    ours = Interpolation(TREE).resolved()
    del expected["branch"], ours["branch"]
    assert ours == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${multiply:${n},3}", 36),
        ("${multiply: ${n} , ${half} }", 6.0),
        ("${int_div:${sum:${n},${n}},5}", 4),
        ("${subtract:1e2,-1}", 101.0),
    ],
)
def test_sums_nest(text, value):
    assert Interpolation(TREE | {"x": text}).resolved()["x"] == value


@pytest.mark.parametrize(
    "text",
    [
        "${nowhere}",
        "${....n}",
        "a${n}",
        "${n}b",
        "${n",
        "${}",
        "${multiply:2}",
        "${multiply:2,x}",
        "${int_div:1,0}",
        "${oc.env:HOME}",
        "${x}",
        "${model.list.9}",
    ],
)
def test_what_cannot_be_evaluated_stays_as_written(text):
    assert Interpolation(TREE | {"x": text}).resolved()["x"] == text


def test_a_value_used_twice_at_every_step_is_evaluated_once():
    chain = {"s0": 1} | {f"s{n}": f"${{sum:${{s{n - 1}}},${{s{n - 1}}}}}" for n in range(1, 45)}
    started = time.perf_counter()
    assert Interpolation(chain).resolved()["s44"] == 2**44
    assert time.perf_counter() - started < 1


def test_values_that_refer_to_each_other_stay_as_written():
    assert Interpolation({"a": "${b}", "b": "${a}"}).resolved() == {"a": "${b}", "b": "${a}"}


def test_mandatory_values_that_are_missing_are_none():
    assert Interpolation({"a": "???", "b": "${a}"}).resolved() == {"a": None, "b": None}
