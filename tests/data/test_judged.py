"""Pairs and labelled answers as rows of a run: both answers, partners, fillers and the report."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nemoalign.data.collate import collate, collate_judged, collate_pack
from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoded import Storage
from nemoalign.data.encoder import JudgedRules, SftSettings
from nemoalign.data.judged import LabelDataset, PairDataset
from nemoalign.data.preview import preview
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


def rows(kind, tmp_path: Path, records: list[dict], storage: Storage | None = None, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return kind([(path, 1.0)], CharTokenizer(), replace(SETTINGS, **settings), "train", storage)


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
    assert "3 rows (pairs), 1 cut to 24 tokens, 1 dropped (no" in pairs.report().lines()[0]
    (problem,) = pairs.report().problems()
    assert problem.startswith("1 of 3 rows")
    assert problem.endswith("truncation_method=left")
    assert len(pairs.encoded_anew(0)) == 2


def test_a_preview_says_which_answer_it_shows(tmp_path) -> None:
    pairs = rows(PairDataset, tmp_path, PAIRS[:1])
    titles = [title for title, _ in preview(pairs, pairs.tokenizer, 1)]
    assert [title.partition(":")[0] for title in titles] == [
        "rows.jsonl line 1, chosen",
        "rows.jsonl line 1, rejected",
    ]
    for source, said in (
        (LABELS, ["desirable", "undesirable", "desirable"]),
        (PAIRS[:1], ["desirable", "undesirable"]),
    ):
        labels = rows(LabelDataset, tmp_path, source)
        titles = [title for title, _ in preview(labels, labels.tokenizer, 3)]
        assert [title.partition(", ")[2].partition(":")[0] for title in titles] == said


def test_rows_of_another_command_are_told_which(tmp_path) -> None:
    with pytest.raises(DataError, match="with a label are for nemoalign kto"):
        rows(PairDataset, tmp_path, LABELS)
    with pytest.raises(DataError, match=r"a preference pair.* for nemoalign dpo"):
        rows(SftDataset, tmp_path, PAIRS)


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


LONG = [
    {"prompt": "one ", "chosen": "good", "rejected": "bad"},
    {"prompt": "two, and a long one ", "chosen": "12345678", "rejected": "1234"},
    {"prompt": "three, even longer ones ", "chosen": "x", "rejected": "y"},
    {"prompt": "four ", "chosen": "the same for long and then a", "rejected": "the same for long and then b"},
]  # fmt: skip


def ids(text: str) -> list[int]:
    return [*CharTokenizer().encode(text), CharTokenizer.eos_id]


def test_over_long_pairs_are_cut_at_the_end_and_none_stays_that_teaches_nothing(tmp_path) -> None:
    pairs = rows(PairDataset, tmp_path, LONG, overlong="truncate")
    kept = [[one.tokens.tolist() for one in pairs.sample(i).documents] for i in range(len(pairs))]
    assert kept == [
        [ids("one good"), ids("one bad")],
        [ids("two, and a long one 12345678")[:25], ids("two, and a long one 1234")],
        [ids("three, even longer ones x")[:25], ids("three, even longer ones y")[:25]],
    ]
    (file,) = pairs.report().files
    assert (file.rows, file.dropped, file.alike, file.too_long) == (4, 1, 1, 0)
    assert "1 dropped (both answers the same, as far as they fit)" in pairs.report().lines()[0]


def test_over_long_pairs_can_be_dropped_and_are_counted(tmp_path) -> None:
    pairs = rows(PairDataset, tmp_path, LONG, overlong="drop")
    assert [pairs.place(i) for i in range(len(pairs))] == ["rows.jsonl line 1"]
    (file,) = pairs.report().files
    assert (file.rows, file.dropped, file.alike, file.too_long) == (4, 3, 0, 3)
    assert "3 dropped (longer than 24 tokens)" in pairs.report().lines()[0]


def test_cut_on_the_left_a_pair_keeps_one_prompt_and_whole_answers(tmp_path) -> None:
    pairs = rows(PairDataset, tmp_path, LONG, truncation_method="left")
    kept = [[one.tokens.tolist() for one in pairs.sample(i).documents] for i in range(len(pairs))]
    whole = ids("two, and a long one 12345678")
    assert kept[1] == [whole[4:], ids("two, and a long one 1234")[4:]]
    assert len(kept[1][0]) == 25
    assert kept[2] == [ids("hree, even longer ones x"), ids("hree, even longer ones y")]
    assert len(pairs) == 3  # the answers of the fourth are longer than a row
    assert pairs.report().files[0].too_long == 1
    cut = [sum(len(gone) for _, gone in one.removed) for one in pairs.encoded_anew(1)]
    assert cut == [4, 4]


@pytest.mark.parametrize("settings", [{}, {"overlong": "drop"}, {"truncation_method": "left"}], ids=str)  # fmt: skip
def test_large_files_train_the_same_pairs(tmp_path, settings) -> None:
    small = rows(PairDataset, tmp_path, LONG * 300, **settings)
    large = rows(PairDataset, tmp_path, LONG * 300, Storage(ahead_bytes=0), **settings)
    assert large.has_large
    assert len(large) == 1200
    weights = [large.sample(i).fields["weight"][0] for i in range(8)]
    assert sum(weights) == 2 * len(small) / 300
    assert large.empty_rows == 8 - sum(weights)
    both = small.sample(0).fields, large.sample(0).fields
    assert both[0] == both[1]


def test_defaults_of_rewards_are_not_remembered_from_another_run(tmp_path) -> None:
    storage = Storage(index_directory=tmp_path / "index")
    for rewards in ((1.0, 0.0), (5.0, 4.0)):
        pairs = rows(PairDataset, tmp_path, PAIRS, storage, judged=JudgedRules(default_rewards=rewards))  # fmt: skip
        assert pairs.sample(0).fields["reward"] == rewards
        assert pairs.sample(1).fields["reward"] == (3.0, 2.0)


def test_labels_are_counted_and_weights_that_do_not_fit_are_said(tmp_path) -> None:
    quiet = rows(LabelDataset, tmp_path, LABELS).report()
    assert "2 desirable, 1 undesirable" in quiet.lines()[0]
    assert quiet.problems() == []
    weighed = rows(LabelDataset, tmp_path, LABELS, judged=JudgedRules(label_weights=(1.0, 1.0)))
    (problem,) = weighed.report().problems()
    assert problem.endswith("Type: --desirable-weight 1 --undesirable-weight 2")


def test_partners_can_be_looked_for_backwards(tmp_path) -> None:
    four = [*LABELS, {"prompt": "six ", "completion": "last", "label": False}]
    labels = rows(LabelDataset, tmp_path, four, judged=JudgedRules(partner_step=-1))
    read = labels.of_batch(np.arange(4))
    assert [answer(read(i).mismatched, labels) for i in range(4)] == ["last", "last", "bad", "fine"]
