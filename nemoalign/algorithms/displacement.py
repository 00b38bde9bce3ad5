"""An early word about likelihood displacement: margins that grow while better answers get less likely.

Pairs of similar answers pull each other down (arXiv 2410.08847); what rises instead is neither of the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import fmean

WINDOW = 20
"""Steps that are looked at together."""
MOST = 0.5
"""Share of pairs whose better answer may be less likely than under the reference."""


class Displacement:
    """Watches the steps of one run; every rank sees the same values."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
        self._has_warned = False

    def watch(self, metrics: Mapping[str, float]) -> str | None:
        """Take the metrics of a step and return a warning, once, when better answers are losing."""
        if "displaced" not in metrics or self._has_warned:
            return None
        self._recent.append((metrics["displaced"], metrics["rewards_chosen"], metrics["margin"]))
        if len(self._recent) < WINDOW:
            return None
        displaced, chosen, margin = (fmean(values) for values in zip(*self._recent, strict=True))
        if not (displaced > MOST and chosen < 0 < margin):
            return None
        self._has_warned = True
        return (
            f"likelihood displacement: in the last {WINDOW} steps {displaced:.0%} of the better answers were "
            f"less likely than under the reference, by {-chosen / self.beta:.3g} nats on average; the margin "
            "grows because worse ones fall faster. Where answers get worse: --sft-weight 0.1, a larger "
            "--beta, a lower --lr, or pairs whose answers differ more."
        )
