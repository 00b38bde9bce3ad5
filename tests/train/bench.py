"""A learner over a tiny real llama, on one rank or many: what the train room's tests stand on."""

import contextlib
from dataclasses import dataclass, field, replace

import numpy as np

from nemoalign.algorithms.sft import Sft
from nemoalign.config.schema import OptimConfig
from nemoalign.data.collate import collate
from nemoalign.data.dataset import Sample
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logprobs, forward_values
from nemoalign.model.load import load_weights
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.model.reward_head import with_reward_head
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.algorithm import Algorithm, LossOutput
from nemoalign.train.learner import Learner
from nemoalign.train.metrics import Mean
from tests.model import tiny

EOS = 2


@dataclass
class Setup:
    layout: ParallelLayout
    precision: str = "fp32"
    lora: LoraSettings | None = None
    grad_clip: float = 1.0
    layers: int = 2
    optim: dict = field(default_factory=dict)
    recompute: str = "none"
    num_attributes: int = 0
    value_head: bool = False
    frozen: bool = False
    algorithm: Algorithm = field(default_factory=lambda: Sft(None))


class Critic(Algorithm):
    """Values that learn to be one half."""

    metric_names = ("loss",)

    def forward(self, model, batch):
        return forward_values(model, batch)

    def loss(self, output, batch):
        errors, real = (output - 0.5).square(), batch.labels >= 0
        return LossOutput((errors * real).sum(), real.sum(), {"loss": Mean.of(errors, real)})


class Valued(Sft):
    """Answers that become likely, and values that learn to be one half."""

    def forward(self, model, batch):
        return forward_logprobs(model, batch, with_values=True)

    def loss(self, output, batch):
        likely = super().loss(output[..., 0], batch)
        errors, real = (output[..., 1] - 0.5).square(), batch.labels >= 0
        return replace(likely, loss_sum=likely.loss_sum + (errors * real).sum())


@contextlib.contextmanager
def learner(setup: Setup):
    with learners(setup) as (made,):
        yield made


@contextlib.contextmanager
def learners(*setups: Setup):
    """Several in one layout, that of the first."""
    with start(setups[0].layout, seed=1) as backend:
        yield [_made(setup, backend) for setup in setups]


def _made(setup: Setup, backend) -> Learner:
    model = tiny.llama(layers=setup.layers)
    arch = tiny.architecture(model.config, num_attributes=setup.num_attributes)
    chunks = build_model(
        arch, tiny.VOCAB, setup.layout, precision=setup.precision,
        settings=ModelSettings(recompute=setup.recompute, value_head=setup.value_head),
        lora=setup.lora,
    )  # fmt: skip
    store = tiny.Store(tiny.weights(model, arch))
    if setup.num_attributes:
        store = with_reward_head(store, arch, seed=1)
    load_weights(chunks, store, arch, setup.layout, tiny.VOCAB)
    for chunk in chunks if setup.frozen else ():
        chunk.requires_grad_(False)
    optim = OptimConfig(lr=1e-3, weight_decay=0.01, **setup.optim)
    return Learner(chunks, setup.algorithm, backend, optim, grad_clip=setup.grad_clip)


def batches(count=2, rows=2, seed=0):
    """Micro-batches with as many tokens and labels as rows of different lengths have."""
    made = []
    for number in range(count):
        source = tiny.batch(rows, 9, seed=seed + number)
        samples = []
        for row, tokens in enumerate(source.tokens.numpy()):
            ids = tokens[: 6 + (row + number) % 4].astype("int32")
            mask = [False] * 3 + [True] * (len(ids) - 3)
            samples.append(Sample(ids, np.array(mask), "made"))
        made.append(collate(samples, eos_id=EOS))
    return made
