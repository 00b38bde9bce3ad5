"""Rows of any kind as prompts that a policy answers itself; answers they have are left away.

The index tells how long prompts are and which do not fit; a prompt itself is read when its turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.data.conversations import SHAREGPT_ROLES, is_nemo_chat
from nemoalign.data.dataset import SftDataset
from nemoalign.data.prompts import STAND_IN, Prompt, answered, read_prompt
from nemoalign.data.templates import PromptTemplate

if TYPE_CHECKING:
    from nemoalign.data.encoded import Storage
    from nemoalign.data.encoder import SftSettings
    from nemoalign.data.formats import RowFile
    from nemoalign.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A prompt of a data set, and everything its row says."""

    index: int
    prompt: Prompt
    record: Mapping[str, Any]


class PromptFile:
    """The rows of a file, each with a stand-in for its answer."""

    def __init__(self, file: RowFile, template: PromptTemplate) -> None:
        self.file, self._template = file, template
        self.path, self.blank_lines, self.size_bytes = file.path, file.blank_lines, file.size_bytes

    def __len__(self) -> int:
        return len(self.file)

    def where(self, row: int) -> str:
        """Return how to find a row."""
        return self.file.where(row)

    def record(self, row: int) -> dict[str, Any]:
        """Return a row as it would be with the stand-in for its answer."""
        return answered(without_answer(self.file.record(row), self._template), self._template)


class PromptDataset(SftDataset):
    """The prompts of some files that leave room for an answer, in file order."""

    def __init__(
        self,
        files: Sequence[tuple[Path, float]],
        tokenizer: Tokenizer,
        settings: SftSettings,
        split: str = "train",
        storage: Storage | None = None,
    ) -> None:
        alone = replace(settings, only_prompts=True, overlong="drop")
        super().__init__(files, tokenizer, alone, split, storage)

    def question(self, index: int) -> Question:
        """Return one prompt with its row; raises DataError that names a bad one."""
        file, row = self._at(index)
        assert isinstance(file.file, PromptFile), "_rows_of makes them"
        record = file.file.file.record(row)
        prompt = read_prompt(record, file.file.where(row), self.tokenizer, self.settings)
        return Question(index, prompt, record)

    def _rows_of(self, path: Path) -> RowFile:
        return PromptFile(super()._rows_of(path), self.template)


def without_answer(record: Mapping[str, Any], template: PromptTemplate) -> dict[str, Any]:
    """Return a record without the answer that comes last in it, where it has one."""
    rest = dict(record)
    messages, turns = record.get("messages"), record.get("conversations")
    if isinstance(messages, list) and messages and _of(messages[-1], "role") == "assistant":
        rest["messages"] = messages[:-1]
    if isinstance(turns, list) and turns:
        speaker = _of(turns[-1], "from")
        if is_nemo_chat(record) and speaker not in str(record.get("mask", "User")):
            # A prompt of NeMo's ends with who speaks next, and with the label of what they say.
            rest["conversations"] = [*turns[:-1], {**turns[-1], "value": STAND_IN}]
        elif SHAREGPT_ROLES.get(speaker) == "assistant":
            rest["conversations"] = turns[:-1]
    for question, answer in (("instruction", "output"), ("prompt", "completion")):
        if question in record:
            rest.pop(answer, None)
    rest.pop(template.label_key, None)
    return rest


def _of(part: object, name: str) -> str:
    """Return a text that a message or turn should have; what is none of these is read, and refused, later."""
    return str(part.get(name)) if isinstance(part, Mapping) else ""
