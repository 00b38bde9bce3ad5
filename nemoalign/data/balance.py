"""What a run should know of its judged rows before it learns from them: labels, lengths, and what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PARITY = (1.0, 4 / 3)
"""Where KTO's paper wants (w_D n_D) / (w_U n_U) to lie (arXiv 2402.01306, section 4.1)."""
_STRONG = 0.65
"""From this share on one side being the longer one says more than chance, with so many pairs:"""
_ENOUGH = 20


@dataclass(frozen=True)
class LabelCounts:
    """Usable answers by their label."""

    desirable: int
    undesirable: int

    @classmethod
    def of(cls, is_desirable: np.ndarray, share: float) -> LabelCounts:
        """Return the counts of rows of which there are ``share`` times as many."""
        wanted = int(is_desirable.sum())
        return cls(round(wanted * share), round((len(is_desirable) - wanted) * share))

    def line(self) -> str:
        """Return the counts in words."""
        return f"{self.desirable:,} desirable, {self.undesirable:,} undesirable"


@dataclass(frozen=True)
class PairCounts:
    """Lengths of the usable pairs' answers, in trained tokens."""

    pairs: int
    chosen_tokens: float
    rejected_tokens: float
    chosen_longer: float
    """Share of pairs whose chosen answer is the longer one; of equally long ones a half."""

    @classmethod
    def of(cls, trained: np.ndarray, share: float) -> PairCounts:
        """Return the counts of pairs [n, 2] of which there are ``share`` times as many."""
        if not len(trained):
            return cls(0, 0.0, 0.0, 0.5)
        chosen, rejected = trained.astype(np.int64).T
        longer = float((np.sign(chosen - rejected) + 1).mean() / 2)
        return cls(
            round(len(trained) * share), float(chosen.mean()), float(rejected.mean()), longer
        )

    def line(self) -> str:
        """Return the lengths in words."""
        return (
            f"answers of {self.chosen_tokens:.0f} tokens chosen and {self.rejected_tokens:.0f} rejected, "
            f"the chosen one longer in {self.chosen_longer:.0%}"
        )

    def problem(self, path: str) -> str | None:
        """Return what such lengths teach beside the preference, when they differ much."""
        share = max(self.chosen_longer, 1 - self.chosen_longer)
        if self.pairs < _ENOUGH or share < _STRONG:
            return None
        which = "longer" if self.chosen_longer > 0.5 else "shorter"
        return (
            f"In {share:.0%} of the pairs of {path} the chosen answer is the {which} one "
            f"({self.chosen_tokens:.0f} tokens to {self.rejected_tokens:.0f} on average), so a model can "
            f"learn to answer {which} instead of better. Losses per token mind it less: "
            "--loss sigmoid_norm, ipo or simpo"
        )


Counts = LabelCounts | PairCounts


def weights_problem(
    desirable: float, undesirable: float, weights: tuple[float, float]
) -> str | None:
    """Return why KTO's weights do not fit how often each label occurs, and what to type; None if they do."""
    if not desirable or not undesirable:
        missing = "desirable" if not desirable else "undesirable"
        return (
            f"The train data has no {missing} answer, so nothing holds the other label's answers back. "
            "Give rows of both labels."
        )
    good, bad = weights
    low, high = PARITY
    ratio = math.inf if not bad else good * desirable / (bad * undesirable)
    if low - 1e-6 <= ratio <= high + 1e-6:
        return None
    typed_good, typed_bad = suggested_weights(desirable, undesirable)
    return (
        f"With {desirable:,.0f} desirable and {undesirable:,.0f} undesirable answers and weights {good:g} "
        f"and {bad:g} the desirable ones pull {ratio:.3g} times as hard as the others; 1 to 1.33 is "
        f"advised. Type: --desirable-weight {typed_good:g} --undesirable-weight {typed_bad:g}"
    )


def suggested_weights(desirable: float, undesirable: float) -> tuple[float, float]:
    """Return weights under which both labels pull alike or the desirable a little harder.

    The rarer label is raised, the other stays at 1; two decimals, rounded to the side that is advised.
    """
    ratio = desirable / undesirable
    low, high = PARITY
    if low <= ratio <= high:
        return 1.0, 1.0
    if ratio > high:
        return 1.0, math.floor(ratio * 100) / 100
    return math.ceil(100 / ratio) / 100, 1.0
