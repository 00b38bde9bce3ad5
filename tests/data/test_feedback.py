"""Labels and scores of single answers, in all their spellings."""

import pytest
from hypothesis import given

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
from tests.data.records import FINISHED, is_finished, records

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
    with pytest.raises(DataError, match='empty answer in "completion"'):
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


def test_the_input_of_an_instruction_is_part_of_the_question() -> None:
    record = {
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
        "label": True,
        "system": "Count.",
    }
    prompt = [{"role": "system", "content": "Count."}, {"role": "user", "content": "Add.\n\n1 2"}]
    said = [{"role": "assistant", "content": "3"}]
    assert label_row(record).dialogue == Dialogue(prompt, said)


def test_tools_stay_with_the_answer_that_may_use_them() -> None:
    tools = [{"type": "function", "function": {"name": "listen"}}]
    record = {"messages": [USER, SAID], "label": True, "tools": tools}
    assert label_row(record).dialogue.tools == tools


@FINISHED
@given(records())
def test_any_record_is_a_labelled_or_scored_answer_or_a_data_error(record) -> None:
    for read in (label_row, lambda one: score_row(one, -100)):
        try:
            row = read(record)
        except DataError:
            continue
        assert is_finished(row.dialogue)
