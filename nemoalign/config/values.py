"""Values as people write them, turned into the types the program uses, or refused with a reason."""

from __future__ import annotations

import keyword
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin


class Reject(ValueError):
    """Why a value is no value of a setting, as the end of a sentence: "must be a number"."""


@dataclass(frozen=True)
class Every:
    """An interval: ``100`` steps, ``0.1`` of an epoch, ``1epoch``; 0 is never."""

    amount: float
    epochs: bool = False

    @classmethod
    def parse(cls, value: Any) -> Every:
        """Return the interval that ``100``, ``0.1``, ``1epoch`` or ``2epochs`` means.

        As in NeMo a whole number counts steps and a number with a point counts epochs.
        """
        if isinstance(value, Every):
            return value
        text = str(value).strip()
        number = re.sub(r"\s*epochs?$", "", text)
        try:
            amount = float(number)
        except ValueError as error:
            raise Reject(
                "must be steps (100), a share of an epoch (0.1) or epochs (1epoch)"
            ) from error
        if isinstance(value, bool) or not 0 <= amount < float("inf"):
            raise Reject("must be 0 (never) or more")
        return cls(amount, epochs=number != text or not re.fullmatch(r"\d+", number))

    def steps(self, steps_per_epoch: int) -> int:
        """Return the interval in optimizer steps: 0 for never, else at least 1."""
        if self.amount == 0:
            return 0
        return max(1, int(self.amount * steps_per_epoch if self.epochs else self.amount))

    @property
    def plain(self) -> int | float | str:
        """The interval as YAML holds it; ``parse`` reads it back."""
        if not self.epochs:
            return int(self.amount)
        return f"{self.amount:.0f}epoch" if self.amount.is_integer() else self.amount

    def __str__(self) -> str:
        """Return the spelling for a command line."""
        return str(self.plain)


@dataclass(frozen=True)
class Duration:
    """A length of time, in seconds."""

    seconds: int

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Return what ``1-12:00:00``, NeMo's ``01:12:00:00``, ``12:00:00``, ``30:00`` or ``1800`` means."""
        if isinstance(value, Duration):
            return value
        days, dash, clock = str(value).strip().rpartition("-")
        parts = clock.split(":")
        numeric = all(re.fullmatch(r"\d+", part) for part in [*parts, *([days] if dash else [])])
        if not numeric or len(parts) > 4:
            raise Reject("must be D-HH:MM:SS, HH:MM:SS, MM:SS or seconds")
        numbers = [int(part) for part in parts]
        if days:  # as SLURM: after the days come hours, then minutes
            numbers = [int(days), *numbers, 0, 0][:4]
        scale = (1, 60, 3600, 86400)
        return cls(sum(n * unit for n, unit in zip(reversed(numbers), scale, strict=False)))

    def __str__(self) -> str:
        """Return ``D-HH:MM:SS``."""
        minutes, seconds = divmod(self.seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours // 24}-{hours % 24:02}:{minutes:02}:{seconds:02}"


@dataclass(frozen=True)
class DataFile:
    """A data file and its share in a mix of several."""

    path: Path
    weight: float | None = None

    @classmethod
    def parse(cls, value: Any) -> DataFile:
        """Return the file and weight that ``train.jsonl`` or ``train.jsonl:0.7`` names."""
        if isinstance(value, DataFile):
            return value
        if not isinstance(value, str | Path) or not str(value):
            raise Reject("must be FILE or FILE:WEIGHT")
        name, colon, weight = str(value).rpartition(":")
        if not colon or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight):
            return cls(Path(value))
        if float(weight) == 0:
            raise Reject("must have a weight above 0")
        return cls(Path(name), float(weight))

    def __str__(self) -> str:
        """Return ``FILE`` or ``FILE:WEIGHT``."""
        return str(self.path) if self.weight is None else f"{self.path}:{self.weight!r}"


