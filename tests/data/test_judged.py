"""Pairs and labelled answers as rows of a run: both answers, partners, fillers and the report."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nemoalign.data.collate import collate, collate_judged, collate_pack
from nemoalign.data.encoder import SftSettings
from nemoalign.data.judged import LabelDataset, PairDataset
from nemoalign.data.sampler import MISSING_ROW
from nemoalign.errors import DataError
from tests.data.tiny import CharTokenizer

SETTINGS = SftSettings(max_seq_length=24)
PAIRS = [
    {"prompt": "one ", "chosen": "good", "rejected": "bad one"},
    {"prompt": "two ", "chosen": "fine", "rejected": "poor", "chosen_reward": 3, "rejected_reward": 2},
    {"prompt": "much too long a prompt " * 9, "chosen": "a", "rejected": "b"},
]  # fmt: skip
LABELS = [
    {"prompt": "one ", "completion": "good", "label": True},
    {"prompt": "one ", "completion": "bad", "label": False},
    {"prompt": "two ", "completion": "fine", "label": True},
]


def rows(kind, tmp_path: Path, records: list[dict]):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return kind([(path, 1.0)], CharTokenizer(), SETTINGS)


def answer(sample, dataset) -> str:
    ids = sample.tokens[sample.loss_mask]
    return dataset.tokenizer.decode([int(i) for i in ids if i != dataset.tokenizer.eos_id]).strip()


def test_a_pair_is_its_two_answers_and_their_rewards(tmp_path) -> None:
    pairs = rows(PairDataset, tmp_path, PAIRS)
    assert len(pairs) == 2  # the third has no room for an answer
    first, second = pairs.sample(0), pairs.sample(1)
    assert [answer(one, pairs) for one in first.documents] == ["good", "bad one"]
    assert first.fields == {"reward": (1.0, 0.0), "weight": (1.0, 1.0)}
    assert second.fields["reward"] == (3.0, 2.0)
    assert pairs.length(0) == sum(len(one.tokens) - 1 for one in first.documents)
    assert pairs.lengths is not None
    assert pairs.lengths.tolist() == [pairs.length(0), pairs.length(1)]
    assert pairs.place(1).endswith("line 2")
    assert "6 rows (answers of pairs)" in pairs.report().lines()[0]
    assert len(pairs.encoded_anew(0)) == 2


@pytest.mark.parametrize("join", [collate, collate_pack], ids=["below", "packed"])
def test_batches_carry_what_is_known_of_each_answer_and_fillers_count_for_nothing(tmp_path, join) -> None:  # fmt: skip
    pairs = rows(PairDataset, tmp_path, PAIRS)
    joined = partial(join, eos_id=pairs.tokenizer.eos_id)
    batch = collate_judged([pairs.sample(0), pairs.sample(MISSING_ROW)], joined)
    assert batch.fields["weight"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert batch.fields["reward"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert batch.num_tokens == pairs.length(0)


def test_a_mismatched_row_is_the_prompt_with_another_prompts_answer(tmp_path) -> None:
    labels = rows(LabelDataset, tmp_path, LABELS)
    read = labels.of_batch(np.arange(3))
    samples = [read(i) for i in range(3)]
    assert [sample.fields["is_desirable"] for sample in samples] == [(1.0,), (0.0,), (1.0,)]
    # The second row asks what the first asks, so the first takes the third's answer.
    assert [answer(s.mismatched, labels) for s in samples] == ["fine", "fine", "good"]
    for sample in samples:
        prompt = sample.documents[0].tokens[~sample.documents[0].loss_mask]
        assert sample.mismatched is not None
        assert sample.mismatched.tokens[: len(prompt)].tolist() == prompt.tolist()


def test_a_row_alone_has_no_partner_and_counts_for_no_kl(tmp_path) -> None:
    labels = rows(LabelDataset, tmp_path, LABELS[:2])
    read = labels.of_batch(np.arange(2))
    joined = partial(collate, eos_id=labels.tokenizer.eos_id)
    batch = collate_judged([read(0), read(1)], joined)
    assert batch.mismatched is not None
    assert batch.mismatched.fields["weight"].tolist() == [0.0, 0.0]


def test_pairs_serve_as_labels(tmp_path) -> None:
    labels = rows(LabelDataset, tmp_path, PAIRS)
    assert [labels.sample(i).fields["is_desirable"][0] for i in range(4)] == [1.0, 0.0, 1.0, 0.0]


def test_rows_of_another_kind_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(DataError, match="no preference pair"):
        rows(PairDataset, tmp_path, LABELS)
    with pytest.raises(DataError, match="no answer with a label"):
        rows(LabelDataset, tmp_path, [{"prompt": "x", "completion": "y"}])
    with pytest.raises(DataError, match="line 2 has the same answer as chosen and as rejected"):
        rows(PairDataset, tmp_path, [PAIRS[0], {"prompt": "x", "chosen": "y", "rejected": "y"}])
