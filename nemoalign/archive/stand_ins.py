"""What a pickle may name, and the inert values that stand in for it.

Nothing here imports or runs what a file names: a class becomes a ``Record`` of its arguments and
state, a tensor becomes a ``TensorRef`` that says where its bytes are. A name that no checkpoint
needs is refused, because a file that carries one was made to do something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nemoalign.archive.dtypes import DTYPES, DType, by_torch_storage
from nemoalign.archive.store import DAMAGED, TensorInfo, checked_shape
from nemoalign.errors import SourceError

Args = tuple[Any, ...]


@dataclass(eq=False, slots=True)
class Record:
    """An instance of a class that is never imported: its short name, arguments and attributes."""

    kind: str
    args: Args = ()
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    state: Any = None
    """What ``__setstate__`` would have been given, where that is no plain dict of attributes."""


@dataclass(frozen=True)
class Known:
    """A class or function that the pickle names; ``call`` builds the inert result."""

    name: str
    call: Callable[[Args], Any] = field(repr=False)


@dataclass(frozen=True)
class StorageRef:
    """Bytes of one storage record; ``dtype`` is None for an untyped one, counted in bytes."""

    key: str
    dtype: str | None
    numel: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage: strides and offset are counted in elements."""

    info: TensorInfo
    strides: tuple[int, ...]
    offset: int
    storage: StorageRef


def resolve(module: str, name: str, where: str) -> Any:
    """Return the stand-in of ``module.name``; raises SourceError when it is not allowed."""
    full = f"{module}.{name}"
    if full in _EXACT:
        return Known(full, _EXACT[full])
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    if module in ("torch", "torch.storage") and name.endswith("Storage"):
        return _storage_type(name)
    if _is_inert(module, name):
        return Known(full, lambda args: Record(name.rpartition(".")[2], args))
    raise SourceError(
        f"{where} names {full[:200]!r}, which no checkpoint needs, so it was refused before "
        "anything ran. Get the checkpoint from a source you trust."
    )


def persistent(pid: object, where: str) -> StorageRef:
    """Return the storage that a torch file's persistent id points at."""
    match pid:
        case (
            ("storage", Known(name=name), str(key), str(), int(numel))
            # Before torch 1.6 a view of another storage could follow; none does since 0.4.
            | ("storage", Known(name=name), str(key), str(), int(numel), None)
        ) if numel >= 0:
            kind = None if name.endswith("UntypedStorage") else name.removeprefix("torch.")
            return StorageRef(key, kind and by_torch_storage(kind).name, numel)
        case _:
            raise SourceError(f"{where} refers to a storage in an unknown way. {DAMAGED}")


def build(target: object, state: Any) -> None:
    """Give ``state`` to a stand-in, as ``__setstate__`` would."""
    if isinstance(target, dict):
        return  # attributes of an OrderedDict (torch puts version numbers there)
    assert isinstance(target, Record), "the machine builds only stand-ins"
    match state:
        case {}:
            _update(target, state)
        case ({} | None as attributes, {} as slots):
            _update(target, attributes or {})
            _update(target, slots)
        case _:
            target.state = state


def _update(target: Record, attributes: dict[Any, Any]) -> None:
    for key, value in attributes.items():
        if not isinstance(key, str):
            message = "an attribute is not named by text"
            raise TypeError(message)
        target.fields[key] = value


def _is_inert(module: str, name: str) -> bool:
    if not _QUALIFIED.fullmatch(name):
        return False
    if module in _INERT_NAMES:
        return name in _INERT_NAMES[module]
    return any(module == p or module.startswith(p + ".") for p in _INERT_MODULES)


def _storage_type(name: str) -> Known:
    if name not in ("UntypedStorage", "TypedStorage"):
        by_torch_storage(name)
    return Known(f"torch.{name}", lambda args: Record(name, args))


def _size(args: Args) -> tuple[int, ...]:
    (lengths,) = args
    return checked_shape(lengths, "A torch.Size in a pickle")


def _tensor(args: Args) -> TensorRef:
    storage, offset, shape, strides = args[:4]
    return _tensor_ref(storage, None, (offset, shape, strides))


def _tensor_v3(args: Args) -> TensorRef:
    storage, offset, shape, strides = args[:4]
    kind = args[6]
    if not isinstance(kind, DType):
        message = "the element type of a tensor is not one"
        raise TypeError(message)
    return _tensor_ref(storage, kind.name, (offset, shape, strides))


def _tensor_ref(storage: Any, kind: str | None, view: Args) -> TensorRef:
    name = kind or (isinstance(storage, StorageRef) and storage.dtype)
    if not (isinstance(storage, StorageRef) and name):
        message = "a tensor has no storage or no element type"
        raise TypeError(message)
    offset, shape, strides = view
    where = f"The tensor in storage {storage.key[:40]!r}"
    steps = checked_shape(strides, where)
    info = TensorInfo(checked_shape(shape, where), name)
    if len(steps) != len(info.shape) or type(offset) is not int or offset < 0:
        raise SourceError(f"{where} has {len(steps)} strides or an impossible offset. {DAMAGED}")
    return TensorRef(info, steps, offset, storage)


def _encoded(args: Args) -> bytes:
    match args:
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case _:
            message = "only latin-1 strings are turned into bytes"
            raise ValueError(message)


def _empty_bytes(args: Args) -> Any:
    return Record("bytes", args) if args else b""


def _mapping(args: Args) -> dict[Any, Any]:
    """An OrderedDict, defaultdict or Counter; contents follow by SETITEMS, or as pairs."""
    match args:
        case ([*pairs],):
            return {_text_key(pair[0]): pair[1] for pair in pairs}
        case _:
            return {}


def _text_key(key: object) -> str | int:
    if not isinstance(key, str | int):
        message = "a key of an OrderedDict is neither text nor a number"
        raise TypeError(message)
    return key


def _attribute(args: Args) -> Record:
    """``getattr`` on an enum class is how some Python versions pickle its members."""
    owner, name = args
    if not (isinstance(owner, Known) and isinstance(name, str)):
        message = "getattr is understood on classes only"
        raise TypeError(message)
    return Record(f"{owner.name.rpartition('.')[2]}.{name}")


_EXACT: dict[str, Callable[[Args], Any]] = {
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda args: args[0],
    "torch._utils._rebuild_parameter_with_state": lambda args: args[0],
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "builtins.getattr": _attribute,
    "__builtin__.getattr": _attribute,
}

_VALUES = {
    "dict",
    "list",
    "set",
    "frozenset",
    "tuple",
    "int",
    "float",
    "complex",
    "bool",
    "str",
} | {*("bytes", "bytearray", "object", "slice", "range", "type", "NoneType", "unicode", "long")}

_INERT_NAMES: dict[str, set[str]] = {
    "builtins": _VALUES,
    "__builtin__": _VALUES,
    "_io": {"BytesIO"},
    "argparse": {"Namespace"},
    "copyreg": {"_reconstructor"},
    "datetime": {"datetime", "date", "timedelta"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "signal": {"Signals"},
    "torch": {"device", "strided", "contiguous_format", "preserve_format", "Tensor"},
    "torch.serialization": {"_get_layout"},
    "typing": {"Any", "Optional", "Union"},
}

_INERT_MODULES = (
    "torch.distributed.checkpoint",
    "torch.distributed._shard",
    "megatron",
    "nemo",
    "nemo_aligner",
    "omegaconf",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "transformer_engine",
)

_QUALIFIED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
