"""Defaults that follow from other settings; each is used only where nobody gave a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemoalign.config.data import split_shares
from nemoalign.config.schema import NEMO_SCHEDULES
from nemoalign.config.values import DataFile

Values = Mapping[str, Any]
Rule = Callable[[Values], Any]

DATA = "model.data."
LR = "model.optim.lr"
BATCH = "model.global_batch_size"
LORA_FACTOR = 10
LENGTH = "model.encoder_seq_length"
ROW_LENGTH = "model.data.train_ds.max_seq_length"
NEW_TOKENS = "model.ppo.max_new_tokens"
_ROOM = "what --max-new-tokens leaves of --seq-len"


def derived(
    values: Values, given: Callable[[str], bool], algorithm: str
) -> dict[str, tuple[Any, str]]:
    """Return key -> (value, why) for every derived default that nobody's value replaces.

    ``given(key)`` is True when a person or the checkpoint set the key.
    """
    found: dict[str, tuple[Any, str]] = {}
    current = dict(values)
    for key, rule, why in _rules(algorithm):
        if not given(key):
            value = rule(current)
            if value is not None and value != current[key]:
                found[key] = (value, why)
                current[key] = value
    longest, why = current[LENGTH], "--seq-len is shorter"
    if algorithm == "ppo":
        longest, why = _room(current), _ROOM
    if current[ROW_LENGTH] > longest:
        found[ROW_LENGTH] = (longest, why)
    return found


def _rules(algorithm: str) -> list[tuple[str, Rule, str]]:
    """Return the rules in order: a later one may read what an earlier one derived."""
    loop = f"trainer.{algorithm}."
    lora = "model.peft.lora_tuning."
    return [
        (LR, _lora_lr, f"{algorithm}'s, ten times for LoRA"),
        ("model.optim.sched.min_lr", _min_lr, "a tenth of the learning rate; 0 as NeMo's"),
        (f"{lora}alpha", lambda v: float(v[f"{lora}adapter_dim"]), "the rank"),
        *(_of_rollouts() if algorithm == "ppo" else [(ROW_LENGTH, _all, "--seq-len")]),
        (f"{DATA}validation_ds.file_path", lambda v: _split_off(v, 1), "model.data.splits_string"),
        (f"{DATA}test_ds.file_path", lambda v: _split_off(v, 2), "model.data.splits_string"),
        (f"{loop}save_interval", lambda v: v[f"{loop}val_check_interval"], "as --val-every"),
    ]


def _of_rollouts() -> list[tuple[str, Rule, str]]:
    """Return the rules of runs that write their own answers."""
    size = "model.ppo.num_rollout_samples"
    return [
        (NEW_TOKENS, lambda v: v[LENGTH] // 2, "half of --seq-len"),
        (ROW_LENGTH, _room, _ROOM),
        (BATCH, lambda v: min(v[BATCH], v[size]), "at most --rollouts"),
        ("model.ppo.critic_lr", _lora_critic_lr, "ten times for LoRA"),
    ]


def _room(values: Values) -> int:
    """Return how long a prompt may be; where nothing is left, ``check`` says so."""
    return max(2, values[LENGTH] - values[NEW_TOKENS])


def _all(values: Values) -> int:
    return values[LENGTH]


def _split_off(values: Values, number: int) -> tuple[DataFile, ...] | None:
    """Return the training files where a share of their rows is kept for another use."""
    shares = split_shares(values[f"{DATA}splits_string"])
    if shares is None or not shares[number]:
        return None
    return tuple(DataFile(file.path) for file in values[f"{DATA}train_ds.file_path"]) or None


def _min_lr(values: Values) -> float:
    return 0.0 if values["model.optim.sched.name"] in NEMO_SCHEDULES else _tidy(values[LR] / 10)


def _lora_lr(values: Values) -> float:
    return _for_lora(values, values[LR])


def _lora_critic_lr(values: Values) -> float:
    return _for_lora(values, values["model.ppo.critic_lr"])


def _for_lora(values: Values, rate: float) -> float:
    return _tidy(rate * (LORA_FACTOR if values["model.peft.peft_scheme"] == "lora" else 1))


def _tidy(number: float) -> float:
    """Return ``number`` without the last digit's noise: 3e-05, not 2.9999999999999997e-05."""
    return float(f"{number:.15g}")
