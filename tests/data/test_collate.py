import itertools
import json

import numpy as np
import pytest
import torch

from nemoalign.data.collate import IGNORED, collate, collate_pack
from nemoalign.data.dataset import Sample
from tests.data.tiny import VECTORS

NEMO = json.loads((VECTORS / "sft.json").read_text())["collate"]
NEMO_PACK = json.loads((VECTORS / "sft.json").read_text())["packed_collate"]


def sample(ids, trained_from):
    mask = np.arange(len(ids)) >= trained_from
    return Sample(np.array(ids, np.int32), mask, "x")


def nemo_samples():
    """The rows behind NeMo's batch, put together again from what it returns."""
    rows = []
    for context, length, answer in zip(
        NEMO["contexts"], NEMO["context_lengths"], NEMO["answers"], strict=True
    ):
        answer_ids = [token for token in answer if token != 1]
        rows.append(sample([*context[:length], *answer_ids, 1], length))
    return rows


def test_a_batch_is_nemos():
    batch = collate(nemo_samples(), eos_id=1, pad_to=16)
    assert batch.tokens.tolist() == NEMO["tokens"]
    assert batch.position_ids.tolist() == NEMO["position_ids"]
    assert batch.loss_mask.int().tolist() == NEMO["loss_mask"]
    trained = torch.tensor(NEMO["loss_mask"]).bool()
    assert batch.labels[trained].tolist() == torch.tensor(NEMO["labels"])[trained].tolist()
    assert set(batch.labels[~trained].tolist()) == {IGNORED}


def test_nothing_is_padded_at_micro_batch_one():
    batch = collate([sample([5, 6, 7, 8], 2)], eos_id=1)
    assert batch.tokens.tolist() == [[5, 6, 7]]
    assert batch.labels.tolist() == [[IGNORED, 7, 8]]
    assert batch.num_tokens == 3


@pytest.mark.parametrize(
    ("more", "width"),
    [
        ({"pad_to": 8}, 8),
        ({"pad_to": 2}, 4),
        ({"pad_to": 8, "max_length": 6}, 6),
        ({"fixed_length": 9}, 9),
    ],
)
def test_the_width_is_as_asked(more, width):
    batch = collate([sample([5, 6, 7, 8], 2), sample([5, 6], 1)], eos_id=1, **more)
    assert batch.tokens.shape == batch.labels.shape == batch.position_ids.shape == (2, width)


def test_a_filler_row_counts_for_nothing():
    filler = Sample(np.array([1, 1], np.int32), np.zeros(2, bool), "filler", is_filler=True)
    batch = collate([sample([5, 6, 7, 8], 2), filler], eos_id=1)
    assert batch.num_tokens == 3
    assert (batch.labels[1] == IGNORED).all()


def test_a_batch_moves_whole():
    moved = collate([sample([5, 6, 7], 1)], eos_id=1).to("meta")
    assert {
        t.device.type for t in (moved.tokens, moved.labels, moved.loss_mask, moved.position_ids)
    } == {"meta"}
    assert moved.num_tokens == 2


def test_a_pack_is_nemos():
    """What differs: labels that are not trained are -100 here and no second word for the mask; NeMo
    pads cu_seqlens with -1, for tables of packs, and also keeps the borders without the padding.
    """
    item, expected = NEMO_PACK["item"], NEMO_PACK["output"]
    borders = item["seq_boundaries"]
    rows = []
    for start, end in itertools.pairwise(borders):
        # NeMo's packed files hold masks of labels: that of token t stands at t - 1.
        mask = np.array([0, *item["loss_mask"][start : end - 1]], bool)
        rows.append(Sample(np.array(item["input_ids"][start:end], np.int32), mask, "x"))
    batch = collate_pack(rows, eos_id=1, pad_to=16)
    assert batch.tokens.tolist() == expected["tokens"]
    assert batch.position_ids.tolist() == expected["position_ids"]
    assert batch.loss_mask.int().tolist() == expected["loss_mask"]
    trained = torch.tensor(expected["loss_mask"]).bool()
    assert batch.labels[trained].tolist() == torch.tensor(expected["labels"])[trained].tolist()
    assert [0, *np.cumsum(batch.documents), -1] == expected["cu_seqlens"][0]
    assert max(batch.documents) == expected["max_seqlen"][0][0]
    assert batch.num_tokens == 12


def test_a_pack_without_rows_trains_nothing():
    filler = Sample(np.array([1, 1], np.int32), np.zeros(2, bool), "filler", is_filler=True)
    batch = collate_pack([filler], eos_id=1)
    assert batch.tokens.shape == (1, 1)
    assert batch.documents == (1,)
    assert batch.num_tokens == 0
    assert (batch.labels == IGNORED).all()
