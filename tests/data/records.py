"""JSON records near the spellings that are known: right, almost right, and anything else."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from nemoalign.data.rows import Dialogue

FINISHED = settings(max_examples=200)
FIELDS = (
    "prompt", "chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages",
    "rejected_messages", "messages", "conversations", "system", "instruction", "input", "output",
    "context", "completions", "response", "response1", "response2", "overall_preference", "label",
    "preference", "kto_tag", "desirable", "completion", "text", "margin", "chosen_reward", "tools",
    "score_rejected", "helpfulness", "correctness",
)  # fmt: skip
TEXTS = st.sampled_from(
    ["", " ", "Hi", "Hi there", "\ud800", "Human: a\n\nAssistant: b", "\n\nHuman:\n\nAssistant:", "chosen"]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, -1, -100, 2.5, float("nan"), float("inf"), 10**400, True, False, None]
)
PLAIN = TEXTS | NUMBERS
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", 3, None])
KEYS = st.sampled_from(
    ["role", "content", "from", "value", "rank", "completion", "tool_calls", "type", "text"]
)
MESSAGES = st.fixed_dictionaries({"role": ROLES, "content": TEXTS}) | st.fixed_dictionaries(
    {"from": ROLES, "value": TEXTS}
)
RANKED = st.fixed_dictionaries({"rank": PLAIN, "completion": st.lists(MESSAGES) | TEXTS})
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
USER, GOOD = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Good."}
BAD = {"role": "assistant", "content": "Bad."}
ASKED, SAID = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Good."}
ANSWERS = {"chosen": "Good.", "rejected": "Bad."}
RIGHT: tuple[dict, ...] = (
    {"prompt": "Hi?", **ANSWERS},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": "Hi?", "chosen_response": "Good.", "rejected_response": "Bad.", "chosen_reward": 1},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"chosen": "\n\nHuman: Hi?\n\nAssistant: Good.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Bad."},
    {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
    {"messages": [USER, GOOD], "rejected_response": "Bad."},
    {"conversations": [ASKED], "chosen": SAID, "rejected": {"from": "gpt", "value": "Bad."}},
    {"instruction": "Hi?", "input": "", **ANSWERS},
    {"context": [USER], "completions": [{"rank": n, "completion": [m]} for n, m in enumerate((GOOD, BAD))]},
    {"context": "Hi?", "response1": "Good.", "response2": "Bad.", "overall_preference": -2},
    {"prompt": "Hi?", "completion": "Good.", "label": True},
    {"messages": [USER, GOOD], "label": 0},
    {"conversations": [ASKED, SAID], "kto_tag": "desirable"},
    {"instruction": "Hi?", "output": "Good.", "preference": "chosen"},
    {"text": "Good.", "label": [1.0, -100]},
    {"text": "Good.", "label": False},
    {"prompt": "Hi?", "response": "Good.", "helpfulness": 3},
)  # fmt: skip


def records() -> st.SearchStrategy[dict]:
    """Right records with some fields taken away and some others added or changed."""
    value = TEXTS | st.lists(MESSAGES, max_size=4) | st.lists(RANKED, max_size=3) | NUMBERS | VALUES
    others = st.dictionaries(st.sampled_from(FIELDS), value, max_size=2)
    right = st.sampled_from(RIGHT)
    lost = st.just([]) | st.lists(st.sampled_from(FIELDS), max_size=2)
    return st.builds(_changed, right, lost, others) | st.builds(_within, right, value)


def _changed(record: dict, lost: list[str], others: dict) -> dict:
    return {key: value for key, value in record.items() if key not in lost} | others


def _within(record: dict, value: object) -> dict:
    """Return the record with something else as every content of its messages."""
    return {
        key: [item | {"content": value} if isinstance(item, dict) else item for item in inside]
        if isinstance(inside, list)
        else inside
        for key, inside in record.items()
    }


def is_finished(dialogue: Dialogue) -> bool:
    """True when prompt and answer have one form and the answer says something."""
    prompt, answer = dialogue.prompt, dialogue.answer
    if isinstance(prompt, str) or isinstance(answer, str):
        return isinstance(prompt, str) and isinstance(answer, str) and bool(answer.strip())
    both = [*prompt, *answer]
    return bool(answer) and all(isinstance(message["content"], str) for message in both)
