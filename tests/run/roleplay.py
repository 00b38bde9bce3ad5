"""A tiny policy and judges of it, put together as a run puts them together, without the command line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from nemoalign.checkpoint.open import open_source
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.merged import Merged
from nemoalign.log import PlainReporter
from nemoalign.parallel.state import start
from nemoalign.run.assemble import assemble
from nemoalign.run.prepare import Prepared, prepare
from nemoalign.train.loop import Trainer
from tests.commands import tiny

QUIET = PlainReporter(quiet=True)


def make(root: Path) -> Path:
    """Write a policy, reward models of one and of three outputs, prompts and a reward function."""
    tiny.make_llama(root / "hf")
    tiny.make_classifier(root / "rm")
    tiny.make_classifier(root / "rm3", labels=3)
    rows = [{"input": row["input"]} for row in tiny.rows(8, seed=1)]
    tiny.write_rows(root / "prompts.jsonl", rows)
    (root / "length.py").write_text("def length(prompt, response):\n    return len(response)\n")
    return root


def prepared(root: Path, *sets: str, reward: Any = None, **flags: Any) -> tuple[Merged, Prepared]:
    """Return a run of ppo as far as it goes before a model exists."""
    keys = {
        "pretrained_checkpoint.restore_from_path": root / "hf",
        "model.data.train_ds.file_path": [str(root / "prompts.jsonl")],
        "model.ppo.reward": [str(one) for one in reward or [root / "rm"]],
        "model.ppo.num_rollout_samples": 8,
        "model.global_batch_size": 8,
        "model.micro_batch_size": 2,
        "model.encoder_seq_length": 64,
        "trainer.precision": "fp32",
        "exp_manager.explicit_log_dir": root / "run",
        **{f"model.ppo.{name}" if "." not in name else name: v for name, v in flags.items()},
    }
    merged = merge_run(
        "ppo", Said(flags=keys, sets=list(sets), environ={}), lambda path: open_source(path).config
    )
    return merged, prepare(merged, QUIET)


@contextlib.contextmanager
def assembled(root: Path, *sets: str, **flags: Any) -> Iterator[Trainer]:
    """Open what a run's loop drives."""
    merged, made = prepared(root, *sets, **flags)
    with start(made.layout, seed=1) as backend:
        trainer = assemble(merged, made, backend, None, QUIET, None)
        try:
            yield trainer
        finally:
            trainer.learner.close()


def scores(directory: Path) -> torch.Tensor:
    """Return the weights of transformers' head, [outputs, h]."""
    assert LlamaConfig.from_pretrained(directory).num_labels
    return LlamaForSequenceClassification.from_pretrained(directory).score.weight.detach()
