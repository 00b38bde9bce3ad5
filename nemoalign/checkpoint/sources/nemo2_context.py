"""The ``context/`` of a NeMo 2 directory as a plain tree: io.json and model.yaml name any callable, run none.

Both become the same tree: an object is a mapping of its arguments with its class under ``_target_``, a
function is ``{"_target_": "torch.nn.functional.silu"}``. model.yaml states every value; io.json, which is
fiddle's serialization, states only what was given, so it serves where model.yaml is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from nemoalign.archive.files import Container
from nemoalign.config.checkpoint_yaml import load_checkpoint_config
from nemoalign.errors import SourceError

CONTEXT_FOLDER = "context"
YAML_NAME = "model.yaml"
IO_NAME = "io.json"
TARGET = "_target_"

_MAX_FILE_BYTES = 16 << 20
_MAX_DEPTH = 60
_MAX_NODES = 200_000
_PATH = re.compile(
    r"(?:Attr|Key|Index)\((?:name|key|index)=(?P<quote>['\"]?)(?P<name>.*)(?P=quote)\)"
)


def read_model_tree(context: Container) -> tuple[dict[str, Any], str]:
    """Return the tree of the model in a ``context/`` folder, and the file it was read from.

    Raises:
        SourceError: when neither file is there, or one is damaged or made to exhaust memory.
    """
    if YAML_NAME in context.members:
        where = f"{context.path}: {CONTEXT_FOLDER}/{YAML_NAME}"
        text = context.members[YAML_NAME].read(_MAX_FILE_BYTES).decode("utf-8", "replace")
        return load_checkpoint_config(text, where), YAML_NAME
    if IO_NAME in context.members:
        where = f"{context.path}: {CONTEXT_FOLDER}/{IO_NAME}"
        model = _as_mapping(_FiddleFile(context.members[IO_NAME].read(_MAX_FILE_BYTES), where).root)
        return _as_mapping(model.get("model", model)), IO_NAME
    held = ", ".join(sorted(context.members)[:5]) or "nothing"
    raise SourceError(
        f"{context.path} is a NeMo 2 directory without {CONTEXT_FOLDER}/{YAML_NAME} and "
        f"{CONTEXT_FOLDER}/{IO_NAME}, one of which says what its weights are; {CONTEXT_FOLDER}/ holds "
        f"{held}. Fetch it again."
    )


class _FiddleFile:
    """One io.json: objects refer to each other by name; every reference is followed and counted."""

    def __init__(self, content: bytes, where: str) -> None:
        self._where = where
        try:
            parsed: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        self._objects = _as_mapping(_as_mapping(parsed).get("objects"))
        self._nodes = 0
        if "root" not in _as_mapping(parsed):
            raise self._damaged("it has no root")
        self.root = self._value(parsed["root"], 0)

    def _value(self, node: Any, depth: int) -> Any:
        """Return what a node stands for."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise self._damaged("it nests without end")
        match node:
            case {"type": "ref", "key": str(key)}:
                if key not in self._objects:
                    raise self._damaged(f"it refers to {key[:80]!r}, which it does not hold")
                return self._value(self._objects[key], depth + 1)
            case {"type": "leaf"}:
                return node.get("value")
            case {"type": "pyref", "module": str(module), "name": str(name)}:
                return {TARGET: f"{module}.{name}"}
            case {"type": dict() as kind, "items": list() as items}:
                return self._object(node, kind, items, depth)
            case {"type": _}:
                raise self._damaged("it holds a value of an unknown type")
            case _:
                return node

    def _object(self, node: Any, kind: Any, items: list[Any], depth: int) -> Any:
        named = [self._item(item, depth) for item in items]
        short = str(kind.get("name"))
        if short in ("list", "tuple"):
            return [value for _, value in named]
        if short == "dict":
            return dict(named)
        return {TARGET: self._callable_of(node, kind, depth), **dict(named)}

    def _item(self, item: Any, depth: int) -> tuple[str, Any]:
        match item:
            case [str(path), value]:
                found = _PATH.fullmatch(path)
                return (found["name"] if found else path), self._value(value, depth + 1)
            case _:
                raise self._damaged("an object holds an item without a name")

    def _callable_of(self, node: Any, kind: Any, depth: int) -> str:
        """Return the class of an object: fiddle's Config keeps it in its metadata."""
        metadata = self._value(node.get("metadata"), depth + 1)
        held = _as_mapping(_as_mapping(metadata).get("fn_or_cls")).get(TARGET)
        return str(held or f"{kind.get('module')}.{short_name(str(kind.get('name')))}")

    def _damaged(self, what: str) -> SourceError:
        return SourceError(f"{self._where} is no description of a model: {what}. Fetch it again.")


