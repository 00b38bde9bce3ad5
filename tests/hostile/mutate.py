"""Damage a checkpoint in many ways and read all of it: ``python -m tests.hostile.mutate SOURCE COUNT``.

A process of its own, so that its address space can be bounded: an allocation that a damaged header asks for
ends it. Prints how many mutants were refused and how many were read; anything but our errors is a traceback.
"""

import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from nemoalign.checkpoint.inspect import inspect_source
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import NemoAlignError

ADDRESS_SPACE = 3 << 30
SECONDS_EACH = 10
EXTREMES = (b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", b"\x00" * 7 + b"\x80")
EDGE = 4096


def main(source: Path, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    refused = 0
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / source.name
            copied(source, copy)
            chance = random.Random(seed)
            files = [f for f in sorted(copy.rglob("*")) if f.is_file()] if copy.is_dir() else [copy]
            damage(chance.choice(files), chance)
            began = time.monotonic()
            sentence = refusal(copy, seed)
            assert sentence is None or 40 < len(sentence) < 2000, f"seed {seed}: {sentence}"
            assert time.monotonic() - began < SECONDS_EACH, f"seed {seed} took too long"
            refused += sentence is not None
    print(refused, count - refused)


def refusal(path: Path, seed: int) -> str | None:
    """Return why ``path`` cannot be read, or None when all of it can."""
    try:
        read_all(path)
    except NemoAlignError as error:
        return str(error)
    except BaseException:
        print(f"{path.name}, seed {seed}", file=sys.stderr)
        raise
    return None


def copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def damage(path: Path, chance: random.Random) -> None:
    """Flip, overwrite, cut out, double or cut off bytes, mostly where headers and indexes are."""
    data = bytearray(path.read_bytes())
    if not data:
        return
    for _ in range(chance.choice((1, 1, 3))):
        at = place(len(data), chance)
        match chance.randrange(6):
            case 0 | 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                data[at : at + 8] = chance.choice(EXTREMES)[: max(0, len(data) - at)]
            case 3:
                del data[at : at + chance.choice((1, 8, 512))]
            case 4:
                data[at:at] = data[at : at + chance.choice((1, 8, 512))]
            case _:
                del data[at:]
        if not data:
            break
    path.write_bytes(data)


def place(size: int, chance: random.Random) -> int:
    edge = min(EDGE, size)
    start = chance.choice((0, size - edge, chance.randrange(size), chance.randrange(size)))
    return min(size - 1, start + chance.randrange(edge))


def read_all(path: Path) -> None:
    source = open_source(path)
    inspect_source(source)
    stores = [source.weights, source.copies]
    if source.adapter is not None:
        stores.append(source.adapter.weights)
    for store in stores:
        for name in store.tensors:
            store.read(name).tobytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
