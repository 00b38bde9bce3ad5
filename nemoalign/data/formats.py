"""What a row of data may look like, and how its meaning is read: one table entry per schema.

A schema is recognised by its fields in the first row; every row must then follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemoalign.data.jsonl import JsonlFile, kind_of
from nemoalign.data.templates import DEFAULT_TEMPLATE, PromptTemplate
from nemoalign.errors import ConfigError, DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class PromptRow:
    """Values of the prompt template's fields; the label key holds the answer."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class ChatRow:
    """A conversation of roles and text; message fields we do not know go to the chat template."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


Row = PromptRow | ChatRow


@dataclass(frozen=True)
class Schema:
    """One way to write a row.

    ``fields`` say when it applies; ``read`` turns a record into a row or raises DataError without
    the place, which the caller knows.
    """

    name: str
    fields: tuple[str, ...]
    read: Callable[[Record], Row]


def schemas(template: PromptTemplate) -> tuple[Schema, ...]:
    """Return the known schemas, the one that wins first."""
    answer = template.label_key
    context = [key for key in template.keys if key != answer]

    def prompt_row(record: Record) -> Row:
        return PromptRow(_texts(record, template.keys, answer))

    def pair_row(record: Record) -> Row:
        values = _texts(record, ("prompt", "completion"), "completion")
        return PromptRow({context[0]: values["prompt"], answer: values["completion"]})

    table = (
        Schema("messages", ("messages",), _chat_row),
        Schema("prompt-response", template.keys, prompt_row),
    )
    if len(context) == 1:
        table += (Schema("prompt-completion", ("prompt", "completion"), pair_row),)
    return table


def choose_schema(file: JsonlFile, template: PromptTemplate, wanted: str = "auto") -> Schema:
    """Return the schema of a file, told by its first row, or the one named by ``--format``.

    Raises:
        ConfigError: when ``wanted`` names no schema.
        DataError: when the first row fits none.
    """
    table = schemas(template)
    names = [schema.name for schema in table]
    if wanted != "auto":
        if wanted not in names:
            raise ConfigError(f"--format {wanted} is not known. Use auto, {', '.join(names)}.")
        return table[names.index(wanted)]
    record = file.record(0)
    for schema in table:
        if record.keys() >= set(schema.fields):
            _refuse_lost_instruction(record, schema, template, file)
            return schema
    raise DataError(
        f"{file.where(0)} has {_listed(record)}, which is no known form of a row. Known are "
        f'"messages", or {_listed(template.keys)} (the fields of the prompt template {template.text!r}). '
        'For other fields name them: -s model.data.train_ds.prompt_template="{question} {answer}"'
    )


def read_rows(file: JsonlFile, schema: Schema, rows: Sequence[int]) -> list[Row]:
    """Return the meaning of some rows; raises DataError that names the first bad line."""
    return [_read(file, schema, row) for row in rows]


def check_rows(file: JsonlFile, schema: Schema) -> None:
    """Read every row once; raises DataError with the first bad line and the number of others."""
    first: DataError | None = None
    bad = 0
    for row in range(len(file)):
        try:
            _read(file, schema, row)
        except DataError as error:
            first = first or error
            bad += 1
    if first is not None:
        others = f" {bad - 1} more of {len(file)} rows are wrong too." if bad > 1 else ""
        raise DataError(f"{first}{others}") from first


def _read(file: JsonlFile, schema: Schema, row: int) -> Row:
    record = file.record(row)
    try:
        return schema.read(record)
    except DataError as error:
        raise DataError(f"{file.where(row)} {error}") from error


def _refuse_lost_instruction(
    record: Record, schema: Schema, template: PromptTemplate, file: JsonlFile
) -> None:
    # Alpaca rows have input and output too: the default template would drop every question.
    lost = "instruction" in record and "instruction" not in template.keys
    if lost and schema.name == "prompt-response" and template.text == DEFAULT_TEMPLATE:
        raise DataError(
            f'{file.where(0)} has "instruction", which the prompt template {template.text!r} leaves out. '
            'Say where it goes: -s model.data.train_ds.prompt_template="{instruction}\\n{input}\\n{output}"'
        )


def _texts(record: Record, keys: Sequence[str], answer: str) -> dict[str, str]:
    values = {key: _text(record, key) for key in keys}
    if not values[answer].strip():
        raise DataError(
            f'has an empty "{answer}": there is nothing to learn. Remove the row or fill it.'
        )
    return values


def _text(record: Record, key: str) -> str:
    if key not in record:
        raise DataError(
            f'has no "{key}" field; it has {_listed(record)}. Every row of a file has the same fields.'
        )
    return _checked_text(record[key], f'"{key}"')


def _checked_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"has a {kind_of(value)} as {what}, which must be text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"has half of a surrogate pair in {what}, which is no character."
            ) from error
    return value


def _chat_row(record: Record) -> Row:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError('has no list of messages as "messages".')
    tools = record.get("tools")
    if tools is not None and not _are_objects(tools):
        raise DataError('has something else than a list of objects as "tools".')
    plain = [_message(message, index) for index, message in enumerate(messages)]
    answers = [message for message in plain if message["role"] == "assistant"]
    if not answers:
        raise DataError("has no assistant message: there is nothing to learn. Remove the row.")
    for message in answers:
        if not message["content"].strip() and not message.get("tool_calls"):
            raise DataError("has an empty assistant message. Remove the row or fill it.")
    return ChatRow(plain, tools or None)


def _message(message: object, index: int) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(f'has a message {index} without a "role".')
    what = f'"content" of message {index}'
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, what) for part in content)
    elif content is None and message.get("tool_calls"):
        content = ""
    return {**message, "content": _checked_text(content, what)}


def _part(part: object, what: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        return _checked_text(part.get("text"), what)
    raise DataError(f"has a part in {what} that is not text; only text is trained on.")


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _listed(fields: Sequence[str] | Record) -> str:
    return " and ".join(f'"{field}"' for field in fields) or "no fields"
