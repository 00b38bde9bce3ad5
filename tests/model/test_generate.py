"""Greedy tokens are transformers', in every layout, and stop where they should."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nemoalign.config.architecture import Architecture
from nemoalign.model import generate as module
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.generate import Request, generate
from nemoalign.model.load import load_weights
from nemoalign.model.sampling import Sampling
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.families.test_gemma2 import save_gemma2
from tests.model import tiny
from tests.model.test_layers import loaded
from tests.model.test_spec import COMMON, FAMILIES, family_canonical, family_model

LAYOUTS = {
    "tp2": ParallelLayout(2, tp=2),
    "tp2 sequence parallel": ParallelLayout(2, tp=2, sequence_parallel=True),
    "pp2": ParallelLayout(2, pp=2),
    "pp2 vp2": ParallelLayout(2, pp=2, vp=2),
    "dp2": ParallelLayout(2),
}
PROMPTS = [[5, 100, 7, 9], [400, 3, 17, 250, 90, 12, 33], [11]]
NEW = 8


@dataclass
class Job:
    arch: Any
    arrays: dict
    stop_ids: tuple[int, ...] = ()
    tokens_wanted: int | None = None
    max_new_tokens: int = NEW


def generated(layout: ParallelLayout, job: Job) -> list[list[int]]:
    """Return what this rank's replica generates for its share of the prompts."""
    with start(layout, seed=1):
        chunks = build_model(
            job.arch, tiny.VOCAB, layout, precision="fp32", settings=ModelSettings()
        )
        load_weights(chunks, tiny.Store(job.arrays), job.arch, layout, tiny.VOCAB)
        dp = layout.coordinates(torch.distributed.get_rank()).dp
        calls = []

        def go_on(busy: bool) -> bool:
            told = torch.tensor([float(busy)])
            torch.distributed.all_reduce(told)
            calls.append(1)
            return told.item() > 0 and len(calls) - 1 != job.tokens_wanted

        mine = PROMPTS[dp :: layout.dp] if layout.dp == 1 else PROMPTS[:1] * (dp == 1)
        return generate(chunks, requests(mine, job.max_new_tokens, job.stop_ids), go_on=go_on)


def requests(prompts, count=NEW, stop_ids=()) -> list[Request]:
    return [Request(prompt, stop_ids, count, number) for number, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def model():
    return tiny.llama(layers=4, tied=True)


@pytest.fixture(scope="module")
def job(model):
    arch = tiny.architecture(model.config)
    return Job(arch, tiny.weights(model, arch))


def theirs(model, prompt, count=NEW) -> list[int]:
    whole = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return whole[0, len(prompt) :].tolist()


def test_one_rank_generates_what_transformers_does(model, job):
    assert generated(ParallelLayout(1), job) == [theirs(model, prompt) for prompt in PROMPTS]


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_every_layout_generates_what_transformers_does(layout, model, job, two_ranks):
    results = two_ranks.run(generated, layout, job)
    for rank, found in enumerate(results):
        if layout.dp == 1:
            assert found == [theirs(model, prompt) for prompt in PROMPTS]
        else:  # the first replica has nothing to do, and waits for the other
            assert found == ([theirs(model, PROMPTS[0])] if rank == 1 else [])


def test_a_row_ends_with_a_stop_token_at_the_longest_row_or_when_asked(model, job, monkeypatch):
    first, second, third = (theirs(model, prompt) for prompt in PROMPTS)
    stop = second[2]
    found = generated(ParallelLayout(1), Job(job.arch, job.arrays, stop_ids=(stop,)))
    assert found[1] == second[: second.index(stop) + 1]
    assert found[0] == (first[: first.index(stop) + 1] if stop in first else first)
    monkeypatch.setattr(module, "PASSES", 1)
    asked = generated(ParallelLayout(1), Job(job.arch, job.arrays, tokens_wanted=3))
    assert asked == [first[:3], second[:3], third[:3]]
    long = generated(ParallelLayout(1), Job(job.arch, job.arrays, max_new_tokens=100))
    assert [len(row) for row in long] == [64 - len(prompt) for prompt in PROMPTS]


def alone(arch, arrays, prompts, count=NEW, vocab=tiny.VOCAB, **options) -> list[list[int]]:
    one = ParallelLayout(1)
    with start(one, seed=1):
        chunks = build_model(arch, vocab, one, precision="fp32", settings=ModelSettings())
        load_weights(chunks, tiny.Store(arrays), arch, one, vocab)
        return generate(chunks, requests(prompts, count), go_on=lambda busy: busy, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_remembers_as_transformers_does(family) -> None:
    config, fields = FAMILIES[family]
    model = family_model(config)
    arch = Architecture(**{**COMMON, **fields})
    found = alone(arch, family_canonical(model.state_dict(), arch), PROMPTS)
    assert found == [theirs(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_row_that_ends_makes_room_for_the_next(slots, model, job) -> None:
    prompts = [[number + 5 * place for place in range(2 + number % 4)] for number in range(1, 8)]
    found = alone(job.arch, job.arrays, prompts, slots=slots)
    assert found == [theirs(model, prompt) for prompt in prompts]


def test_windows_and_capped_scores_hold_in_a_cache_that_grows(tmp_path) -> None:
    model = save_gemma2(tmp_path / "hf")
    prompts = [[3, 9, 20, 4], list(range(5, 25))]
    with start(ParallelLayout(1), seed=1):
        asked = requests(prompts, 40)
        found = generate([loaded(tmp_path / "hf")], asked, go_on=lambda busy: busy)
    assert found == [theirs(model, prompt, 40) for prompt in prompts]


@pytest.mark.dist
def test_draws_are_the_same_alone_together_and_in_every_layout(job, two_ranks) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=3)
    expected = alone(job.arch, job.arrays, PROMPTS, sampling=sampling)
    assert alone(job.arch, job.arrays, PROMPTS, sampling=sampling, slots=1) == expected
    assert alone(job.arch, job.arrays, PROMPTS) != expected
    for layout in (ParallelLayout(2, tp=2), ParallelLayout(2, pp=2)):
        for found in two_ranks.run(drawn, layout, job, sampling):
            assert found == expected


def drawn(layout: ParallelLayout, job: Job, sampling: Sampling) -> list[list[int]]:
    with start(layout, seed=1):
        chunks = build_model(
            job.arch, tiny.VOCAB, layout, precision="fp32", settings=ModelSettings()
        )
        load_weights(chunks, tiny.Store(job.arrays), job.arch, layout, tiny.VOCAB)
        return generate(chunks, requests(PROMPTS), go_on=lambda busy: busy, sampling=sampling)
