"""How a run is doing: steps that cannot be applied, losses that jump, validation that no longer improves."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

from nemoalign.errors import DivergedError

SPIKE_WINDOW = 20
SPIKE_FACTOR = 3.0
"""A loss this many times the median of the window is worth a warning."""

NAMED_ROWS = 8


class Health:
    """Watches one run's steps; every rank sees the same values."""

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self._recent: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def spike(self, loss: float) -> str | None:
        """Take the loss of a step and return a warning when it stands far above those before."""
        usual = statistics.median(self._recent) if len(self._recent) == SPIKE_WINDOW else math.inf
        self._recent.append(loss)
        if loss > SPIKE_FACTOR * usual and usual > 0:
            return (
                f"the loss jumped to {loss:.4g}; the median of {SPIKE_WINDOW} steps was {usual:.4g}"
            )
        return None

    def skipped(self, step: int, loss: float, lr: float, rows: Sequence[str], in_a_row: int) -> str:
        """Return the warning about a step that was not applied.

        Raises:
            DivergedError: when it is one too many in a row.
        """
        named = ", ".join(rows[:NAMED_ROWS]) + (", ..." if len(rows) > NAMED_ROWS else "")
        where = f" in {named}" if rows else ""
        what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}{where}"
        if in_a_row >= self.max_skipped:
            raise DivergedError(
                f"At step {step} {what}; none of the last {in_a_row} steps could be applied. The "
                f"learning rate was {lr:g}: lower it with --lr, or look at the rows. Nothing broken "
                "was saved."
            )
        return f"step {step} was not applied: {what}"


def has_stopped_improving(
    history: Sequence[float], patience: int, min_delta: float, mode: str = "min"
) -> bool:
    """True when none of the last ``patience`` values is better than the best before them.

    Lower is better, or higher with ``mode`` max. ``patience`` 0 never stops; ``min_delta`` is by how
    much a value must be better to count.
    """
    if not patience or len(history) <= patience:
        return False
    losses = [-value for value in history] if mode == "max" else list(history)
    best = min(losses[:-patience])
    return all(value >= best - min_delta for value in losses[-patience:])
