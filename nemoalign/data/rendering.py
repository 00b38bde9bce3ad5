"""Chat templates: Jinja as transformers runs it, in its sandbox, on plain data only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from nemoalign.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Messages = Sequence[Mapping[str, Any]]


def marks_answers(template: str) -> bool:
    """True when the template itself says what the assistant wrote (``{% generation %}``)."""
    return _GENERATION.search(template) is not None


def render(
    template: str | None,
    messages: Messages,
    *,
    add_generation_prompt: bool,
    tools: Messages | None,
    variables: Mapping[str, Any],
    marked: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation and, if ``marked``, its generation blocks.

    Raises:
        DataError: when there is no template or the template refuses the conversation.
    """
    if template is None:
        raise DataError(
            "The checkpoint's tokenizer has no chat template, so `messages` have no written form. "
            "Give rows of prompt and answer, or embed a tokenizer that has one: "
            "nemoalign convert MODEL -o NEW.nemo --tokenizer HF_DIR"
        )
    try:
        texts, blocks = render_jinja_template(
            conversations=[[_without_none(message) for message in messages]],
            tools=[dict(tool) for tool in tools] if tools else None,
            chat_template=template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"The chat template refuses this conversation: {error}") from error
    return texts[0], [(int(start), int(end)) for start, end in blocks[0]] if marked else []


def _without_none(message: Mapping[str, Any]) -> dict[str, Any]:
    # As transformers does: ``"tool_calls": null`` would be written as the word None.
    return {key: value for key, value in message.items() if value is not None}
