"""Rows of reward models: pairs, NeMo-Aligner's two lines, scores, and how much better an answer is."""

import json
from functools import partial
from pathlib import Path

import pytest

from nemoalign.config.reward import RmSettings
from nemoalign.data.collate import collate, collate_judged
from nemoalign.data.encoder import SftSettings
from nemoalign.data.rewards import GradedDataset, RankedDataset, ScoreDataset, reward_rows
from nemoalign.data.sampler import MISSING_ROW
from nemoalign.errors import DataError
from tests.data.tiny import CharTokenizer

SETTINGS = SftSettings(max_seq_length=24)
PAIRS = [
    {"prompt": "one ", "chosen": "good", "rejected": "bad one"},
    {"prompt": "two ", "chosen": "fine", "rejected": "poor", "margin": 0.5},
]
LINES = [{"text": text} for text in ("ask good", "ask bad", "tell fine", "tell poor")]
HELPSTEER = {
    "prompt": "one ", "response": "good", "helpfulness": 4, "correctness": 3, "coherence": 2,
    "complexity": None, "verbosity": 1,
}  # fmt: skip
SCORES = partial(ScoreDataset, missing=-100.0)
GRADED = partial(GradedDataset, missing=-100.0)


def rows(kind, tmp_path: Path, *files: list[dict]):
    paths = []
    for number, records in enumerate(files):
        path = tmp_path / f"rows{number}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        paths.append((path, 1.0))
    return kind(paths, CharTokenizer(), SETTINGS)


def test_an_answer_feeds_its_last_token_too(tmp_path) -> None:
    pairs = rows(RankedDataset, tmp_path, PAIRS)
    eos = pairs.tokenizer.eos_id
    sample = pairs.sample(1)
    fed = [document.tokens[:-1].tolist() for document in sample.documents]
    expected = [[*pairs.tokenizer.encode(text), eos] for text in ("two fine", "two poor")]
    assert fed == expected
    assert sample.fields["margin"] == (0.5, 0.5)
    assert pairs.sample(0).fields["margin"] == (0.0, 0.0)
    assert sample.fields["length"] == (9.0, 9.0)
    assert pairs.length(1) == 18
    assert pairs.lengths.tolist() == [pairs.length(0), 18]
    batch = collate_judged([sample, pairs.sample(MISSING_ROW)], partial(collate, eos_id=eos))
    assert batch.fields["length"].tolist()[:2] == [9.0, 9.0]
    assert batch.fields["weight"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert batch.num_tokens == 18


def test_the_longest_answer_is_as_long_as_a_row_may_be(tmp_path) -> None:
    long = rows(RankedDataset, tmp_path, [{"prompt": "one ", "chosen": "a" * 99, "rejected": "b"}])
    assert long.sample(0).fields["length"][0] == SETTINGS.max_seq_length


def test_two_lines_are_a_pair_as_they_stand(tmp_path) -> None:
    pairs = rows(RankedDataset, tmp_path, LINES)
    assert len(pairs) == 2
    texts = [pairs.tokenizer.decode(d.tokens[:-2].tolist()) for d in pairs.sample(1).documents]
    assert texts == ["tell fine", "tell poor"]
    assert pairs.place(1).endswith("line 3")
    with pytest.raises(DataError, match="has 3 rows, but two after each other are a pair"):
        rows(RankedDataset, tmp_path, LINES[:3])


def test_scores_are_a_list_or_helpsteers_names_and_a_missing_one_stays_missing(tmp_path) -> None:
    named = rows(SCORES, tmp_path, [HELPSTEER])
    assert named.attributes == (
        "helpfulness",
        "correctness",
        "coherence",
        "complexity",
        "verbosity",
    )
    fields = named.sample(0).fields
    assert [fields[f"label_{n}"] for n in range(5)] == [(4.0,), (3.0,), (2.0,), (-100.0,), (1.0,)]
    listed = rows(SCORES, tmp_path, [{"text": "ask good", "label": [1, -100]}])
    assert listed.attributes == ("1", "2")
    assert listed.sample(0).fields["label_1"] == (-100.0,)


def test_a_label_is_how_much_better_the_second_answer_is(tmp_path) -> None:
    lines = [{**LINES[n], "label": [label]} for n, label in enumerate((-2, -2, 1, 1))]
    graded = rows(GRADED, tmp_path, lines)
    assert [graded.sample(n).fields["strength"] for n in range(2)] == [(-2.0, -2.0), (1.0, 1.0)]
    graded = rows(GRADED, tmp_path, PAIRS)
    assert [graded.sample(n).fields["strength"][0] for n in range(2)] == [-1.0, -0.5]


@pytest.mark.parametrize(
    ("kind", "files", "words"),
    [
        (RankedDataset, [[HELPSTEER]], "--reward-type regression"),
        (SCORES, [PAIRS], "--reward-type binary_ranking"),
        (SCORES, [[{"text": "a b", "label": [1]}, {"text": "a c", "label": [1, 2]}]], "line 2 has 2 scores, where the first row has 1"),
        (SCORES, [[HELPSTEER], [{"text": "a b", "label": [1]}]], "has 1 scores a row, an earlier file 5"),
        (GRADED, [[{"text": "a b", "label": [-100, 1]}] * 2], "has no first label"),
    ],
)  # fmt: skip
def test_other_rows_are_refused_with_what_to_type(kind, files, words, tmp_path) -> None:
    with pytest.raises(DataError, match=words):
        rows(kind, tmp_path, *files)


def test_settings_decide_what_rows_are() -> None:
    assert reward_rows(RmSettings()) is RankedDataset
    for loss, kind in (("regression", ScoreDataset), ("margin_bt", GradedDataset)):
        settings = RmSettings(reward_model_type="regression", loss_func=loss, loss_mask_val=-1)
        made = reward_rows(settings)
        assert (made.func, made.keywords) == (kind, {"missing": -1})
