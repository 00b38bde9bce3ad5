"""Laying the layers over each other: the one place that knows precedence, and reads people's YAML.

defaults < ``--preset`` < the checkpoint < ``--config`` files in order < environment < ``--set`` < typed flags.
OmegaConf reads YAML and resolves ``${...}``; what leaves this file is frozen dataclasses and plain data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from nemoalign.config.algorithms import ALGORITHMS, AlgorithmRow
from nemoalign.config.aligner_ppo import Meant, as_meant
from nemoalign.config.check import check_rules
from nemoalign.config.derive import derived
from nemoalign.config.fields import build
from nemoalign.config.interpolation import RESOLVERS
from nemoalign.config.layers import (
    Given,
    Layer,
    Said,
    environment_layer,
    flags_layer,
    sets_layer,
    stack,
    tree_layer,
)
from nemoalign.config.locks import Base, read_base
from nemoalign.config.merged import Merged, escaped, nested
from nemoalign.config.names import Names
from nemoalign.config.presets import NOTES, PRESETS
from nemoalign.config.schema import RunConfig
from nemoalign.config.values import Reject, plain
from nemoalign.errors import ConfigError, SourceError

FIRST_CONFIG = "nemoalign.yaml"
"""A file of this name in the working directory is the first ``--config``."""

CHECKPOINT = "pretrained_checkpoint.restore_from_path"
DEFAULT = "default"

_RESOLVER = re.compile(r"(?<!\\)\$\{\s*(?P<name>[^{}:\s]*)\s*(?P<end>[:$}])")

ReadCheckpoint = Callable[[Path], Mapping[str, Any]]


def merge_run(algorithm: str, said: Said, checkpoint: ReadCheckpoint | None = None) -> Merged:
    """Return the merged configuration of one run of ``algorithm``.

    ``checkpoint`` returns the ``model_config.yaml`` fields of the source at a path. That a checkpoint
    and data are named at all is ``check.check_complete``'s matter, so that ``--print-config`` works
    without them.

    Raises:
        ConfigError: for an unknown key, a value of the wrong type or settings that contradict.
        ContentError: when a layer changes a locked key of the checkpoint.
        SourceError: when a ``--config`` file cannot be read.
    """
    merge = _Merge(ALGORITHMS[algorithm], said.preset)
    first = [Path(FIRST_CONFIG)] if Path(FIRST_CONFIG).is_file() else []
    environ = os.environ if said.environ is None else said.environ
    upper = merge.read(said.flags, said.sets, [*first, *said.configs], environ)
    base = merge.read_checkpoint(upper, checkpoint)
    merged = merge.finish(upper, base)
    if said.preset is not None:
        merged.notes.append(f"--preset {said.preset}: {NOTES[said.preset][algorithm]}")
    if first:
        merged.notes.append(f"{FIRST_CONFIG} in this directory is read as the first --config.")
    return merged


class _Merge:
    """The steps of one merge, over the settings of one algorithm."""

    def __init__(self, row: AlgorithmRow, preset: str | None) -> None:
        self.row = row
        self.entries = row.entries()
        self.names = Names(self.entries, row.name)
        self.meant = Meant([])
        self.defaults = {
            key: Given(escaped(plain(entry.default)), DEFAULT)
            for key, entry in self.entries.items()
        }
        if preset is not None and row.name not in PRESETS[preset]:
            raise ConfigError(f"--preset {preset} has nothing for {row.name}. Leave it out.")
        values: Mapping[str, Any] = {} if preset is None else PRESETS[preset][row.name]
        self.preset: Mapping[str, Given] = {
            key: Given(plain(v), f"--preset {preset}") for key, v in values.items()
        }

    def read(
        self,
        flags: Mapping[str, Any],
        sets: Sequence[str],
        configs: Sequence[Path],
        environ: Mapping[str, str],
    ) -> dict[str, Given]:
        """Return what people gave: of each key, its highest layer."""
        files = [tree_layer(_load(path), str(path), self.entries) for path in configs]
        others = [
            environment_layer(environ, self.entries, _parse),
            sets_layer(sets, self.entries, _parse),
        ]
        for layer in [*files, *others]:
            self.names.check(layer)
        if self.row.name == "ppo":
            self.meant = as_meant(files, others)
        else:
            self.meant = Meant([*files, *others])
        typed = flags_layer(flags, self.entries)
        self._refuse_two_voices(others[-1], typed)
        return stack([*(self._without_nothing(layer) for layer in self.meant.layers), typed])

    def read_checkpoint(
        self, upper: Mapping[str, Given], checkpoint: ReadCheckpoint | None
    ) -> Base | None:
        """Return what the checkpoint brings, or None when nothing names one."""
        given = {**self.defaults, **self.preset, **upper}
        path = self._typed(CHECKPOINT, _Resolver(given))
        if path is None or checkpoint is None:
            return None
        return read_base(path, checkpoint(path), upper)

    def finish(self, upper: Mapping[str, Given], base: Base | None) -> Merged:
        """Return the merged run from what people gave and what the checkpoint brings."""
        lower = {**self.preset, **(base.values if base is not None else {})}
        resolver = _Resolver({**self.defaults, **lower, **upper})
        values = {key: self._typed(key, resolver) for key in self.entries}
        sources = {key: resolver.given[key].source for key in self.entries}
        found = derived(values, lambda key: key in upper or key in lower, self.row.name)
        for key, (value, why) in found.items():
            values[key], sources[key] = value, f"{DEFAULT} ({why})"
        config = build(RunConfig, values, self.row.name, self.row.settings)
        warnings = [
            *self.meant.warnings,
            *self.names.lost(upper, resolver, values),
            *check_rules(config, sources),
        ]
        flat = {key: plain(value) for key, value in values.items()}
        if base is not None:
            asked = {key: resolver(key) for key in upper if base.covers(key)}
            warnings += base.apply(asked, upper, config)
            for key, value in base.describe(asked).items():
                if key not in self.entries:
                    flat[key], sources[key] = value, resolver.given[key].source
        checkpoint_config = base.config if base is not None else {}
        hints = list(self.meant.hints)
        return Merged(
            self.row.name, config, checkpoint_config, nested(flat), sources, hints, warnings
        )

    def _typed(self, key: str, resolver: _Resolver) -> Any:
        """Return the typed value of a setting, or say in one sentence why there is none."""
        entry = self.entries[key]
        value = self.names.spelled(key, resolver(key))
        if value is None and not entry.optional:
            return entry.read(entry.default)
        try:
            return entry.read(value)
        except Reject as reason:
            source = resolver.given[key].source
            complaint = self.names.complaint(key, value, source, str(reason))
            raise ConfigError(complaint) from reason

    def _without_nothing(self, layer: Layer) -> Layer:
        """Return a layer without null where null is no value; as in NeMo's files it is not given."""
        kept = {key: v for key, v in layer.values.items() if not self._is_nothing(key, v)}
        return Layer(kept, layer.dropped)

    def _is_nothing(self, key: str, given: Given) -> bool:
        """True for null of a section, or of a setting that is always something."""
        if given.value is not None:
            return False
        entry = self.entries.get(key)
        if entry is None:
            return key in self.names.sections
        return not entry.optional and self.names.spelled(key, None) is None

    def _refuse_two_voices(self, sets: Layer, flags: Layer) -> None:
        """Refuse a flag and a ``--set`` that want different values for one key."""
        for key in sets.values.keys() & flags.values.keys():
            one, other = (
                self._typed(key, _Resolver({**self.defaults, **layer.values}))
                for layer in (sets, flags)
            )
            if one != other:
                raise ConfigError(
                    f"--set gives {key} the value {plain(one)!r} and {flags.values[key].source} "
                    f"gives it {plain(other)!r}. Keep one of them."
                )


