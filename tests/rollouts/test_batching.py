"""Rows of a rollout as micro-batches: each once, on any replicas, with its numbers at its tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.sampler import MISSING_ROW
from nemoalign.model.forward import LENGTH
from nemoalign.rollouts.batching import Batching, minibatches
from tests.rollouts import made

PADDED = Batching(dp_rank=0, dp_size=1, micro_batch_size=2, eos_id=2)
PACKED = replace(PADDED, pack_capacity=24)
BOTH = pytest.mark.parametrize("batching", [PADDED, PACKED], ids=["padded", "packed"])

some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@given(some_lengths, st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([None, 8, 24]))
def test_replicas_share_rows_out_and_stay_in_step(lengths, replicas, multiple, capacity) -> None:
    rows = list(range(len(lengths)))[::-1]
    shares = [
        Batching(rank, replicas, 2, 2, capacity, multiple_of=multiple).shares(rows, lengths)
        for rank in range(replicas)
    ]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % multiple == 0
    every = [row for share in shares for part in share for row in part if row != MISSING_ROW]
    assert sorted(every) == sorted(rows)
    for part in (part for share in shares for part in share):
        held = [lengths[row] for row in part if row != MISSING_ROW]
        assert part
        if capacity is None:
            assert len(part) in (1, 2)
        elif len(held) > 1:
            assert sum(held) <= capacity


def test_rows_of_one_length_share_a_micro_batch() -> None:
    assert PADDED.shares([0, 1, 2, 3], [9, 1, 9, 1]) == [[0, 2], [1, 3]]


@BOTH
@given(some_lengths, st.integers(1, 4), st.integers(0, 99))
def test_numbers_lie_at_the_tokens_they_are_of(batching, lengths, pad_to, seed) -> None:
    rollout = made.rollout(lengths, prompts=(2, 5), seed=seed)
    values = made.numbers(rollout, seed)
    rows = [MISSING_ROW, *range(len(lengths) - 1, -1, -1), MISSING_ROW]
    batch = replace(batching, pad_to=pad_to).answers(rollout, rows, {"values": values})
    known = batch.labels >= 0
    ids = [rollout.answers[row].ids for row in rows if row >= 0]
    assert batch.labels[known].tolist() == [token for row in ids for token in row]
    found = batch.fields["values"]
    expected = [values[row, : lengths[row]] for row in rows if row >= 0]
    assert torch.equal(found[known], torch.cat(expected))
    assert not found[~known].any()
    assert batch.tokens.shape[1] % pad_to == 0
    assert batch.num_tokens == sum(len(rollout.answers[row].tokens) - 1 for row in rows if row >= 0)


@BOTH
def test_a_label_follows_all_before_it(batching) -> None:
    rollout = made.rollout([3, 1], prompts=(2, 4))
    batch = batching.answers(rollout, [0, 1])
    lengths = batch.documents or [batch.tokens.shape[1]] * 2
    rows = [
        (tokens.tolist(), labels.tolist())
        for tokens, labels in zip(
            batch.tokens.flatten().split(list(lengths)),
            batch.labels.flatten().split(list(lengths)),
            strict=True,
        )
    ]
    for answer, (tokens, labels) in zip(rollout.answers, rows, strict=True):
        whole = answer.tokens.tolist()
        length, prompt = len(whole) - 1, len(answer.question.prompt.ids)
        assert tokens[:length] == whole[:-1]
        assert labels[:length] == [-100] * (prompt - 1) + whole[prompt:]


def test_a_micro_batch_without_rows_has_numbers_too() -> None:
    rollout = made.rollout([2])
    for batching in (PADDED, PACKED):
        batch = batching.answers(rollout, [MISSING_ROW], {"values": made.numbers(rollout)})
        assert batch.num_tokens == 0
        assert not (batch.labels >= 0).any()
        assert batch.fields["values"].shape == batch.labels.shape


@BOTH
@given(some_lengths)
def test_a_reward_model_reads_to_the_last_token(batching, lengths) -> None:
    rollout = made.rollout(lengths, prompts=(2, 3))
    rows = [*range(len(lengths)), MISSING_ROW]
    batch = batching.whole(rollout, rows)
    assert not (batch.labels >= 0).any()
    starts = [0]
    for length in batch.documents or ():
        starts.append(starts[-1] + length)
    for number, answer in enumerate(rollout.answers):
        length = int(batch.fields[LENGTH][number])
        row = batch.tokens[number] if batch.documents is None else batch.tokens[0, starts[number] :]
        assert row[:length].tolist() == answer.tokens.tolist()
    assert len(batch.fields[LENGTH]) == len(rows)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 2**40))
def test_updates_take_every_row_once_a_pass_in_an_order_of_the_run(
    count, size, seed, consumed
) -> None:
    passes = [minibatches(count, size, seed, consumed % 2**32, epoch) for epoch in (0, 1)]
    for found in passes:
        assert sorted(row for rows in found for row in rows) == list(range(count))
        assert [len(rows) for rows in found[:-1]] == [size] * (len(found) - 1)
    assert passes[0] == minibatches(count, size, seed, consumed % 2**32, 0)


def test_orders_differ_between_passes_steps_and_seeds_and_never_change() -> None:
    orders = [minibatches(6, 6, *key)[0] for key in ((1, 0, 0), (1, 0, 1), (1, 6, 0), (2, 0, 0))]
    assert len({tuple(order) for order in orders}) == 4
    # A resumed run must see the orders of the run it goes on with, whichever version began it.
    assert orders[0] == [4, 0, 5, 2, 1, 3]
