import pytest

from nemoalign.data.markers import Markers
from nemoalign.data.nemo_chat import TurnTokens
from nemoalign.data.rows import ChatRow, NemoChatRow, PromptRow, TokenRow, Turn

SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>")


def find(row, template="{input} {output}", end="<|im_end|>", **turns):
    return Markers(SPECIAL, TurnTokens(**turns), template, end).find(row)


def chat(*texts):
    return ChatRow([{"role": "user", "content": text} for text in texts], None)


@pytest.mark.parametrize(
    ("row", "mark"),
    [
        (chat("hello", "a<|im_end|>b"), "<|im_end|>"),
        (chat("hello", "<extra_id_1>User"), "<extra_id_1>"),
        (chat("hello", "the tag <b> and \n lines"), None),
        (NemoChatRow("be \x11 brief", [], "User", None), "\x11"),
        (NemoChatRow("", [Turn("User", "two\nlines", None)], "User", None), None),
        (PromptRow({"input": "x", "output": "y<|im_end|>"}), "<|im_end|>"),
        (PromptRow({"input": "<|im_start|>x", "output": "y"}), None),
    ],
)
def test_a_mark_is_one_that_the_rows_own_template_writes(row, mark):
    assert find(row) == mark


def test_a_prompt_templates_own_marks_count_and_an_end_that_is_not_added_does_not():
    row = PromptRow({"input": "<|im_start|>x", "output": "y<|im_end|>"})
    assert find(row, template="<|im_start|>{input}{output}") == "<|im_start|>"
    assert find(row, end="") is None


def test_ids_hold_no_text():
    import numpy as np

    assert find(TokenRow(np.arange(3), np.ones(3, bool))) is None
