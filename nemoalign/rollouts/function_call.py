"""A function of a person's own that rewards answers: found, looked at, called, and its rewards checked.

This runs in a process of its own (``function_worker``) and imports the standard library alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import numbers
import os
import reprlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Row = tuple[str, str, Mapping[str, Any]]
"""Prompt, response and the other fields of the prompt's row."""

MAX_MESSAGE = 200


class Unusable(Exception):
    """Why a function cannot give rewards, as the rest of a sentence."""


class FunctionCall:
    """A function that rewards answers, and how it wants to be called."""

    def __init__(self, function: Callable[..., Any], file: str = "") -> None:
        """Look at the parameters of ``function``, which stands in ``file``.

        Raises:
            Unusable: when they have no place for a prompt and a response.
        """
        self.file = file
        self.batched = bool(getattr(function, "batched", False))
        self._function = function
        self._name = getattr(function, "__name__", type(function).__name__)
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions written in C have none
            self._signature = inspect.signature(lambda prompt, response, /: None)
        self._places = {} if self.batched else self._find_places()
        if self.batched:
            self._check_batched()

    @classmethod
    def load(cls, module: str, function: str) -> FunctionCall:
        """Return ``function`` of ``module``, which is a module's name or a Python file.

        Raises:
            Unusable: when there is no such function, its import fails or it takes something else.
        """
        try:
            holder = _import_file(module) if module.endswith(".py") else _import(module, function)
        except Unusable:
            raise
        except BaseException as error:  # a module may also call sys.exit
            failure = _raised(error, module)
            where = f" ({failure['where']})" if failure["where"] else ""
            raise Unusable(
                f"importing {module} {failure['kind']}: {failure['message']}{where}. Repair it first"
            ) from error
        file = getattr(holder, "__file__", None) or ""
        found = getattr(holder, function, None)
        if found is None:
            own = [n for n, v in vars(holder).items() if inspect.isfunction(v) and n[0] != "_"]
            others = f"; its functions are {', '.join(own)}" if own else ""
            raise Unusable(f"{module} ({shortened(file)}) has no {function}{others}")
        if not callable(found):
            raise Unusable(f"{function} of {module} is of type {type(found).__name__}, no function")
        return cls(found, file)

    def results(self, rows: Sequence[Row]) -> list[Any]:
        """Return for each row a finite number, None for no reward, or a failure as a mapping.

        A failure has a ``kind``, a ``message`` and ``where``, a file and a line; all three are text.
        """
        try:
            returned = self._call_batched(rows) if self.batched else [self._call(*r) for r in rows]
        except BaseException as error:  # noqa: BLE001 - sys.exit in a function is a mistake as others
            return [_raised(error, self.file)] * len(rows)
        if not isinstance(returned, list):
            return [_returned(returned)] * len(rows)
        if len(returned) != len(rows):
            message = f"{len(returned)} for {len(rows)} answers"
            return [_failure("returned a list of another length", message)] * len(rows)
        return [_checked(value) for value in returned]

    def _call_batched(self, rows: Sequence[Row]) -> Any:
        prompts, responses, fields = (list(column) for column in zip(*rows, strict=True))
        returned = self._function(prompts, responses, fields)
        return list(returned) if hasattr(returned, "__iter__") else returned

    def _call(self, prompt: str, response: str, fields: Mapping[str, Any]) -> Any:
        known = {"prompt": prompt, "response": response, "row": fields}
        arguments: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if name in self._places:
                arguments[name] = known[self._places[name]]
            elif parameter.kind == parameter.VAR_POSITIONAL:
                placed = self._places.values()
                missing = () if "response" in placed else ("prompt", "response")
                arguments[name] = tuple(known[p] for p in missing if p not in placed)
            elif parameter.kind == parameter.VAR_KEYWORD:
                named = self._signature.parameters
                arguments[name] = {k: v for k, v in fields.items() if k not in named}
            elif name in fields:
                arguments[name] = fields[name]
        bound = inspect.BoundArguments(self._signature, arguments)  # pyright: ignore[reportArgumentType] - any mapping in order does
        return self._function(*bound.args, **bound.kwargs)

    def _find_places(self) -> dict[str, str]:
        """Return which parameters take prompt, response and row: those called so, else the first two."""
        by_kind = self._signature.parameters.items()
        many = [n for n, p in by_kind if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        free = [n for n, p in by_kind if n not in many and n != "row" and p.kind != p.KEYWORD_ONLY]
        names = [n for n in ("prompt", "response", "row") if n in dict(by_kind) and n not in many]
        wanted = [n for n in ("prompt", "response") if n not in names]
        if wanted == ["prompt"] and free[1:2] != ["response"]:
            wanted = []  # it looks at no prompt
        others = [name for name in free if name not in names]
        places = dict(zip(names, names, strict=True)) | dict(zip(others, wanted, strict=False))
        if "response" not in places.values() and not any(
            p.kind == p.VAR_POSITIONAL for _, p in by_kind
        ):
            raise self._unusable("has no place for a response", "prompt, response, **fields")
        return places

    def _check_batched(self) -> None:
        try:
            self._signature.bind([], [], [])
        except TypeError as error:
            wanted = "prompts, responses, rows"
            raise self._unusable("is batched and does not take three lists", wanted) from error

    def _unusable(self, problem: str, wanted: str) -> Unusable:
        return Unusable(
            f"{self._name}{self._signature} {problem}. Write: def {self._name}({wanted})"
        )


def _import(module: str, function: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        library = Path(os.__file__).parent
        looked = [p for p in sys.path if Path(p).parent not in (library, library.parent)]
        packages = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        places = ", ".join(dict.fromkeys([*looked, *packages]))
        file = f"{module.replace('.', '/')}.py"
        raise Unusable(
            f"there is no module {error.name} in {places}. "
            f"Start where {file} is, or type its path: --reward path/to/{file}:{function}"
        ) from error


def _import_file(file: str) -> ModuleType:
    path = Path(file).resolve()
    if not path.is_file():
        raise Unusable(f"there is no file {path}")
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a name that ends in .py is Python's"
    assert spec.loader is not None, "and has its loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _checked(value: Any) -> Any:
    """Return a reward as a finite number, None for none, or the failure that it is."""
    if value is None:
        return None
    try:
        value = value.item() if hasattr(value, "item") else value  # scalars of numpy and torch
        number = float(value) if isinstance(value, numbers.Real) else None
    except OverflowError:
        number = math.inf
    except Exception:  # noqa: BLE001 - a tensor of several numbers, or whatever else has an item
        number = None
    if number is None:
        return _returned(value)
    return number if math.isfinite(number) else _failure(f"returned {number}")


def _returned(value: Any) -> dict[str, str]:
    return _failure(f"returned a {type(value).__name__}", reprlib.repr(value))


def _raised(error: BaseException, file: str) -> dict[str, str]:
    """Return the failure that an exception is; where is the innermost line of ``file``, if any."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception of a person's own may fail at this too
        message = ""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    return _failure(f"raised {type(error).__name__}", message, place_in(file, frames[::-1]))


def _failure(kind: str, message: str = "", where: str = "") -> dict[str, str]:
    lines = message.strip().splitlines() or [""]
    return {"kind": kind, "message": lines[0][:MAX_MESSAGE], "where": where}


def place_in(file: str, frames: Sequence[tuple[str, int | str]]) -> str:
    """Return ``file:line`` of the innermost frame of a person's file, "" without any frame.

    ``frames`` are files and lines, innermost first. Where none is of ``file``, the innermost counts that
    is not of Python's own library.
    """
    known = [frame for frame in frames if not frame[0].startswith("<")]
    own = [frame for frame in known if Path(frame[0]) == Path(file).absolute()]
    others = [frame for frame in known if Path(os.__file__).parent not in Path(frame[0]).parents]
    found = (own or others or known)[:1]
    return "".join(f"{shortened(file)}:{line}" for file, line in found)


def shortened(file: str) -> str:
    """Return the path from here of a file below here, else the whole path."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
