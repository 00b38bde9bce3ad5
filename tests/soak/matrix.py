"""The crash matrix: ``python -m tests.soak.matrix --seed N``; a chain of blows for every layout."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.soak.blows import Blow
from tests.soak.chain import LAYOUTS, Chain, Material

KILLS = (
    Blow("kill", "all", "save"),
    Blow("kill", "parent", "save"),
    Blow("kill", "rank", "save"),
    Blow("kill", "all", "step"),
    Blow("kill", "parent", "step"),
    Blow("kill", "rank", "step"),
    Blow("kill", "rank", "start"),
)
OTHERS = (
    Blow("damage", "all", "save"),
    Blow("stop", "parent", "step"),
    Blow("stop", "rank", "step"),
    Blow("stop", "parent", "validation"),
    Blow("stop", "parent", "start"),
    Blow("time", "all", "start"),
    Blow("twice", "parent", "step"),
    Blow("crash", "rank", "step"),
    Blow("full", "all", "start"),
)
SLICE = (
    Blow("kill", "parent", "save"),
    Blow("stop", "rank", "validation"),
    Blow("damage", "rank", "step"),
    Blow("full", "all", "start"),
)
"""One of every kind, for ``make test``."""


END = "to the end"
SAVES = {
    "async": ["--set", "exp_manager.checkpoint_callback_params.async_save=true"],
    "sync": ["--set", "exp_manager.checkpoint_callback_params.async_save=false"],
}


def plan(seed: int) -> list[tuple[str, list, list[Blow]]]:
    """Return name, flags and blows of every chain."""
    chains = []
    for index, (layout, flags) in enumerate(LAYOUTS.items()):
        blows = [*KILLS, *OTHERS]
        random.Random(f"{seed} {layout} order").shuffle(blows)
        saves = list(SAVES)[(index + seed) % 2]
        chains.append((f"{layout} {saves}", [*flags, *SAVES[saves]], blows))
    return chains


def run_chain(chain: Chain) -> Iterator[tuple[str, str, bool]]:
    """Yield what was done, what came of it, and whether it is as it must be; go on after a failure."""
    deeds = [(str(blow), partial(chain.strike, blow)) for blow in chain.blows]
    for done, deed in [*deeds, (END, chain.finish)]:
        try:
            yield done, deed(), True
        except AssertionError as error:
            yield done, f"FAILED: {error}", False


def main() -> int:
    """Run the matrix and return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="layouts, comma-separated")
    known = parser.parse_args()
    began = time.monotonic()
    kills = inside = validations = exact = failed = 0
    slowest = 0.0
    print(f"seed {known.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        material = Material.make(Path(folder))
        for name, flags, blows in plan(known.seed):
            if known.only and not name.startswith(tuple(known.only.split(","))):
                continue
            chain = Chain(material, name, flags, blows, known.seed)
            for done, words, ok in run_chain(chain):
                print(f"{name:14} {done:26} {words}", flush=True)
                exact += ok and done == END
                failed += not ok
            kills += chain.tally.kills
            inside += chain.tally.inside_saves
            validations += chain.tally.inside_validations
            slowest = max([slowest, *chain.tally.seconds_to_die])
    print(
        f"{kills} kills, {inside} of them inside a save; {validations} stops inside a validation; "
        f"{exact} runs exact, {failed} failed; the slowest was gone after {slowest:.1f} s; "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