@dataclass(frozen=True)
class RewardSource:
    """What gives rewards: a checkpoint, or a function of a Python module or file; and its weight."""

    path: Path | None = None
    module: str | None = None
    """``my_module``, ``package.module`` or ``path/to/file.py``."""
    function: str | None = None
    weight: float = 1.0

    @classmethod
    def parse(cls, value: Any) -> RewardSource:
        """Return what ``rm.nemo``, ``my_module:score`` or ``file.py:score`` with or without ``:WEIGHT`` names.

        A path that exists is a path, whatever its name looks like.
        """
        if isinstance(value, RewardSource):
            return value
        if not isinstance(value, str | Path) or not str(value):
            raise Reject(f"must be {_REWARDS}")
        text, colon, weight = str(value).rpartition(":")
        if _exists(str(value)) or not colon or not re.fullmatch(_SIGNED, weight):
            return cls._named(str(value), 1.0)
        if float(weight) == 0 or abs(float(weight)) == float("inf"):
            raise Reject("must have a finite weight other than 0")
        return cls._named(text, float(weight))

    @classmethod
    def _named(cls, text: str, weight: float) -> RewardSource:
        if _exists(text):
            if text.endswith(".py") and Path(text).is_file():
                raise Reject(f"must name a function of {text}: {text}:FUNCTION")
            return cls(path=Path(text), weight=weight)
        module, _, function = text.rpartition(":")
        named = all(map(_is_name, module.split("."))) or re.search(r"[^/]\.py$", module)
        if named and _is_name(function):
            return cls(module=module, function=function, weight=weight)
        raise Reject(f"must be {_REWARDS}; there is no file {text}")

    @property
    def name(self) -> str:
        """The source without its weight."""
        return str(self.path) if self.path is not None else f"{self.module}:{self.function}"

    def __str__(self) -> str:
        """Return the spelling for a command line."""
        return self.name if self.weight == 1 else f"{self.name}:{self.weight!r}"


_SIGNED = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
_REWARDS = (
    "a checkpoint that exists, MODULE:FUNCTION or FILE.py:FUNCTION, each with or without :WEIGHT"
)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except OSError:  # a name longer than the system takes, or a folder that is closed to us
        return False


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def convert(value: Any, target: Any) -> Any:
    """Return ``value`` as ``target``, the annotation of a setting.

    Raises:
        Reject: with what it must be.
    """
    origin, arguments = get_origin(target), get_args(target)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _first_that_fits(value, [a for a in arguments if a is not type(None)])
    if origin is tuple:
        return _tuple(value, arguments)
    if origin is Literal:
        return _one_of(value, arguments)
    if hasattr(target, "parse"):
        return target.parse(value)
    return _CONVERTERS[target](value)


def plain(value: Any) -> Any:
    """Return ``value`` as YAML and JSON hold it: paths and durations as text, tuples as lists."""
    if isinstance(value, tuple):
        return [plain(item) for item in cast("tuple[Any, ...]", value)]
    if isinstance(value, Every):
        return value.plain
    return str(value) if isinstance(value, Duration | DataFile | RewardSource | Path) else value


def _first_that_fits(value: Any, targets: list[Any]) -> Any:
    if type(value) in targets:
        return convert(value, type(value))
    for target in targets[:-1]:
        try:
            return convert(value, target)
        except Reject:
            continue
    return convert(value, targets[-1])


def _tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a tuple from a list, or from text with commas (a file name may hold a comma)."""
    if isinstance(value, str) and arguments[0] not in (DataFile, RewardSource):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        value = [value]
    items = cast("list[Any]", value)
    if arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            raise Reject(f"must have {len(arguments)} values")
        return tuple(convert(item, kind) for item, kind in zip(items, arguments, strict=True))
    return tuple(convert(item, arguments[0]) for item in items)


def _one_of(value: Any, words: tuple[Any, ...]) -> Any:
    text = _text(value)
    if text not in words:
        raise Reject(f"must be one of {', '.join(words)}")
    return text


def _boolean(value: Any) -> bool:
    words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
    known = value if isinstance(value, bool) else words.get(str(value).lower())
    if known is None:
        raise Reject("must be true or false")
    return known


def _whole(value: Any) -> int:
    number = _number(value, "must be a whole number")
    if not number.is_integer():
        raise Reject("must be a whole number")
    return int(number)


def _number(value: Any, problem: str = "must be a number") -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError) as error:
        raise Reject(problem) from error
    if number != number or abs(number) == float("inf"):
        raise Reject(problem)
    return number


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise Reject("must be text")
    return str(value)


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise Reject("must be a path")
    return Path(value)


_CONVERTERS: dict[Any, Any] = {
    bool: _boolean,
    int: _whole,
    float: _number,
    str: _text,
    Path: _path,
}
