"""Reading and writing a checkpoint's ``model_config.yaml``: a file somebody downloaded.

Values mean what they mean to OmegaConf, with which NeMo writes and reads them: 1e-5 is a number, where
plain YAML sees a text. NeMo's four resolvers are evaluated by ``interpolation``, every other one is
refused; aliases may not multiply. What cannot be resolved stays as written, since NeMo archives keep
``${...}`` of settings that nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import yaml

from nemoalign.config.interpolation import RESOLVERS, Interpolation
from nemoalign.errors import ContentError, SourceError

MAX_DEPTH = 50
MAX_NODES = 200_000
"""More nodes than this after expanding aliases is no configuration but an attack."""

_SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SAFE_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_FLOAT_TAG = "tag:yaml.org,2002:float"
_DATE_TAG = "tag:yaml.org,2002:timestamp"
_FLOAT = re.compile(r"^[-+]?\d+(?:_\d+)*(?:\.[\d_]*)?[eE][-+]?\d+$")
"""Floats that YAML 1.1 takes for texts: 1e-5, 1.5e3."""

_RESOLVER = re.compile(r"\$\{\s*([^{}:$\s]+)\s*:")
_COMPUTED_NAME = re.compile(r"\$\{[^{}:]*\$\{[^{}]*\}[^{}:]*:")


def load_checkpoint_config(text: str, where: str) -> dict[str, Any]:
    """Return a checkpoint's configuration as plain values; ``where`` names the file in errors.

    ``???`` becomes None, an interpolation that cannot be resolved stays the text it is. Raises as
    ``parse_checkpoint_config`` does.
    """
    return Interpolation(parse_checkpoint_config(text, where)).resolved()


def parse_checkpoint_config(text: str, where: str) -> dict[str, Any]:
    """Return a checkpoint's configuration as it is written, nothing resolved.

    Raises:
        SourceError: when the text is no YAML mapping, or is built to exhaust memory.
        ContentError: when it names a resolver that is not allowed.
    """
    _refuse_bombs(text, where)
    _refuse_resolvers(text, where)
    try:
        parsed = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not a configuration: {_first_line(error)}") from error
    return cast("dict[str, Any]", _text_keys(parsed))


def dump_checkpoint_config(config: Mapping[str, Any]) -> str:
    """Return ``config`` as the YAML text of a ``model_config.yaml``, keys in their order."""
    return yaml.dump(
        _unaliased(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )


class _Loader(_SAFE_LOADER):
    """Reads scalars as OmegaConf does: more texts are floats, none are dates, no key comes twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; a key that comes twice is an error instead of the last one winning."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) != len(names):
            raise yaml.YAMLError(f"a key of {names} comes twice.")
        constructor: Any = super()
        return constructor.construct_mapping(node, deep)


def _resolvers(*dropped: str) -> dict[Any, list[tuple[str, Any]]]:
    """Return which pattern gives which type to scalars by their first letter."""
    known = cast("dict[Any, list[tuple[str, Any]]]", _SAFE_LOADER.yaml_implicit_resolvers)
    rules = {
        letter: [rule for rule in rules if rule[0] not in dropped]
        for letter, rules in known.items()
    }
    for letter in "-+0123456789":
        rules[letter] = [*rules.get(letter, []), (_FLOAT_TAG, _FLOAT)]
    return rules


_Loader.yaml_implicit_resolvers = _resolvers(_DATE_TAG)


class _Dumper(_SAFE_DUMPER):
    """Writes equal lists twice instead of an alias, which NeMo's readers would take but people not."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


# A text that any reader would take for a number or a date is quoted.
_Dumper.yaml_implicit_resolvers = _resolvers()


def _refuse_bombs(text: str, where: str) -> None:
    """Walk the text without recursion first: the parsers recurse and would take the process down."""
    census = _Census()
    events: Iterator[Any] = cast("Any", yaml).parse(text, Loader=_SAFE_LOADER)
    try:
        for event in events:
            census.count(event)
    except yaml.YAMLError as error:
        raise SourceError(f"{where} is not YAML: {_first_line(error)}") from error
    if not census.is_mapping:
        raise SourceError(f"{where} is not a configuration: it holds no mapping of settings.")
    if census.sizes[0] > MAX_NODES:
        raise SourceError(
            f"{where} would expand to {census.sizes[0]} values through its aliases; no "
            "configuration does."
        )


class _Census:
    """Counts the values a YAML text stands for once every alias is written out."""

    def __init__(self) -> None:
        self.is_mapping = False
        self.sizes = [0]
        self._open: list[str | None] = []
        self._anchors: dict[str, int] = {}

    def count(self, event: Any) -> None:
        """Take in the next parser event."""
        if isinstance(event, yaml.CollectionStartEvent):
            self._enter(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = self.sizes.pop(), self._open.pop()
            self.sizes[-1] += size
            if anchor is not None:
                self._anchors[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise yaml.YAMLError("it contains itself through an alias.")
            self.sizes[-1] += self._anchors.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            self.sizes[-1] += 1

    def _enter(self, event: Any) -> None:
        if len(self.sizes) == 1:
            self.is_mapping = isinstance(event, yaml.MappingStartEvent)
        self.sizes.append(1)
        self._open.append(event.anchor)
        if len(self.sizes) > MAX_DEPTH:
            raise yaml.YAMLError(f"it nests more than {MAX_DEPTH} levels.")


def _refuse_resolvers(text: str, where: str) -> None:
    denied = [name for name in _RESOLVER.findall(text) if name not in RESOLVERS]
    if _COMPUTED_NAME.search(text):
        denied.append("a resolver whose name is computed")
    if denied:
        raise ContentError(
            f"{where} calls {denied[0]}, which a checkpoint may not do; only "
            f"{', '.join(RESOLVERS)} are evaluated."
        )


def _text_keys(value: Any) -> Any:
    """Return ``value`` with every key of a mapping as text; NeMo's settings have no other."""
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {str(key): _text_keys(child) for key, child in items}
    if isinstance(value, list):
        return [_text_keys(child) for child in cast("list[Any]", value)]
    return value


def _unaliased(value: Any) -> Any:
    """Return ``value`` with mappings and sequences as the plain kinds YAML knows."""
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {str(key): _unaliased(child) for key, child in items}
    if isinstance(value, list | tuple):
        return [_unaliased(child) for child in cast("list[Any]", value)]
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
