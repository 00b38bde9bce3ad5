"""Where settings come from: files, environment, ``--set`` and flags, each as dotted keys with a source.

A layer maps a dotted key to a raw value; text in it may still hold ``${...}``. Nothing is typed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from nemoalign.config.fields import Entry
from nemoalign.config.legacy import DATA_PREFIX, aliases_of
from nemoalign.config.merged import escaped
from nemoalign.config.values import DataFile, Duration, Every, Reject, RewardSource
from nemoalign.errors import ConfigError

ENVIRONMENT = "NEMOALIGN_"

_RELATIVE = re.compile(r"\$\{(\.+)")
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=\s]+?)\s*(?:=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Given:
    """A raw value and who gave it."""

    value: Any
    source: str
    written: str = field(default="", compare=False)
    """The key as it was written, which may be NeMo's name for it."""


@dataclass(frozen=True)
class Layer:
    """One rank of precedence: what it sets, and the keys it takes back from lower layers."""

    values: Mapping[str, Given]
    dropped: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What people give for one run, the lowest layer first."""

    preset: str | None = None
    """A peer of ``presets``."""
    configs: Sequence[Path] = ()
    environ: Mapping[str, str] | None = None
    """The process's own, when None."""
    sets: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was typed, by dotted key."""


def stack(layers: Sequence[Layer]) -> dict[str, Given]:
    """Return what remains when each layer is laid over the ones before it."""
    merged: dict[str, Given] = {}
    for layer in layers:
        for gone in layer.dropped:
            for key in [k for k in merged if k == gone or k.startswith(f"{gone}.")]:
                del merged[key]
        merged.update(layer.values)
    return merged


def tree_layer(tree: Mapping[str, Any], source: str, entries: Mapping[str, Entry]) -> Layer:
    """Return a YAML file's tree as a layer; ``???`` is nothing given."""
    made = _Making(entries)
    for key, value in _leaves(tree, ""):
        made.put(key, value, source)
    return Layer(made.values)


def environment_layer(
    environ: Mapping[str, str], entries: Mapping[str, Entry], parse: Callable[[str], Any]
) -> Layer:
    """Return ``NEMOALIGN_MODEL__OPTIM__LR=...`` as a layer; other NEMOALIGN_ names are no settings."""
    made = _Making(entries)
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT) and "__" in name:
            key = name.removeprefix(ENVIRONMENT).replace("__", ".").lower()
            made.put(key, read_text(environ[name], entries.get(key), parse), f"environment {name}")
    return Layer(made.values)


def sets_layer(
    sets: Sequence[str], entries: Mapping[str, Entry], parse: Callable[[str], Any]
) -> Layer:
    """Return ``--set`` overrides as a layer; Hydra's ``++a=b``, ``+a=b`` and ``~a`` are understood.

    Raises:
        ConfigError: when one is not KEY=VALUE.
    """
    made = _Making(entries)
    dropped: list[str] = []
    for text in sets:
        found = _OVERRIDE.fullmatch(text.strip())
        if found is None or (found["sign"] != "~" and found["value"] is None):
            raise ConfigError(f"--set takes KEY=VALUE, not {text!r}: --set model.optim.lr=1e-5")
        key = str(found["key"])
        if found["sign"] == "~":
            dropped.append(made.aliases.get(key, key))
            continue
        entry = None if key == DATA_PREFIX else entries.get(made.aliases.get(key, key))
        value = read_text(found["value"], entry, parse)
        leaves: Iterable[tuple[str, Any]] = [(key, value)]
        if isinstance(value, Mapping):
            leaves = _leaves(cast("Mapping[Any, Any]", value), f"{key}.")
        for leaf, item in leaves:
            made.put(leaf, item, "--set", last_wins=True)
    return Layer(made.values, tuple(dropped))


def flags_layer(flags: Mapping[str, Any], entries: Mapping[str, Entry]) -> Layer:
    """Return typed flags, by the key each sets, as a layer, with what they imply."""
    values: dict[str, Given] = {}
    for key, value in flags.items():
        known = entries[key].setting
        source = f"flag {(known.flag or key).partition('/')[0]}"
        values |= {other: Given(implied, source) for other, implied in known.implies.items()}
        values[key] = Given(escaped(_number(value, entries[key])), source)
    return Layer(values)


def _number(value: Any, entry: Entry) -> Any:
    """Return typed text as the number it is, which ``${multiply:...}`` of other settings may need."""
    if not {entry.type, *get_args(entry.type)} & {int, float}:
        return value
    try:
        return entry.read(value)
    except Reject:
        return value


def read_text(text: str, entry: Entry | None, parse: Callable[[str], Any]) -> Any:
    """Return text from a command line or the environment as a raw value.

    A setting that is text takes it as it stands, so a template with braces needs no quoting;
    anything else is read as YAML: ``1e-5``, ``true``, ``[a,b]``.
    """
    stripped = text.strip()
    if entry is None or not _is_text(entry) or stripped.startswith("["):
        return parse(stripped)
    if stripped in ("", "null", "None") and entry.optional:
        return None
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\""
    return stripped[1:-1] if quoted else text


def _is_text(entry: Entry) -> bool:
    kinds = {entry.type, *get_args(entry.type)}
    texts = {str, Path, Every, Duration, DataFile, RewardSource}
    return bool(kinds & texts) and tuple[str, ...] != entry.type


class _Making:
    """A layer being made, every value under our name for its key."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.values: dict[str, Given] = {}
        self.aliases = aliases_of(entries)

    def put(self, key: str, value: Any, source: str, *, last_wins: bool = False) -> None:
        """Store a value that ``source`` gives under ``key``; refuses two for one setting."""
        target = self.aliases.get(key, key)
        value = self._absolute(value, key)
        if key.startswith(DATA_PREFIX):
            value = _files_of(value)
        if target != key and value == f"${{{target}}}":
            return
        known = self.values.get(target)
        if known is not None and not last_wins and known.value != value:
            if target != key and value is None:
                return
            if known.value is not None:
                raise ConfigError(
                    f"{source} sets {target} twice, to {known.value!r} and (as {key}) to "
                    f"{value!r}. Keep one."
                )
        self.values[target] = Given(value, source, key)

    def _absolute(self, value: Any, key: str) -> Any:
        """Return ``value`` with its interpolations absolute and in our spelling, as keys may move."""
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return [self._absolute(item, f"{key}.{i}") for i, item in enumerate(items)]
        if not isinstance(value, str) or "${" not in value:
            return value
        parts = key.split(".")

        def root(found: re.Match[str]) -> str:
            above = parts[: max(0, len(parts) - len(found[1]))]
            return "${" + "".join(f"{part}." for part in above)

        text = _RELATIVE.sub(root, value)
        for old, new in self.aliases.items():
            text = re.sub(r"\$\{\s*" + re.escape(old) + r"(?![\w.])", "${" + new, text)
        return text


def _files_of(value: Any) -> Any:
    """Return Megatron's list of files, ``[0.7, a.jsonl, 0.3, b.jsonl]``, as ours: ``[a.jsonl:0.7, ...]``."""
    if not isinstance(value, list):
        return value
    found: list[Any] = []
    weight: int | float | None = None
    for item in cast("list[Any]", value):
        if isinstance(item, int | float) and not isinstance(item, bool):
            weight = item
        else:
            found.append(item if weight is None else f"{item}:{weight!r}")
            weight = None
    return found


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[Any, Any]", value), f"{key}.")
        elif value != "???":
            yield key, value
