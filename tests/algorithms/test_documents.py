"""Sums per document are the same for rows below each other and rows in a pack."""

from functools import partial

import numpy as np
import torch

from nemoalign.algorithms.documents import (
    answer_logprobs,
    answer_tokens,
    document_keys,
    spread_documents,
    sum_documents,
)
from nemoalign.data.collate import collate, collate_pack
from nemoalign.data.dataset import Sample
from tests.model import tiny

EOS = 2


def samples() -> list[Sample]:
    rows = tiny.batch(3, 9, seed=4).tokens.numpy().astype("int32")
    return [Sample(row[: 5 + i], row[: 5 + i] % 3 > 0, "made") for i, row in enumerate(rows)]


def test_padded_and_packed_documents_have_the_same_sums() -> None:
    expected = [float(sum(s.loss_mask[1:])) for s in samples()]
    for join in (collate, collate_pack, partial(collate_pack, pad_to=4)):
        batch = join(samples(), eos_id=EOS)
        assert answer_tokens(batch).tolist() == expected
        values = torch.where(batch.labels >= 0, batch.labels, 1000).float()
        labelled = [sum(t for t, m in zip(s.tokens[1:], s.loss_mask[1:], strict=True) if m) for s in samples()]  # fmt: skip
        assert answer_logprobs(values, batch).tolist() == [float(total) for total in labelled]


def test_sums_carry_gradients_to_their_own_document_alone() -> None:
    batch = collate_pack(samples(), eos_id=EOS, pad_to=4)
    values = torch.zeros(batch.tokens.shape, requires_grad=True)
    sum_documents(values, batch)[1].backward()
    assert values.grad is not None
    first, second = (len(sample.tokens) - 1 for sample in samples()[:2])
    assert values.grad[0].nonzero()[:, 0].tolist() == list(range(first, first + second))


def test_a_number_of_each_document_is_spread_over_it_and_sums_its_gradients_there() -> None:
    lengths = [len(sample.tokens) - 1 for sample in samples()]
    for join in (collate, collate_pack, partial(collate_pack, pad_to=4)):
        batch = join(samples(), eos_id=EOS)
        values = torch.tensor([2.0, -1.0, 5.0], requires_grad=True)
        spread = spread_documents(values, batch)
        assert spread.shape == batch.tokens.shape
        places = torch.ones(batch.tokens.shape)
        assert (
            sum_documents(spread, batch).tolist()
            == (values * sum_documents(places, batch)).tolist()
        )
        spread.sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == sum_documents(places, batch).tolist()
        if batch.documents:
            assert spread[0, sum(lengths) :].abs().sum() == 0
            assert spread[0, : lengths[0]].tolist() == [2.0] * lengths[0]


def test_a_document_has_one_key_wherever_it_lies_and_another_for_any_other_answer() -> None:
    rows = samples()
    expected = document_keys(collate(rows, eos_id=EOS))
    assert len(set(expected)) == len(rows)
    for join in (collate_pack, partial(collate_pack, pad_to=4), partial(collate, pad_to=16)):
        assert document_keys(join(rows[::-1], eos_id=EOS)) == expected[::-1]
    first = rows[0]
    other_prompt, other_mask = first.tokens.copy(), first.loss_mask.copy()
    other_prompt[0] += 1
    other_mask[1 + np.flatnonzero(other_mask[1:])[0]] = False
    changed = [Sample(other_prompt, first.loss_mask, ""), Sample(first.tokens, other_mask, "")]
    assert not set(document_keys(collate(changed, eos_id=EOS))) & set(expected)
    nothing = Sample(first.tokens, np.zeros_like(first.loss_mask), "")
    assert document_keys(collate([nothing], eos_id=EOS)) == [None]
