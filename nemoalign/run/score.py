"""``nemoalign rm --score``: what a reward model thinks of answers, a line each, in the order of the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.parallel.device import select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from megatron.core import parallel_state

from nemoalign.data.rewards import AnswerDataset
from nemoalign.errors import ConfigError
from nemoalign.log import PlainReporter, speaking_rank
from nemoalign.model.lora_settings import lora_settings
from nemoalign.model.reward_head import attribute_shares
from nemoalign.parallel.state import start
from nemoalign.run.appearing import appearing, target_of
from nemoalign.run.built import built_model
from nemoalign.run.policies import load_policy
from nemoalign.run.prepare import Prepared, prepare
from nemoalign.train.algorithm import load_algorithm
from nemoalign.train.inputs import measuring_feed, row_settings, storage_of
from nemoalign.train.learner import Learner
from nemoalign.train.stopping import Asked

if TYPE_CHECKING:
    import numpy as np

    from nemoalign.config.merged import Merged
    from nemoalign.log import Reporter
    from nemoalign.parallel.device import Backend
    from nemoalign.train.feed import Feed
    from nemoalign.train.stopping import Requests


def score(merged: Merged, reporter: Reporter, requests: Requests | None) -> dict[str, Any]:
    """Write the rewards of every answer of ``--score`` to ``-o`` and return what they are like.

    The file appears under its name when it is whole. Collective over all ranks.

    Raises:
        NemoAlignError: with the exit code of what went wrong.
    """
    if not speaking_rank():
        reporter = PlainReporter(quiet=True)
    config = merged.config
    target = _target(merged)
    made = prepare(merged, reporter)
    rows = _rows(merged, made)
    for line in rows.report().lines():
        reporter.say(line)
    scores = _Scores(rows, config.model.algorithm)
    with start(made.layout, seed=config.model.seed) as backend:
        learner = _learner(merged, made, backend)
        dp_rank = parallel_state.get_data_parallel_rank()
        feed = measuring_feed(rows, config, made.layout, dp_rank, made.tokenizer.eos_id)
        outputs = made.arch.num_attributes
        with appearing(target) as write, reporter.progress("scoring", len(rows), "rows") as bar:
            for numbers, rewards in _computed(learner, feed, outputs, requests):
                write(scores.lines(numbers, rewards))
                bar.advance(len(numbers))
    if scores.cut:
        reporter.warn(
            f"{scores.cut:,} answers are longer than --seq-len {config.model.encoder_seq_length}: "
            'their score is that of what was read ("truncated": true).'
        )
    return {"state": "finished", "algorithm": merged.algorithm, "scores": str(target), **scores.summary()}  # fmt: skip


def _target(merged: Merged) -> Path:
    if merged.config.model.data.train_ds.file_path:
        raise ConfigError(
            "--score trains nothing. Leave --data out, or train first without --score."
        )
    if merged.config.exp_manager.explicit_log_dir is None:
        raise ConfigError("--score needs to know where to: -o scores.jsonl")
    return target_of(merged)


def _rows(merged: Merged, made: Prepared) -> AnswerDataset:
    own: Any = merged.config.model.algorithm
    files = [(path, 1.0) for path in own.score_path]
    # What a run would leave out is scored as far as it can be read, and marked.
    settings = replace(row_settings(merged.config), overlong="truncate", truncation_method="right")
    return AnswerDataset(files, made.tokenizer, settings, "scored", storage_of(merged.config))


def _learner(merged: Merged, made: Prepared, backend: Backend) -> Learner:
    """Return the model, which learns nothing."""
    config = merged.config
    chunks = built_model(config, made, lora_settings(config.model.peft))
    load_policy(chunks, config, made)
    for chunk in chunks:
        chunk.requires_grad_(False)
    algorithm = load_algorithm(merged.row.target, config.model.algorithm)
    return Learner(chunks, algorithm, backend, config.model.optim, grad_clip=0.0)


def _computed(
    learner: Learner, feed: Feed, outputs: int, requests: Requests | None
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield the rows of every global batch and their rewards [rows, outputs], on every rank alike."""
    speaks = parallel_state.get_tensor_model_parallel_rank() == 0
    device = learner.backend.device
    for batch, shares, micro_batches in feed.once_with_rows():
        found = learner.collect(micro_batches, learner.algorithm.forward, lambda out, _: out)
        table = torch.zeros(len(batch), outputs, device=device)
        for share, rewards in zip(shares, found, strict=False) if speaks else ():
            real = share >= 0
            places = torch.from_numpy(share[real] - batch[0]).to(device)
            table[places] = rewards[torch.from_numpy(real).to(device)]
        asked = torch.tensor(requests.pending() if requests else [0.0] * 3, device=device)
        torch.distributed.all_reduce(table)
        torch.distributed.all_reduce(asked)
        Asked.of(asked.tolist()).obey_keeping_nothing("while scoring")
        yield batch, table.cpu()


class _Scores:
    """Rewards as lines of JSON, and what they are like together."""

    def __init__(self, rows: AnswerDataset, own: Any) -> None:
        self._rows, self._own = rows, own
        self.cut = 0
        self._sums: list[float] = []
        self._chosen: list[float] = []
        self._right: list[bool] = []

    def lines(self, numbers: np.ndarray, rewards: torch.Tensor) -> list[str]:
        """Return a line for each answer."""
        return [
            json.dumps(self._line(int(number), reward), ensure_ascii=False) + "\n"
            for number, reward in zip(numbers, rewards.tolist(), strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """Return how many answers there were, and mean and spread of their scores."""
        count = len(self._sums)
        mean = sum(self._sums) / count
        spread = math.sqrt(sum((one - mean) ** 2 for one in self._sums) / count)
        found = {"answers": count, "mean": mean, "std": spread, "truncated": self.cut}
        if self._right:
            found["accuracy"] = sum(self._right) / len(self._right)
        return found

    def _line(self, index: int, rewards: list[float]) -> dict[str, Any]:
        rows, side = self._rows, self._rows.side(index)
        cut = rows.is_cut(index)
        self.cut += cut
        merged = weighted(rewards, self._own.attribute_weights)
        self._note(side, merged)
        is_one = len(rewards) == 1 or self._own.merge_attributes
        return {
            "file": str(rows.path(index)),
            "row": rows.number(index),
            **({} if side is None else {"answer": side}),
            **({"score": merged} if is_one else {"scores": rewards}),
            "tokens": rows.length(index),
            "truncated": cut,
        }

    def _note(self, side: str | None, reward: float) -> None:
        self._sums.append(reward)
        if side == "chosen":
            self._chosen.append(reward)
        elif side == "rejected":
            self._right.append(self._chosen[-1] > reward)


def weighted(rewards: Sequence[float], weights: Sequence[float] | None) -> float:
    """Return the weighted sum of an answer's rewards; their mean without weights.

    Raises:
        ConfigError: when there are not as many weights as rewards.
    """
    shares = attribute_shares(len(rewards), weights)
    return sum(share * reward for share, reward in zip(shares, rewards, strict=True))
