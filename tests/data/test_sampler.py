import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.sampler import MISSING_ROW, GlobalSampler, num_microbatches
from nemoalign.errors import ConfigError, DataError
from tests.data.tiny import VECTORS

NEMO = json.loads((VECTORS / "schedule_and_samplers.json").read_text())["samplers"]
# Resumed at consumed_samples 8, NeMo's validation sampler begins again at row 0: not followed.
SEQUENTIAL = [
    case
    for case in NEMO
    if case["name"] == "MegatronPretrainingBatchSampler" and not case["consumed_samples"]
]

sizes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


@pytest.mark.parametrize("case", SEQUENTIAL)
def test_sequential_batches_hold_the_rows_of_nemos(case):
    sampler = GlobalSampler(
        case["total_samples"], case["global_batch_size"], shuffle=False, drop_last=case["drop_last"]
    )
    dp, consumed = case["data_parallel_size"], 0
    for step in range(len(case["ranks"][0])):
        batch = sampler.batch(consumed)
        shares = [
            sampler.rank_slice(batch, rank, dp, case["micro_batch_size"]) for rank in range(dp)
        ]
        wanted = [row for rank in case["ranks"] for row in rank[step]]
        assert sorted(np.concatenate([np.concatenate(s) for s in shares])) == sorted(wanted)
        consumed += len(batch)


@given(
    total=st.integers(1, 60),
    gbs=st.integers(1, 20),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)
def test_every_row_occurs_exactly_once_in_an_epoch(total, gbs, seed, epoch):
    sampler = GlobalSampler(total, gbs, seed, drop_last=False)
    consumed, seen = epoch * total, []
    for _ in range(sampler.steps_per_epoch):
        batch = sampler.batch(consumed)
        assert sampler.epoch(consumed) == epoch
        consumed += len(batch)
        seen += batch.tolist()
    assert sorted(seen) == list(range(total))
    assert consumed == (epoch + 1) * total


@given(total=st.integers(1, 60), gbs=st.integers(1, 20), seed=st.integers(0, 99))
def test_dropping_the_last_leaves_whole_batches_of_different_rows(total, gbs, seed):
    if total < gbs:
        with pytest.raises(DataError, match=rf"{total} usable rows.*{gbs}.*--gbs {total}"):
            GlobalSampler(total, gbs, seed)
        return
    sampler = GlobalSampler(total, gbs, seed)
    seen = [sampler.batch(step * gbs) for step in range(sampler.steps_per_epoch)]
    assert {len(batch) for batch in seen} == {gbs}
    assert len(set(np.concatenate(seen).tolist())) == total // gbs * gbs


@given(
    size=sizes, other=sizes, seed=st.integers(0, 99), balance=st.booleans(), step=st.integers(0, 5)
)
def test_a_steps_rows_do_not_depend_on_ranks_or_micro_batches(size, other, seed, balance, step):
    lengths = np.random.default_rng(seed).integers(1, 9, 60) if balance else None
    sampler = GlobalSampler(60, 12, seed, lengths=lengths)
    batch = sampler.batch(step * 12)
    found = []
    for mbs, dp, _ in (size, other):
        shares = [sampler.rank_slice(batch, rank, dp, mbs) for rank in range(dp)]
        assert len({len(share) for share in shares}) == 1
        assert {len(micro) for share in shares for micro in share} == {mbs}
        rows = np.concatenate([np.concatenate(share) for share in shares])
        found.append(sorted(rows[rows != MISSING_ROW].tolist()))
    assert found[0] == found[1] == sorted(batch.tolist())


def test_order_is_a_function_of_seed_and_consumed_samples_alone():
    one, two = GlobalSampler(50, 10, 7), GlobalSampler(50, 10, 7)
    later = two.batch(70).tolist()
    assert [one.batch(n).tolist() for n in (0, 30, 70)][-1] == later
    assert GlobalSampler(50, 10, 8).batch(70).tolist() != later
    assert one.batch(0).tolist() != one.batch(50).tolist()


def test_the_shuffle_never_changes_between_releases():
    # numpy promises RandomState's stream for ever; a run resumed with a newer version relies on it.
    wanted = np.random.RandomState([1234, 0]).permutation(10)
    assert (
        GlobalSampler(10, 10, 1234).batch(0).tolist()
        == wanted.tolist()
        == [3, 8, 6, 4, 9, 1, 5, 2, 0, 7]
    )


def test_rows_of_like_length_share_a_micro_batch():
    lengths = [1, 9, 2, 8, 3, 7, 4, 6]
    sampler = GlobalSampler(8, 8, shuffle=False, lengths=lengths)
    shares = [sampler.rank_slice(range(8), rank, 2, 2) for rank in range(2)]
    assert [micro.tolist() for micro in shares[0]] == [[1, 3], [6, 4]]
    assert [micro.tolist() for micro in shares[1]] == [[5, 7], [2, 0]]


def test_one_pass_is_in_file_order_and_may_end_short():
    sampler = GlobalSampler(5, 2, drop_last=False)
    assert [batch.tolist() for batch in sampler.once()] == [[0, 1], [2, 3], [4]]
    assert [m.tolist() for m in sampler.rank_slice([4], 1, 2, 1)] == [[MISSING_ROW]]


def test_a_global_batch_that_cannot_be_shared_names_sizes_that_can():
    assert num_microbatches(24, 4, 2) == 3
    with pytest.raises(
        ConfigError, match=r"30 is not divisible by .* 4 x dp 2 = 8\. Use --gbs 24 or 32"
    ):
        num_microbatches(30, 4, 2)
    with pytest.raises(ConfigError, match=r"Use --gbs 8\."):
        num_microbatches(2, 4, 2)
