"""What a reference judges goes out in one list and comes back where it belongs."""

from dataclasses import replace

import torch

from nemoalign.algorithms.preference import REFERENCE, Preference, parted, with_field
from tests.train import bench


class Mismatching(Preference):
    @property
    def uses_mismatched(self) -> bool:
        return True


def test_mismatched_rows_are_judged_with_their_own_and_return_to_them() -> None:
    mine, others = bench.batches(2), bench.batches(2, seed=7)
    pairs = [replace(one, mismatched=other) for one, other in zip(mine, others, strict=True)]
    assert Preference(None).compared(pairs) == pairs
    every = Mismatching(None).compared(pairs)
    judged = with_field(every, REFERENCE, [torch.tensor(float(i)) for i in range(4)])
    back = parted(judged, 2)
    assert [batch.fields[REFERENCE].item() for batch in back] == [0, 1]
    assert [batch.mismatched.fields[REFERENCE].item() for batch in back] == [2, 3]
    for batch, original in zip(back, pairs, strict=True):
        assert torch.equal(batch.tokens, original.tokens)
        assert torch.equal(batch.mismatched.tokens, original.mismatched.tokens)


def test_a_stage_that_saw_no_log_probs_adds_none() -> None:
    batches = bench.batches(2)
    assert parted(with_field(batches, REFERENCE, []), 2) == batches
