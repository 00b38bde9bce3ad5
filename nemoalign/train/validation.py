"""Measuring rows that are not learned from: every row once, means over all of them and over each file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from nemoalign.train.metrics import reduce_means
from nemoalign.train.stopping import Asked, Cut

if TYPE_CHECKING:
    from nemoalign.log import Reporter
    from nemoalign.train.feed import Feed
    from nemoalign.train.metrics import Mean
    from nemoalign.train.trainee import Trainee


@dataclass(frozen=True)
class Measured:
    """Means over every row, and over those of each of several sources, and what was asked for meanwhile; a wish to stop ends it without means."""

    means: dict[str, float] | None
    asked: Asked


def measure(
    feed: Feed, learner: Trainee, reporter: Reporter, agree: Callable[[], Asked], what: str
) -> Measured:
    """Compute the metrics of every row of ``feed`` once: ``loss``, and ``loss/<source>``. Collective.

    Args:
        feed: this rank's share of the rows.
        learner: the model and what is measured of it.
        reporter: shows how far it is.
        agree: tells what any rank was asked for; called after each global batch, on every rank.
        what: the word for it on a progress bar.
    """
    parts: dict[str | None, list[Mapping[str, Mean]]] = {name: [] for name, _ in feed.sources}
    asked = Asked()
    with reporter.progress(what, len(feed.rows), "rows") as bar:
        for batch, micro_batches in zip(feed.sampler.once(), feed.once(), strict=True):
            try:
                found = learner.evaluate(micro_batches)
            except Cut as cut:
                return Measured(None, asked.joined(cut.asked))
            parts.setdefault(feed.source_of(batch), []).extend(found)
            asked = asked.joined(agree())
            if asked.stop:
                return Measured(None, asked)
            bar.advance(len(batch))
    means = _means(learner, list(chain.from_iterable(parts.values())))
    for name, _ in feed.sources:
        own = _means(learner, parts[name])
        means |= {f"{metric}/{name}": v for metric, v in own.items() if not math.isnan(v)}
    return Measured(means, asked)


def _means(learner: Trainee, parts: Sequence[Mapping[str, Mean]]) -> dict[str, float]:
    algorithm = learner.algorithm
    means = reduce_means(parts, algorithm.metric_names, learner.backend.device)
    return algorithm.report(means)
