"""What both sides of ``ppo_speed.py`` work on: short questions made by a seed, and a reward that costs nothing.

nemoalign's workers import ``vowels`` from here, so it imports nothing that takes time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

VOWELS = frozenset("aeiou")
ASKED = (
    "Name three uses of {0}.",
    "What would a child ask about {0}?",
    "Explain {0} to somebody who has never heard of it, in two sentences.",
    "How do {0} and {1} differ?",
    "Write a line about {0} that does not mention {1}.",
    "Which is older, {0} or {1}? Say why you think so.",
)
THINGS = (
    "rivers", "copper", "bread", "the moon", "bicycles", "glass", "winter", "maps", "bees",
    "paper money", "lighthouses", "salt", "bridges", "chess", "rain", "clocks", "olive oil", "kites",
)  # fmt: skip


def vowels(prompt: str, response: str) -> float:
    """Return the share of vowels among the letters of an answer."""
    del prompt
    letters = [letter for letter in response.lower() if letter.isalpha()]
    return sum(letter in VOWELS for letter in letters) / max(1, len(letters))


def questions(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return rows of one user message each, the same ones for the same seed."""
    draw = random.Random(seed)
    texts = [draw.choice(ASKED).format(*draw.sample(THINGS, 2)) for _ in range(count)]
    return [{"messages": [{"role": "user", "content": text}]} for text in texts]


def write_questions(path: Path, count: int) -> Path:
    """Write so many rows and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in questions(count)), encoding="utf-8")
    return path


def read_questions(path: Path) -> list[list[dict[str, str]]]:
    """Return the messages of every row."""
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
