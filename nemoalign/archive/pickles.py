"""Read a pickle as data: a machine for its opcodes that can only build inert values.

Python's own unpickler is not used, not even restricted: five bytes make it allocate gigabytes for
its memo, and nested tuples used as keys overflow its stack. Here every step is counted, a name goes
through the allow-list of ``stand_ins``, and nothing is ever imported or called.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from nemoalign.archive.pickle_steps import STEPS, STOP, Machine
from nemoalign.archive.stand_ins import StorageRef
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import NemoAlignError, SourceError

MAX_BYTES = 64 << 20
"""Longest pickle that is read; the index of a 400B model with its optimizer has some 20 MB."""

MAX_STEPS = 20_000_000


@dataclass(frozen=True)
class Loaded:
    """One pickle of several: its value, where it lies, and the storages that it refers to."""

    value: Any
    start: int
    end: int
    storages: dict[str, StorageRef]


def load_pickle(data: bytes, where: str) -> Any:
    """Return the value of a pickle, with stand-ins for everything that is no plain Python value.

    ``where`` names the file in errors. Sets come back as lists, and all mappings as dicts. Raises
    SourceError for a name outside the allow-list and for anything malformed or oversized.
    """
    return load_next(data, 0, where).value


def load_next(data: bytes, start: int, where: str) -> Loaded:
    """Return the pickle that begins at ``start``, where another may follow; as ``load_pickle``."""
    if len(data) > MAX_BYTES:
        raise SourceError(
            f"{where} is a pickle of {len(data)} bytes, more than the {MAX_BYTES} that any "
            f"checkpoint needs. {DAMAGED}"
        )
    machine = Machine(data, where)
    machine.position = start
    try:
        return Loaded(_run(machine), start, machine.position, machine.storages)
    except NemoAlignError as error:
        named = where in str(error)
        raise type(error)(str(error) if named else f"{where}: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError) as error:
        raise SourceError(
            f"{where} is no valid pickle at byte {machine.position} ({error}). {DAMAGED}"
        ) from error


def _run(machine: Machine) -> Any:
    data = machine.data
    for _ in range(MAX_STEPS):
        opcode = data[machine.position]
        machine.position += 1
        if opcode == STOP:
            return machine.stack.pop()
        if opcode not in STEPS:
            raise ValueError(f"opcode 0x{opcode:02x} is not used by checkpoints")
        STEPS[opcode](machine)
    raise ValueError(f"it takes more than {MAX_STEPS} steps")
