"""Real pairs and labelled answers for ``preference_speed.py``: those that fit, as they stand and as rendered text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Rendered:
    """A prompt as the chat template writes it, with its answers and the tokens of each whole text."""

    prompt: str
    answers: list[str]
    lengths: list[int]
    answer_lengths: list[int]
    label: bool | None = None
    fields: list[str] = field(default_factory=list)
    """What TRL calls the answers."""

    def record(self) -> dict[str, Any]:
        """Return the row in TRL's spelling."""
        label = {} if self.label is None else {"label": self.label}
        named = dict(zip(self.fields, self.answers, strict=True))
        return {"prompt": self.prompt, **named, **label}


def prepare(kind: str, source: Path, model: Path, longest: int, folder: Path) -> tuple[Path, Path]:
    """Write the rows of ``source`` whose texts have at most ``longest`` tokens; return raw and rendered file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    raw, rendered = (folder / f"{kind}-{longest}{end}.jsonl" for end in ("", "-rendered"))
    lines = source.read_text(encoding="utf-8").splitlines()
    rows = [render(kind, json.loads(line), tokenizer) for line in lines]
    kept = [n for n, row in enumerate(rows) if max(row.lengths) <= longest]
    folder.mkdir(parents=True, exist_ok=True)
    raw.write_text("".join(f"{lines[n]}\n" for n in kept), encoding="utf-8")
    texts = "".join(f"{json.dumps(asdict(rows[n]))}\n" for n in kept)
    rendered.write_text(texts, encoding="utf-8")
    return raw, rendered


def read_rendered(path: Path) -> list[Rendered]:
    """Return the rows that ``prepare`` rendered."""
    return [Rendered(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def render(kind: str, row: dict[str, Any], tokenizer: Any) -> Rendered:
    """Return a row of LLaMA-Factory's files through the tokenizer's chat template."""
    if kind == "kto":
        *prompt, answer = row["messages"]
        return texts(prompt, {"completion": answer["content"]}, tokenizer, row["label"])
    prompt = [{"role": ROLES[t["from"]], "content": t["value"]} for t in row["conversations"]]
    answers = {name: row[name]["value"] for name in ("chosen", "rejected")}
    return texts(prompt, answers, tokenizer, None)


def texts(
    prompt: list[dict[str, str]], answers: dict[str, str], tokenizer: Any, label: bool | None
) -> Rendered:
    """Return prompt and answers as text; an answer ends with the end-of-turn token."""
    head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    wholes = [
        tokenizer.apply_chat_template(
            [*prompt, {"role": "assistant", "content": answer}], tokenize=False
        ).rstrip("\n")
        for answer in answers.values()
    ]
    tails = [whole.removeprefix(head) for whole in wholes]
    return Rendered(
        head,
        tails,
        [length(whole, tokenizer) for whole in wholes],
        [length(tail, tokenizer) for tail in tails],
        label,
        list(answers),
    )


def length(text: str, tokenizer: Any) -> int:
    """Return the number of tokens of a text that holds its special tokens already."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def step_tokens(rows: list[Rendered], size: int) -> list[int]:
    """Return the tokens of the answers with their prompts, step by step."""
    steps = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [sum(sum(row.lengths) for row in step) for step in steps]


def mismatched_tokens(rows: list[Rendered], size: int, longest: int) -> int:
    """Return the tokens of KTO's mismatched rows: a prompt with the answer before it, ``size`` at a time."""
    total = 0
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        for place, row in enumerate(group):
            prompt = row.lengths[0] - row.answer_lengths[0]
            total += min(longest, prompt + group[place - 1].answer_lengths[0])
    return total
