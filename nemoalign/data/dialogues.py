"""A prompt and the answer that is judged, as text with the answer's characters marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemoalign.data.chat import Rendered, render_row
from nemoalign.data.rows import ChatRow, Dialogue
from nemoalign.errors import DataError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer


def render_dialogue(row: Dialogue, tokenizer: Tokenizer) -> Rendered:
    """Return prompt and answer as one text; of messages only those after the prompt are the answer.

    Raises:
        DataError: when the chat template refuses the messages, or none of them is an answer.
    """
    if isinstance(row.prompt, str):
        assert isinstance(row.answer, str), "an answer has the form of its prompt"
        text = row.prompt + row.answer
        return Rendered(text, [(len(row.prompt), len(text))], ends_with_answer=True)
    assert not isinstance(row.answer, str), "an answer has the form of its prompt"
    messages = [*row.prompt, *row.answer]
    if row.answer[-1]["role"] != "assistant":
        raise DataError("has an answer that does not end with an assistant message.")
    whole = render_row(ChatRow(messages, row.tools), tokenizer, "assistant")
    before = sum(message["role"] == "assistant" for message in row.prompt)
    return Rendered(whole.text, list(whole.spans)[before:], whole.ends_with_answer)
