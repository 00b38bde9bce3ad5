"""Measuring rows that are not learned from: every row once, means over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemoalign.train.metrics import reduce_means
from nemoalign.train.stopping import Asked

if TYPE_CHECKING:
    from nemoalign.log import Reporter
    from nemoalign.train.feed import Feed
    from nemoalign.train.learner import Learner


@dataclass(frozen=True)
class Measured:
    """Means over every row, and what was asked for meanwhile; a wish to stop ends it without means."""

    means: dict[str, float] | None
    asked: Asked


def measure(
    feed: Feed, learner: Learner, reporter: Reporter, agree: Callable[[], Asked], what: str
) -> Measured:
    """Compute the metrics of every row of ``feed`` once. Collective.

    Args:
        feed: this rank's share of the rows.
        learner: the model and what is measured of it.
        reporter: shows how far it is.
        agree: tells what any rank was asked for; called after each global batch, on every rank.
        what: the word for it on a progress bar.
    """
    parts = []
    asked = Asked()
    left = len(feed.rows)
    with reporter.progress(what, left, "rows") as bar:
        for micro_batches in feed.once():
            parts += learner.evaluate(micro_batches)
            asked = asked.joined(agree())
            if asked.stop:
                return Measured(None, asked)
            done = min(left, feed.sampler.global_batch_size)
            bar.advance(done)
            left -= done
    means = reduce_means(parts, learner.algorithm.metric_names, learner.backend.device)
    return Measured(learner.algorithm.report(means), asked)
