"""What a row of data may look like: one table entry per schema.

A schema is recognised by the fields of the first row; every row must then follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nemoalign.data.conversations import (
    alpaca_row,
    is_nemo_chat,
    is_sharegpt,
    messages_row,
    nemo_chat_row,
    sharegpt_row,
)
from nemoalign.data.preferences import pair_reader
from nemoalign.data.rows import PromptRow, Record, Row, answer_of, listed, text_of
from nemoalign.data.templates import DEFAULT_TEMPLATE, PromptTemplate
from nemoalign.data.tokenized import is_tokenized, token_row
from nemoalign.errors import ConfigError, DataError

CHAT_TEMPLATE_SCHEMAS = ("messages", "sharegpt", "alpaca")
"""The schemas whose rows the tokenizer's chat template writes."""


class RowFile(Protocol):
    """A file of records: JSON lines, a table or an array."""

    path: Path
    blank_lines: int
    size_bytes: int
    """Of its text, unpacked."""

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """Return how to find a row in the file."""
        ...

    def record(self, row: int) -> dict[str, Any]:
        """Return one record; raises DataError when there is none."""
        ...


@runtime_checkable
class AnswerFile(RowFile, Protocol):
    """Answers that are judged as rows of their own."""

    together: int
    """So many may be a pair, and are not parted when some rows stand for all."""
    numbers: Sequence[object]
    """Which numbers are known of an answer, and all that decides them beside the file."""

    def known(self, row: int) -> Mapping[str, float]:
        """Return the numbers an answer comes with, of the same names for every one of them."""
        ...


@dataclass(frozen=True)
class Schema:
    """One way to write a row.

    ``matches`` says by a first record whether it applies; ``read`` turns a record into a row or raises
    DataError without the place, which the caller knows.
    """

    name: str
    matches: Callable[[Record], bool]
    read: Callable[[Record], Row]


def schemas(template: PromptTemplate) -> tuple[Schema, ...]:
    """Return the known schemas, the one that wins first."""
    answer = template.label_key
    context = [key for key in template.keys if key != answer]

    def prompt_row(record: Record) -> Row:
        values = {key: text_of(record, key) for key in template.keys}
        return PromptRow(values | {answer: answer_of(record, answer)})

    def pair_row(record: Record) -> Row:
        return PromptRow(
            {context[0]: text_of(record, "prompt"), answer: answer_of(record, "completion")}
        )

    def is_alpaca(record: Record) -> bool:
        # Such rows have input and output too: the default template would drop every question.
        return template.text == DEFAULT_TEMPLATE and _has("instruction", "output")(record)

    table = (
        Schema("tokens", is_tokenized, token_row),
        Schema("messages", _has("messages"), messages_row),
        Schema("nemo-chat", is_nemo_chat, nemo_chat_row),
        Schema("sharegpt", is_sharegpt, sharegpt_row),
        Schema("alpaca", is_alpaca, alpaca_row),
        Schema("prompt-response", _has(*template.keys), prompt_row),
    )
    if len(context) == 1:
        table += (Schema("prompt-completion", _has("prompt", "completion"), pair_row),)
    return table


def choose_schema(file: RowFile, template: PromptTemplate, wanted: str = "auto") -> Schema:
    """Return the schema of a file, told by its first row, or the one named by ``--format``.

    Raises:
        ConfigError: when ``wanted`` names no schema.
        DataError: when the first row fits none.
    """
    try:
        return choose_schema_of(file.record(0) if wanted == "auto" else {}, template, wanted)
    except DataError as error:
        raise DataError(f"{file.where(0)} {error}") from error


def choose_schema_of(record: Record, template: PromptTemplate, wanted: str = "auto") -> Schema:
    """Return the schema of one record, as ``choose_schema`` does, without the place in errors."""
    table = schemas(template)
    names = [schema.name for schema in table]
    if wanted != "auto":
        if wanted not in names:
            raise ConfigError(f"--format {wanted} is not known. Use auto, {', '.join(names)}.")
        return table[names.index(wanted)]
    for schema in table:
        if schema.matches(record):
            return schema
    if pair_reader(record) is not None:
        raise DataError(
            f"has {listed(record)}, which is a preference pair, no prompt with its answer. "
            "Pairs are for nemoalign dpo, kto and rm."
        )
    raise DataError(
        f"has {listed(record)}, which is no known form of a row. Known are "
        f'"messages", "conversations", "instruction" and "output", "input_ids", or '
        f"{listed(template.keys)} (the fields of the prompt template {template.text!r}). "
        'For other fields name them: -s model.data.train_ds.prompt_template="{question} {answer}"'
    )


def read_rows(file: RowFile, schema: Schema, rows: Sequence[int]) -> list[Row]:
    """Return the meaning of some rows; raises DataError that names the first bad line."""
    return [_read(file, schema, row) for row in rows]


def check_rows(file: RowFile, schema: Schema, rows: Sequence[int]) -> None:
    """Read some rows; raises DataError with the first bad line and the number of others."""
    first: DataError | None = None
    bad: set[str] = set()
    for row in rows:
        try:
            _read(file, schema, row)
        except DataError as error:
            first = first or error
            bad.add(file.where(row))  # of a pair both answers say so
    if first is not None:
        others = f" {len(bad) - 1} more are wrong too." if len(bad) > 1 else ""
        raise DataError(f"{first}{others}") from first


def _read(file: RowFile, schema: Schema, row: int) -> Row:
    record = file.record(row)
    try:
        return schema.read(record)
    except DataError as error:
        raise DataError(f"{file.where(row)} {error}") from error


def _has(*fields: str) -> Callable[[Record], bool]:
    return lambda record: record.keys() >= set(fields)
