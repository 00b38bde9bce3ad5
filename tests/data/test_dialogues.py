"""Which characters of a prompt with its answer are judged."""

import pytest

from nemoalign.data.dialogues import render_dialogue
from nemoalign.data.rows import Dialogue
from nemoalign.errors import DataError
from tests.commands.tiny import make_tokenizer

USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Good."}


class ChatML:
    """transformers' own rendering of the tiny tokenizer's template."""

    chat_template = make_tokenizer().chat_template

    def render_chat(self, messages, *, add_generation_prompt, tools) -> str:
        return make_tokenizer().apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, tokenize=False
        )


def judged(row: Dialogue) -> list[str]:
    made = render_dialogue(row, ChatML())
    return [made.text[start:end] for start, end in made.spans]


def test_text_is_judged_after_its_prompt() -> None:
    made = render_dialogue(Dialogue("Q: x\n", "y"), ChatML())
    assert (made.text, list(made.spans), made.ends_with_answer) == ("Q: x\ny", [(5, 6)], True)


def test_answers_of_the_prompt_are_not_judged() -> None:
    assert judged(Dialogue([USER], [GOOD])) == ["Good.<|im_end|>"]
    more = {"role": "assistant", "content": "More."}
    assert judged(Dialogue([USER, GOOD, USER], [more])) == ["More.<|im_end|>"]
    assert judged(Dialogue([USER], [GOOD, USER, more])) == ["Good.<|im_end|>", "More.<|im_end|>"]


def test_an_answer_that_ends_with_a_question_is_none() -> None:
    with pytest.raises(DataError, match="does not end with an assistant message"):
        render_dialogue(Dialogue([USER], [GOOD, USER]), ChatML())
