"""A pass computes every answer once; what is found later is what the model says itself."""

import pytest
import torch

from nemoalign.algorithms.cached_reference import CachedReference, ReferencePass
from nemoalign.algorithms.documents import of_documents
from nemoalign.algorithms.preference import Preference
from nemoalign.errors import ResourceError
from nemoalign.model.forward import forward_logprobs
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.logprob_store import LogprobStore
from tests.train import bench


def test_what_is_found_is_what_the_model_says_and_nothing_is_computed_twice(tmp_path) -> None:
    first, second = bench.batches(2), bench.batches(3)  # two of the three are the first two
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner, torch.no_grad():
        expected = learner.collect(second, forward_logprobs, of_documents)
        store = LogprobStore(tmp_path / "new")
        work = ReferencePass(Preference(None), learner.chunks, learner.backend.device, store)
        work.take(first)
        assert work.computed == 4
        work.take(first)
        assert work.computed == 4
        work.take(second)
        assert work.computed == 6
        store.close()
        cached = CachedReference(store, is_start=True)
        with pytest.raises(ResourceError, match="a directory that every node sees"):
            cached.logprobs(second[0])
        store.load(store.listing())
    for batch, logprobs in zip(second, expected, strict=True):
        assert torch.equal(cached.logprobs(batch), logprobs)