def short_name(target: Any) -> str:
    """Return the last part of a dotted name, of a ``_target_`` mapping or of a text."""
    text = _as_mapping(target).get(TARGET) if isinstance(target, Mapping) else target
    return str(text or "").rpartition(".")[2]


def _as_mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def dump_io(tree: Mapping[str, Any]) -> str:
    """Return a tree as the text of an io.json; inverse of the reading above.

    Objects that NeMo looks up by their place carry it: the model is at ``<root>.model``.
    """
    objects: dict[str, Any] = {}
    root = _node(tree, "<root>", objects)
    counts = dict.fromkeys(objects, 1)
    whole = {"root": root, "objects": objects, "refcounts": counts, "version": "0.0.1"}
    return json.dumps(whole, indent=2)


def _node(value: Any, path: str, objects: dict[str, Any]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        held = cast("Mapping[str, Any]", value)
        return _config_node(held, path, objects) if TARGET in held else _empty("dict", [path])
    if isinstance(value, list):
        named = enumerate(cast("list[Any]", value))
        items = [[f"Index(index={n})", _node(v, f"{path}[{n}]", objects)] for n, v in named]
        return {"type": _pyref("builtins.list"), "items": items, "metadata": None, "paths": [path]}
    return {"type": "leaf", "value": value, "paths": [path]}


def _config_node(tree: Mapping[str, Any], path: str, objects: dict[str, Any]) -> dict[str, Any]:
    target = str(tree[TARGET])
    if tree.get("_call_") is False:
        return {**_pyref(target), "paths": [path]}
    given = {name: value for name, value in tree.items() if name != TARGET}
    items = [[f"Attr(name='{n}')", _node(v, f"{path}.{n}", objects)] for n, v in given.items()]
    names = {
        "type": _pyref("builtins.tuple"),
        "items": [[f"Index(index={number})", name] for number, name in enumerate(given)],
        "metadata": None,
    }
    held = {"fn_or_cls": _pyref(target), "argument_names": names}
    held |= {"argument_tags": _empty("dict"), "argument_history": _empty("dict")}
    metadata = {
        "type": _pyref("fiddle._src.config.BuildableTraverserMetadata"),
        "items": [[f"Attr(name='{name}')", value] for name, value in held.items()],
        "metadata": _pyref("fiddle._src.config.BuildableTraverserMetadata"),
    }
    key = f"{short_name(target).lower()}_{len(objects) + 1}"
    kind = _pyref("fiddle._src.config.Config")
    objects[key] = {"type": kind, "items": items, "metadata": metadata, "paths": [path]}
    return {"type": "ref", "key": key}


def _empty(kind: str, paths: list[str] | None = None) -> dict[str, Any]:
    keys = {"type": _pyref("builtins.tuple"), "items": [], "metadata": None}
    node = {"type": _pyref(f"builtins.{kind}"), "items": [], "metadata": keys}
    return node if paths is None else {**node, "paths": paths}


def _pyref(target: str) -> dict[str, Any]:
    module, _, name = target.rpartition(".")
    return {"type": "pyref", "module": module, "name": name}
