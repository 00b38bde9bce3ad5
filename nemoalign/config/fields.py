"""One setting is one dataclass field: its default, help, flag and bounds are written once, here.

``setting`` makes a field; ``Section`` checks a section's bounds when it is made; ``settings_of``
lists every setting of a tree by its dotted key, which is what flags, merging and help are made of.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, ClassVar, Literal, cast, get_args, get_origin, get_type_hints

from nemoalign.config.values import Reject, convert
from nemoalign.errors import ConfigError

_Compare = Callable[[Any, Any], bool]
_GREATER, _NOT_LESS = cast("_Compare", operator.gt), cast("_Compare", operator.ge)
_LESS, _NOT_GREATER = cast("_Compare", operator.lt), cast("_Compare", operator.le)

PathKind = Literal["file", "directory", "any"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known about one setting beside its name, type and default."""

    help: str
    flag: str | None = None
    short: str | None = None
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: Mapping[str, Any] | None = None
    """Spelling -> stored value; a spelling may be what the command line says for null."""
    panel: str | None = None
    metavar: str | None = None
    path_kind: PathKind | None = None
    shown: str | None = None
    """How help words a default that is derived from other settings."""
    implies: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other keys that typing this flag sets."""
    transient: bool = False
    """True for a decision about this one command, which a repeated run must not inherit."""

    def reject(self, value: Any) -> str | None:
        """Return why ``value`` is out of bounds ("must be above 0"), or None when it is fine."""
        if value is None:
            return None
        if self.choices is not None:
            values = list(self.choices.values())
            wrong = [v for v in _each(value) if v not in values]
            return f"must be one of {', '.join(self.choices)}" if wrong else None
        for bound, words, holds in (
            (self.above, "above", _GREATER),
            (self.at_least, "at least", _NOT_LESS),
            (self.below, "below", _LESS),
            (self.at_most, "at most", _NOT_GREATER),
        ):
            if bound is not None and not all(holds(v, bound) for v in _each(value)):
                return f"must be {words} {bound:g}"
        return None


def setting(
    default: Any,
    help: str,
    *,
    choices: Mapping[str, Any] | Sequence[str] | None = None,
    **known: Any,
) -> Any:
    """Return a dataclass field for one setting; ``known`` are the fields of ``Setting``.

    Without ``flag`` a setting stays off the command line; ``--set`` and ``--config`` reach it.
    """
    if choices is not None and not isinstance(choices, Mapping):
        choices = {choice: choice for choice in choices}
    return field(
        default=default,
        metadata={"setting": Setting(help=help, choices=choices, **known)},
    )


def section(cls: type[Any], *, key: str | None = None) -> Any:
    """Return a dataclass field that holds another section, under ``key`` when it differs.

    The key ``{algorithm}`` stands for the algorithm's name: ``trainer.sft``, ``model.dpo``.
    """
    return field(default_factory=cls, metadata={"section": cls, "key": key})


class Section:
    """A dataclass of settings: constructing one checks the bounds of its own fields."""

    def __post_init__(self) -> None:
        for entry in own_settings(type(self)):
            value = getattr(self, entry.key)
            problem = entry.setting.reject(value)
            if problem:
                raise ConfigError(f"{entry.key} is {value!r}; it {problem}.")


@dataclass(frozen=True)
class Entry:
    """One setting in its place: dotted key, type, default and what is known about it."""

    key: str
    type: Any
    default: Any
    setting: Setting

    @property
    def optional(self) -> bool:
        """True when null is a value of this setting."""
        return type(None) in getattr(self.type, "__args__", ())

    def read(self, value: Any) -> Any:
        """Return ``value`` as this setting's type.

        Raises:
            Reject: when it has the wrong type, is no choice or is out of bounds.
        """
        choices = self.setting.choices
        if choices is not None:
            value = _spelled(value, choices)
        value = convert(value, self.type)
        problem = self.setting.reject(value)
        if problem:
            raise Reject(problem)
        return value


@cache
def own_settings(cls: type[Any]) -> tuple[Entry, ...]:
    """Return the settings of one section by field name, without those of the sections inside it.

    A field whose type is a ``Literal`` of words has these words as its choices.
    """
    hints = get_type_hints(cls)
    return tuple(
        Entry(f.name, hints[f.name], f.default, _with_choices(known, hints[f.name]))
        for f in fields(cls)
        if isinstance(known := f.metadata.get("setting"), Setting)
    )


def _with_choices(known: Setting, hint: Any) -> Setting:
    if known.choices is None and get_origin(hint) is Literal:
        return replace(known, choices={word: word for word in get_args(hint)})
    return known


def settings_of(
    cls: type[Any], algorithm: str, own: type[Any], prefix: str = ""
) -> Iterator[Entry]:
    """Yield every setting of the tree ``cls`` by dotted key, in order.

    ``own`` is the algorithm's section, which takes the place of ``AlgorithmSettings``.
    """
    settings = {entry.key: entry for entry in own_settings(cls)}
    for f in fields(cls):
        key = prefix + tree_key(f.name, f.metadata.get("key"), algorithm)
        if f.name in settings:
            yield replace(settings[f.name], key=key)
        elif "section" in f.metadata:
            inner = own if f.metadata["section"] is AlgorithmSettings else f.metadata["section"]
            yield from settings_of(inner, algorithm, own, f"{key}.")


def build(
    cls: type[Any], values: Mapping[str, Any], algorithm: str, own: type[Any], prefix: str = ""
) -> Any:
    """Return the section ``cls`` made from typed ``values`` by dotted key."""
    made: dict[str, Any] = {}
    for f in fields(cls):
        key = prefix + tree_key(f.name, f.metadata.get("key"), algorithm)
        if "section" in f.metadata:
            inner = own if f.metadata["section"] is AlgorithmSettings else f.metadata["section"]
            made[f.name] = build(inner, values, algorithm, own, f"{key}.")
        else:
            made[f.name] = values[key]
    return cls(**made)


def tree_key(name: str, key: str | None, algorithm: str) -> str:
    """Return a field's name in the merged tree."""
    return (key or name).replace("{algorithm}", algorithm)


@dataclass(frozen=True, kw_only=True)
class AlgorithmSettings(Section):
    """What one algorithm has for itself; each row of ``config.algorithms`` brings its own."""

    rows: ClassVar[Literal["texts", "pairs", "labels", "rewards", "prompts"]] = "texts"
    """What it learns from."""
    counts_tokens: ClassVar[bool] = False
    """True when its loss is a mean over tokens; else over rows, pairs or labels."""
    trains: ClassVar[bool] = True
    """False for a command that only uses a model."""
    free: ClassVar[tuple[str, ...]] = ()
    """Keys of the architecture that such a run decides itself, whatever the checkpoint says."""


def _each(value: Any) -> Sequence[Any]:
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)


def _spelled(value: Any, choices: Mapping[str, Any]) -> Any:
    """Return the stored value for a spelling; stored values and unknown words pass."""
    if isinstance(value, str) and "," not in value:
        return choices.get(value, value)
    return value
