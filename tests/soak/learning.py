"""Whether each kind of advantage learns: ``python -m tests.soak.learning``; a tiny model names what nouns are.

Three seeds of the model and its samples for each kind. Fails unless the median sampled reward of the last
five steps is above 0.75, and says what it was before and how long learning took.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.rollouts import nouns

KINDS = ("gae", "reinforce", "rloo", "grpo")
SEEDS = (0, 1, 2)
WANTED = 0.75
FLAGS = ("--ppo-epochs", 2, "--critic-lr", "1e-3", "--schedule", "linear", "-q")
STEPS = 60


def main() -> int:
    """Print a line for each run and each kind; return 1 unless all of them learned."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        made = {seed: nouns.make(Path(folder) / f"seed-{seed}", seed=seed) for seed in SEEDS}
        for kind in KINDS:
            rewards = [_learned(made[seed], kind, seed) for seed in SEEDS]
            median = statistics.median(rewards)
            print(f"{kind}: median {median:.3f}", flush=True)
            failed += [kind] if median <= WANTED else []
    print(f"did not learn: {', '.join(failed)}" if failed else "all of them learned")
    return 1 if failed else 0


def _learned(made: Path, kind: str, seed: int) -> float:
    """Return the mean reward of the last five steps of a run."""
    flags = ("--advantage", kind, "--seed", seed, *FLAGS)
    started = time.perf_counter()
    lines = nouns.ppo(made, made / kind, *flags, steps=STEPS)
    seconds = time.perf_counter() - started
    last = statistics.mean(line["reward"] for line in lines[-5:])
    print(
        f"{kind}, seed {seed}: {lines[0]['reward']:.3f} -> {last:.3f} in {seconds:.0f} s",
        flush=True,
    )
    return last


if __name__ == "__main__":
    sys.exit(main())
