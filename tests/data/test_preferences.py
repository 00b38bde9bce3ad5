"""Every spelling of a preference pair reads to the same prompt, better and worse answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.data.preferences import Dialogue, hh_messages, pair_reader
from nemoalign.errors import DataError
from tests.data.records import FINISHED, is_finished, records

USER, MORE = {"role": "user", "content": "Hi?"}, {"role": "user", "content": "More!"}
GOOD, BAD = {"role": "assistant", "content": "Good."}, {"role": "assistant", "content": "Bad."}
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "Good."}]}
CHAT = {"conversations": [{"from": "human", "value": "Hi?"}]}

AS_MESSAGES = {
    "NeMo, messages": {"prompt": [USER], "chosen_response": GOOD, "rejected_response": BAD},
    "TRL, messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "UltraFeedback": {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "answers alone": {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
    "ShareGPT": CHAT | {"chosen": {"from": "gpt", "value": "Good."}, "rejected": {"from": "gpt", "value": "Bad."}},
    "ShareGPT, text": CHAT | {"chosen": "Good.", "rejected": "Bad."},
    "Alpaca": {"instruction": "Hi?", "input": "", "chosen": "Good.", "rejected": "Bad."},
    "whole conversations": {"chosen_messages": [USER, PARTS], "rejected_messages": [USER, BAD]},
    "rejected_response": {"messages": [USER, GOOD], "rejected_response": "Bad."},
    "HH": {"chosen": "\n\nHuman: Hi?\n\nAssistant: Good.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Bad."},
    "ranked": {
        "context": [USER],
        "completions": [{"rank": 1, "completion": [BAD]}, {"rank": 0, "completion": [GOOD]}],
    },
    "HelpSteer3": {"context": [USER], "response1": "Good.", "response2": "Bad.", "overall_preference": -2},
}  # fmt: skip


@pytest.mark.parametrize("record", AS_MESSAGES.values(), ids=list(AS_MESSAGES))
def test_spellings_of_messages(record) -> None:
    reader = pair_reader(record)
    assert reader is not None
    pair = reader(record)
    assert pair.chosen == Dialogue([USER], [GOOD])
    assert pair.rejected == Dialogue([USER], [BAD])


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Hi? ", "chosen_response": "Good.", "rejected_response": "Bad."},
        {"prompt": "Hi? ", "chosen": "Good.", "rejected": "Bad."},
        {"chosen": "Hi? Good.", "rejected": "Hi? Bad."},
    ],
)
def test_spellings_of_text_stay_text(record) -> None:
    reader = pair_reader(record)
    assert reader is not None
    pair = reader(record)
    assert pair.chosen == Dialogue("Hi? ", "Good.")
    assert pair.rejected == Dialogue("Hi? ", "Bad.")


def test_hh_keeps_every_turn_also_where_an_answer_is_several() -> None:
    start = "\n\nHuman: Hi?\n\nAssistant: "
    record = {
        "chosen": f"{start}Good.\n\nHuman: More!\n\nAssistant: Good.",
        "rejected": f"{start}Bad.",
    }
    reader = pair_reader(record)
    assert reader is not None
    pair = reader(record)
    assert pair.chosen == Dialogue([USER], [GOOD, MORE, GOOD])
    assert pair.rejected == Dialogue([USER], [BAD])


@given(
    st.lists(st.text(st.characters(categories=["Ll", "Lu"]), min_size=1), min_size=2, max_size=6)
)
def test_hh_turns_come_back_as_they_were_written(said) -> None:
    speakers = ["Human", "Assistant"] * len(said)
    text = "".join(f"\n\n{who}: {what}" for who, what in zip(speakers, said, strict=False))
    assert [message["content"] for message in hh_messages(text)] == said
    assert [m["role"] for m in hh_messages(text)] == (["user", "assistant"] * len(said))[
        : len(said)
    ]


def test_plain_text_has_no_turns() -> None:
    assert hh_messages("no turns, though Human: stands in it") == []


def test_rewards_and_margins_are_read_by_all_their_names() -> None:
    plain = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    for names in (("score_chosen", "score_rejected"), ("chosen_reward", "rejected_reward")):
        record = plain | dict(zip(names, (8.5, 2), strict=True))
        reader = pair_reader(record)
        assert reader is not None
        pair = reader(record)
        assert (pair.chosen_reward, pair.rejected_reward) == (8.5, 2.0)
    reader = pair_reader(AS_MESSAGES["HelpSteer3"])
    assert reader is not None
    assert reader(AS_MESSAGES["HelpSteer3"]).margin == 2.0


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "same answer"),
        ({"prompt": "Q", "chosen": "A", "rejected": "  "}, "empty rejected answer"),
        ({"prompt": "Q", "chosen": "A", "rejected": 3}, 'no list as "rejected"'),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "x"}, "'x' as \"margin\""),
        (AS_MESSAGES["ranked"] | {"completions": []}, "completions"),
        (AS_MESSAGES["HelpSteer3"] | {"overall_preference": 0}, "prefers neither"),
        (CHAT | {"chosen": {"from": "?", "value": "A"}, "rejected": "B"}, "from"),
    ],
)
def test_rows_that_hold_no_preference_say_so(record, says) -> None:
    reader = pair_reader(record)
    assert reader is not None
    with pytest.raises(DataError, match=says):
        reader(record)


@pytest.mark.parametrize(
    ("first", "later", "says"),
    [
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            {"prompt": "Q", "chosen": "A"},
            'no "rejected" field; it has "prompt" and "chosen"',
        ),
        (
            {"chosen": "A B", "rejected": "A C"},
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            'first row is told by "chosen" and "rejected"',
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {"chosen": [USER, GOOD], "rejected": "Bad."},
            "messages as the chosen answer and text as the rejected",
        ),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            {"prompt": "Q", "chosen": [GOOD], "rejected": "B"},
            "messages as the chosen answer and text as the rejected",
        ),
        (
            AS_MESSAGES["ranked"],
            AS_MESSAGES["ranked"] | {"completions": [{"rank": 1}, {"rank": "first"}]},
            "'first' as \"rank\", which must be a number",
        ),
        (
            AS_MESSAGES["HelpSteer3"],
            AS_MESSAGES["HelpSteer3"] | {"response2": ""},
            "empty rejected answer",
        ),
        (AS_MESSAGES["ShareGPT"], AS_MESSAGES["ShareGPT"] | {"chosen": {"from": []}}, '"from"'),
        (
            AS_MESSAGES["TRL, messages"],
            AS_MESSAGES["TRL, messages"] | {"margin": 10**400},
            '"margin", which must be a number',
        ),
    ],
)
def test_a_later_row_that_lacks_something_says_what(first, later, says) -> None:
    reader = pair_reader(first)
    assert reader is not None
    with pytest.raises(DataError, match=says):
        reader(later)


@FINISHED
@given(st.sampled_from([*AS_MESSAGES.values()]), records())
def test_any_record_is_a_pair_or_a_data_error_whatever_the_first_row_was(first, record) -> None:
    for reader in (pair_reader(first), pair_reader(record)):
        try:
            pair = None if reader is None else reader(record)
        except DataError:
            continue
        assert pair is None or (is_finished(pair.chosen) and is_finished(pair.rejected))


def test_rows_without_a_pair_are_left_to_others() -> None:
    assert pair_reader({"prompt": "Q", "completion": "A", "label": True}) is None
