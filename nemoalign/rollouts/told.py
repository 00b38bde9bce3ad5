"""A few answers of a rollout as lines of JSON, for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.rollouts.answers import Rollout


def told(rollout: Rollout, count: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return at most ``count`` answers, evenly spread over the rollout, with what was found out about them."""
    every = len(rollout.answers)
    step = -(-every // count) if count else 1
    return [_line(rollout, row, tokenizer) for row in range(0, every if count else 0, step)]


def _line(rollout: Rollout, row: int, tokenizer: Tokenizer) -> dict[str, Any]:
    answer = rollout.answers[row]
    length = len(answer.ids)
    found: dict[str, Any] = {
        "source": answer.question.prompt.source,
        "prompt": tokenizer.decode(list(answer.question.prompt.ids)),
        "response": answer.text,
        "reward": _number(rollout.rewards[row]),
        "tokens": length,
        "finished": answer.finished,
    }
    if len(rollout.parts) > 1:
        found["rewards"] = {name: _number(part[row]) for name, part in rollout.parts.items()}
    if rollout.kl is not None:
        found["kl"] = float(rollout.kl[row].sum())
    if rollout.advantages is not None:
        found["advantage"] = float(rollout.advantages[row, :length].mean())
    return found


def _number(value: Any) -> float | None:
    """Return a reward as JSON knows it: nothing where nobody could say."""
    number = float(value)
    return None if number != number else number
