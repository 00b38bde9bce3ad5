"""Measuring rows once, in whatever pieces, and stopping in the middle of it."""

from functools import partial

import numpy as np
import pytest

from nemoalign.data.collate import collate
from nemoalign.data.dataset import Sample
from nemoalign.data.sampler import GlobalSampler
from nemoalign.log import PlainReporter
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.feed import Feed
from nemoalign.train.stopping import Asked, Cut
from nemoalign.train.validation import measure
from tests.model import tiny
from tests.train import bench

QUIET = PlainReporter(quiet=True)


class Rows:
    """Five rows of different lengths, and the filler that trains nothing."""

    ids = tiny.batch(5, 9, seed=3).tokens.numpy().astype("int32")

    def of_batch(self, batch):
        return self.__getitem__

    def __len__(self) -> int:
        return 5

    def place(self, index: int) -> str:
        return f"row {index}"

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            return Sample(np.zeros(2, "int32"), np.zeros(2, bool), "filler", is_filler=True)
        tokens = self.ids[index][: 4 + index]
        return Sample(tokens, np.arange(len(tokens)) > 1, self.place(index))


def feed(global_batch_size: int, micro_batch_size: int, *, sources=()) -> Feed:
    borders = [end for _, end in sources[:-1]]
    order = GlobalSampler(5, global_batch_size, shuffle=False, drop_last=False, borders=borders)
    join = partial(collate, eos_id=bench.EOS)
    return Feed(Rows(), order, join, 0, 1, micro_batch_size, sources=sources)


def test_every_row_counts_once_however_the_rows_are_cut():
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner:
        whole = measure(feed(5, 5), learner, QUIET, Asked, "validating")
        parts = measure(feed(2, 1), learner, QUIET, Asked, "validating")
    assert whole.means is not None
    assert parts.means == pytest.approx(whole.means, rel=1e-6)
    assert not parts.asked.stop


def test_each_source_has_means_of_its_own_and_all_rows_theirs():
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner:
        whole = measure(feed(5, 5), learner, QUIET, Asked, "validating").means
        each = measure(feed(2, 1, sources=[("a", 3), ("b", 5)]), learner, QUIET, Asked, "v").means
        shifted = feed(2, 2)
        alone = [learner.evaluate([shifted.collate([Rows()[i] for i in ids])]) for ids in ([0, 1, 2], [3, 4])]  # fmt: skip
    assert whole is not None
    assert each is not None
    assert each["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    for name, ((part,),) in zip("ab", ((found,) for found in alone), strict=True):
        expected = (part["loss"].total / part["loss"].count).item()
        assert each[f"loss/{name}"] == pytest.approx(expected, rel=1e-6)
    assert each["loss/a"] != each["loss/b"]


def test_a_wish_to_stop_ends_it_without_means_and_a_wish_to_save_is_kept():
    wishes = iter([Asked(save=True), Asked(stop=True, interrupt=True), Asked()])
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner:
        measured = measure(feed(2, 1), learner, QUIET, lambda: next(wishes), "validating")
    assert measured.means is None
    assert measured.asked == Asked(stop=True, interrupt=True, save=True)
    assert next(wishes) == Asked()  # the third batch was not computed


def test_what_is_cut_short_has_no_means_and_keeps_what_was_asked_before():
    wishes = iter([Asked(save=True)])
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner:
        real, calls = learner.evaluate, []

        def evaluate(micro_batches):
            calls.append(1)
            if len(calls) == 2:
                raise Cut(Asked(stop=True))
            return real(micro_batches)

        learner.evaluate = evaluate
        measured = measure(feed(2, 1), learner, QUIET, lambda: next(wishes), "validating")
    assert (measured.means, measured.asked) == (None, Asked(stop=True, save=True))
