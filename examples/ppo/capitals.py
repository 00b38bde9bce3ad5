"""A task whose answers a program can check: capitals. Writes the prompts; as a module it is the reward.

Usage: capitals.py DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LONGEST = 60
"""Characters of an answer that says it and no more."""

TRAINED = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Germany": "Berlin",
    "Egypt": "Cairo", "Greece": "Athens", "Russia": "Moscow", "China": "Beijing", "Cuba": "Havana",
    "Peru": "Lima", "Norway": "Oslo", "Poland": "Warsaw", "Austria": "Vienna", "Ireland": "Dublin",
    "Kenya": "Nairobi", "Portugal": "Lisbon", "Sweden": "Stockholm", "Hungary": "Budapest",
    "Iran": "Tehran", "Thailand": "Bangkok", "Chile": "Santiago", "Canada": "Ottawa",
    "Argentina": "Buenos Aires",
}  # fmt: skip
HELD_OUT = {
    "India": "New Delhi", "Denmark": "Copenhagen", "Finland": "Helsinki", "Belgium": "Brussels",
    "Turkey": "Ankara", "Mexico": "Mexico City", "Vietnam": "Hanoi", "Iraq": "Baghdad",
    "Romania": "Bucharest", "Syria": "Damascus", "Colombia": "Bogota", "the Netherlands": "Amsterdam",
}  # fmt: skip


def right(prompt: str, response: str, capital: str) -> float:
    """Return 1 for an answer that names the capital and is short, else 0."""
    del prompt
    return float(capital.lower() in response.lower() and len(response) <= LONGEST)


def main(directory: Path) -> None:
    """Write the prompts of both halves, a country each."""
    for name, countries in (("train", TRAINED), ("val", HELD_OUT)):
        rows = [
            {"messages": [_question(country)], "capital": capital}
            for country, capital in countries.items()
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"capitals-{name}.jsonl").write_text(text, encoding="utf-8")


def _question(country: str) -> dict[str, str]:
    return {"role": "user", "content": f"What is the capital of {country}?"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
