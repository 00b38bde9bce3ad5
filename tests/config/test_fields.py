"""Settings on fields: bounds, choices, keys."""

from dataclasses import dataclass

import pytest

from nemoalign.config.fields import (
    AlgorithmSettings,
    Section,
    build,
    section,
    setting,
    settings_of,
)
from nemoalign.config.values import Reject
from nemoalign.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner(Section):
    beta: float = setting(0.1, "Strength.", above=0, below=1)
    kind: str | None = setting(None, "Kind.", choices={"none": None, "short": "a_long_name"})
    pair: tuple[float, float] = setting((0.5, 0.5), "Pair.", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class Own(AlgorithmSettings):
    extra: int = setting(3, "Extra.")


@dataclass(frozen=True, kw_only=True)
class Outer(Section):
    inner: Inner = section(Inner)
    own: AlgorithmSettings = section(AlgorithmSettings, key="{algorithm}")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"beta": 0.0}, "beta is 0.0; it must be above 0."),
        ({"beta": 1.0}, "beta is 1.0; it must be below 1."),
        ({"kind": "other"}, "must be one of none, short"),
        ({"pair": (0.5, 1.5)}, "must be at most 1"),
        ({"pair": (-0.5, 0.5)}, "must be at least 0"),
    ],
)
def test_a_section_checks_the_bounds_of_its_fields(values, says):
    with pytest.raises(ConfigError) as refusal:
        Inner(**values)
    assert says in str(refusal.value)


def test_settings_are_found_in_order_with_dotted_keys():
    entries = {e.key: e for e in settings_of(Outer, "dpo", Own)}
    assert list(entries) == ["inner.beta", "inner.kind", "inner.pair", "dpo.extra"]
    assert entries["inner.kind"].optional
    assert not entries["inner.beta"].optional
    assert entries["dpo.extra"].default == 3


def test_a_choice_is_read_by_its_spelling_or_its_value():
    entry = {e.key: e for e in settings_of(Outer, "dpo", Own)}["inner.kind"]
    assert entry.read("short") == entry.read("a_long_name") == "a_long_name"
    assert entry.read("none") is entry.read(None) is None
    with pytest.raises(Reject, match="must be one of none, short"):
        entry.read("long")


def test_a_tree_is_built_from_dotted_values():
    values = {"inner.beta": 0.3, "inner.kind": None, "inner.pair": (0.1, 0.2), "dpo.extra": 7}
    made = build(Outer, values, "dpo", Own)
    assert made == Outer(inner=Inner(beta=0.3, pair=(0.1, 0.2)), own=Own(extra=7))
