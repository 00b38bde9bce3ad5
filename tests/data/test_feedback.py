"""Labels and scores of single answers, in all their spellings."""

import pytest

from nemoalign.data.feedback import (
    LabelRow,
    ScoreRow,
    has_label,
    has_scores,
    label_row,
    score_row,
    unpaired,
)
from nemoalign.data.preferences import Dialogue, PairRow
from nemoalign.errors import DataError

USER, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
CHAT = Dialogue([USER], [SAID])


@pytest.mark.parametrize(
    "good", [True, 1, 1.0, "1", "chosen", "Desirable", "thumbs_up", "👍", "true"]
)
@pytest.mark.parametrize("field", ["label", "preference", "kto_tag", "desirable"])
def test_labels_that_mean_yes(field, good) -> None:
    record = {"prompt": "Q", "completion": "A", field: good}
    assert has_label(record)
    assert label_row(record) == LabelRow(Dialogue("Q", "A"), True)


@pytest.mark.parametrize("bad", [False, 0, -1, 0.0, "rejected", "undesirable", "thumbs_down", "👎"])
def test_labels_that_mean_no(bad) -> None:
    assert not label_row({"prompt": "Q", "response": "A", "label": bad}).is_desirable


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, SAID], "label": True},
        {"prompt": [USER], "completion": [SAID], "label": True},
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "kto_tag": True,
        },
    ],
)
def test_conversations_carry_labels_too(record) -> None:
    assert label_row(record) == LabelRow(CHAT, True)


def test_what_is_no_label_and_no_answer_says_so() -> None:
    with pytest.raises(DataError, match="'maybe' as \"label\""):
        label_row({"prompt": "Q", "completion": "A", "label": "maybe"})
    with pytest.raises(DataError, match='empty "completion"'):
        label_row({"prompt": "Q", "completion": " ", "label": True})
    with pytest.raises(DataError, match="does not end with an assistant message"):
        label_row({"messages": [SAID, USER], "label": True})
    assert not has_label({"prompt": "Q", "label": True})


def test_a_pair_is_two_labels() -> None:
    good, bad = Dialogue("Q", "A"), Dialogue("Q", "B")
    assert unpaired(PairRow(good, bad)) == (LabelRow(good, True), LabelRow(bad, False))


def test_scores_of_helpsteer_and_of_nemo() -> None:
    record = {"prompt": "Q", "response": "A", "helpfulness": 4, "correctness": 3, "coherence": 4}
    assert has_scores(record)
    assert score_row(record, -100) == ScoreRow(Dialogue("Q", "A"), [4.0, 3.0, 4.0, None, None])
    plain = {"text": "whole text", "label": [1.0, -100, 0]}
    assert has_scores(plain)
    assert score_row(plain, -100) == ScoreRow(Dialogue("", "whole text"), [1.0, None, 0.0])
    with pytest.raises(DataError, match="no score at all"):
        score_row({"text": "x", "label": [-100, -100]}, -100)
