"""Rows and how they become tokens: ``model.data``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.config.fields import Section, section, setting
from nemoalign.config.values import DataFile
from nemoalign.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChatPromptTokens(Section):
    """NeMo's turn markers; a chat checkpoint brings its own."""

    system_turn_start: str = setting("\x00", "Starts the system turn.")
    turn_start: str = setting("\x11", "Starts every other turn.")
    label_start: str = setting("\x12", "Starts a label.")
    end_of_turn: str = setting("\n", "Ends a turn.")
    end_of_name: str = setting("\n", "Ends a speaker's name.")


@dataclass(frozen=True, kw_only=True)
class TrainData(Section):
    """Rows to learn from."""

    file_path: tuple[DataFile, ...] = setting(
        (),
        "Rows to learn from (JSONL, also .gz; Parquet); repeat it to mix files, with a weight each.",
        flag="--data",
        metavar="FILE[:WEIGHT]",
        path_kind="file",
        panel="Checkpoint and data",
    )
    prompt_template: str | None = setting(
        None,
        "How a row becomes text, the answer's field last: 'Q: {input}\\nA: {output}'.",
        shown="the checkpoint's, else '{input} {output}'",
    )
    label_key: str | None = setting(None, "Field of the answer.", shown="the template's last field")
    truncation_field: str | None = setting(
        None,
        "Fields to cut in a row that is too long, commas between them.",
        shown="input, else the template's first field",
    )
    truncation_method: Literal["left", "right"] = setting(
        "right",
        "Which end is cut; of judged answers left is their prompt's start, alike for a pair.",
    )
    overlong: Literal["truncate", "drop"] = setting(
        "truncate",
        "What becomes of rows longer than --seq-len; both are counted in the data report.",
    )
    add_bos: bool = setting(False, "Start a row with the tokenizer's beginning-of-text token.")
    add_eos: bool = setting(True, "End an answer with the tokenizer's end-of-text token.")
    add_sep: bool = setting(False, "Put NeMo's separator (id 0) between prompt and answer.")
    max_seq_length: int = setting(512, "Longest row in tokens.", at_least=2, shown="--seq-len")
    packed_sequence: bool = setting(
        True,
        "Lay the rows of a global batch end to end in packs of --mbs x --seq-len tokens, each row "
        "seeing only itself: the same loss without padding.",
        flag="--packing/--no-packing",
        panel="Checkpoint and data",
    )
    shuffle: bool = setting(
        False,
        "Draw a new order for every epoch, instead of the file's.",
        flag="--shuffle/--no-shuffle",
        panel="Checkpoint and data",
    )
    index_mapping_dir: Path | None = setting(
        None,
        "Directory where lines and tokens of all files are kept for later starts.",
        path_kind="directory",
        shown="nemoalign/index in $XDG_CACHE_HOME or ~/.cache",
    )


@dataclass(frozen=True, kw_only=True)
class ValidationData(Section):
    """Rows to measure on; how they become text is the training rows' way."""

    file_path: tuple[DataFile, ...] = setting(
        (),
        "Rows to measure the loss on, before, during and after.",
        flag="--val",
        metavar="FILE",
        path_kind="file",
        panel="Checkpoint and data",
    )
    prompts_path: Path | None = setting(
        None,
        "Prompts, rows of any kind, to answer at every validation; see generations.jsonl.",
        flag="--val-prompts",
        metavar="FILE",
        path_kind="file",
        shown="none",
        panel="Checkpoint and data",
    )
    tokens_to_generate: int = setting(64, "Longest answer to one of them, in tokens.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class TestData(Section):
    """Rows kept for the end; how they become text is the training rows' way."""

    file_path: tuple[DataFile, ...] = setting(
        (),
        "Rows to measure the loss on once, at the end.",
        flag="--test",
        metavar="FILE",
        path_kind="file",
        panel="Checkpoint and data",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Data and how rows become tokens."""

    chat_prompt_tokens: ChatPromptTokens = section(ChatPromptTokens)
    train_ds: TrainData = section(TrainData)
    validation_ds: ValidationData = section(ValidationData)
    test_ds: TestData = section(TestData)
    splits_string: str | None = setting(
        None,
        "Shares of the training rows to train, measure and test (980,10,10), drawn by the seed; for "
        "files that stand for all three.",
        shown="none",
    )
    tokenize_ahead_megabytes: int = setting(
        256,
        "Files of so much text are checked and tokenized whole, once; rows of larger ones when used.",
        at_least=0,
    )
    preview: int = setting(
        0,
        "Show so many samples as they are trained, in colours or brackets: learned, only read, cut away.",
        flag="--preview",
        metavar="N",
        at_least=0,
        shown="none",
        transient=True,
        panel="Checkpoint and data",
    )
    format: Literal[
        "auto",
        "tokens",
        "messages",
        "nemo-chat",
        "sharegpt",
        "alpaca",
        "prompt-response",
        "prompt-completion",
    ] = setting(
        "auto",
        "What the rows are; auto tells it by the fields of the first one.",
        flag="--format",
        panel="Checkpoint and data",
    )

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        super().__post_init__()
        split_shares(self.splits_string)

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """Shares of the rows that are trained, measured and tested, if they are to be split."""
        return split_shares(self.splits_string)


def split_shares(text: str | None) -> tuple[float, float, float] | None:
    """Return the three shares of ``980,10,10``, which add up to 1.

    Raises:
        ConfigError: when they are not one to three numbers, none below 0 and one above.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    if not 0 < len(numbers) <= 3 or not all(n >= 0 for n in numbers) or not 0 < total < math.inf:
        raise ConfigError(
            f"model.data.splits_string is {text!r}; it must be up to three shares for training, "
            "validation and test, such as 980,10,10."
        )
    train, validation, test = (n / total for n in (*numbers, 0.0, 0.0)[:3])
    return train, validation, test