class _Resolver:
    """Resolved raw values by key, of all layers together."""

    def __init__(self, given: Mapping[str, Given]) -> None:
        self.given = given
        for key, value in given.items():
            _refuse_resolvers(key, value)
            _refuse_malformed(key, value)
        # OmegaConf 2.4 renamed the function and warns about the old name.
        register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver
        for name, function in RESOLVERS.items():
            register(name, function, replace=True)
        self._tree = OmegaConf.create(nested({key: value.value for key, value in given.items()}))

    def __call__(self, key: str) -> Any:
        """Return the value of ``key`` with every ``${...}`` replaced."""
        given = self.given[key]
        if not _mentions(given.value):
            return given.value
        try:
            value: Any = OmegaConf.select(self._tree, key)
        except InterpolationKeyError as error:
            missing = re.findall(r"'([^']*)'", _first(error))
            raise ConfigError(
                f"{key} is {given.value!r} ({given.source}), but there is no "
                f"{missing[0] if missing else 'such key'}."
            ) from error
        except (OmegaConfBaseException, ArithmeticError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{key} is {given.value!r} ({given.source}), which cannot be worked out: "
                f"{_first(error)}."
            ) from error
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _mentions(value: Any) -> bool:
    if isinstance(value, list):
        return any(_mentions(item) for item in cast("list[Any]", value))
    return isinstance(value, str) and "${" in value


def _refuse_resolvers(key: str, given: Given) -> None:
    """Allow NeMo's four arithmetic resolvers; environment, code and nested names stay out."""
    value: Any = given.value
    texts = cast("list[Any]", value) if isinstance(value, list) else [value]
    for text in texts:
        for found in _RESOLVER.finditer(text) if isinstance(text, str) else ():
            if found["end"] == "$" or (found["end"] == ":" and found["name"] not in RESOLVERS):
                raise ConfigError(
                    f"{key} is {text!r} ({given.source}); ${{...}} may name another key or use "
                    f"{', '.join(RESOLVERS)}, nothing else."
                )


def _refuse_malformed(key: str, given: Given) -> None:
    if not _mentions(given.value):
        return
    try:
        OmegaConf.create({"x": given.value})
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{key} is {given.value!r} ({given.source}), which is no complete ${{...}}. "
            "Write \\${ for the two letters themselves."
        ) from error


def _load(path: Path) -> Mapping[str, Any]:
    """Return a ``--config`` file as a plain tree, interpolations left as written."""
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise SourceError(f"There is no file {path}; --config names it.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as a configuration: {_first(error)}.") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not valid YAML: {_where(error)}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no settings; it must be a mapping such as model: {{...}}.")
    return cast("dict[str, Any]", tree)


def _parse(text: str) -> Any:
    """Return text as the YAML value it is, or as it stands when it is none."""
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException):
        return text
    return cast("dict[str, Any]", parsed)["x"]


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or _first(error)
    return f"{problem} (line {mark.line + 1})" if mark is not None else str(problem)


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
