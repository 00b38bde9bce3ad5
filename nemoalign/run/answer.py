"""``nemoalign generate``: a model's answers to prompts, from every rank's share, in the order of the prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.parallel.device import select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from megatron.core import parallel_state

from nemoalign.data.prompts import Prompt, made_prompt, read_prompt, read_prompts
from nemoalign.errors import ConfigError
from nemoalign.log import PlainReporter, speaking_rank
from nemoalign.model.generate import Request, generate
from nemoalign.model.lora_settings import lora_settings
from nemoalign.model.sampling import Sampling
from nemoalign.parallel.state import start
from nemoalign.run.appearing import appearing, target_of
from nemoalign.run.built import built_model
from nemoalign.run.policies import load_policy
from nemoalign.run.prepare import prepare
from nemoalign.train.inputs import row_settings
from nemoalign.train.metrics import reduce_sums
from nemoalign.train.stopping import Asked

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.merged import Merged
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.log import Reporter
    from nemoalign.parallel.device import Backend
    from nemoalign.train.stopping import Requests

    Stream = Callable[[str], None]

TEMPLATE = "model.data.train_ds.prompt_template"
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What bytes are shown as that make no character yet."""


def answer(
    merged: Merged, reporter: Reporter, requests: Requests | None, stream: Stream | None
) -> dict[str, Any]:
    """Answer the prompts; write the answers to ``-o`` or return them. Collective over all ranks.

    A single answer without ``-o`` also goes to ``stream`` as it is written.

    Raises:
        NemoAlignError: with the exit code of what went wrong.
    """
    if not speaking_rank():
        reporter, stream = PlainReporter(quiet=True), None
    config, own = merged.config, _own(merged)
    target = target_of(merged) if config.exp_manager.explicit_log_dir else None
    made = prepare(merged, reporter)
    prompts = _prompts(merged, made.tokenizer)
    with start(made.layout, seed=config.model.seed) as backend:
        chunks = built_model(config, made, lora_settings(config.model.peft))
        load_policy(chunks, config, made)
        writer = _Writer(
            made.tokenizer, own.stop, stream if len(prompts) == 1 and not target else None
        )
        asked = [_request(prompt, i, own, writer) for i, prompt in enumerate(prompts)]
        started = time.perf_counter()
        found = _generated(merged, chunks, asked, _agreement(backend, requests))
        seconds = time.perf_counter() - started
        answers = [writer.answer(*pair) for pair in zip(prompts, found, strict=True)]
        if target is not None:
            with appearing(target) as write:
                write([json.dumps(one, ensure_ascii=False) + "\n" for one in answers])
    result = {"state": "finished", "count": len(answers), **_speed(answers, seconds)}
    if target is not None:
        return {**result, "out": str(target)}
    reporter.say(
        f"{result['tokens']:,} tokens in {seconds:.1f} s, {result['tokens_per_second']} a second"
    )
    return {**result, "texts": answers}


def _generated(
    merged: Merged, chunks: list[GPTModel], asked: Sequence[Request], go_on: Callable[[bool], bool]
) -> list[list[int]]:
    """Return the ids that answer each request, on every rank; replicas share them. Collective."""
    own, rank = _own(merged), parallel_state.get_data_parallel_rank()
    share = range(rank, len(asked), parallel_state.get_data_parallel_world_size())
    seed = merged.config.model.seed
    sampling = Sampling(own.temperature, own.top_k, own.top_p, own.min_new_tokens, seed)
    mine = [asked[i] for i in share]
    written = generate(chunks, mine, go_on=go_on, sampling=sampling, slots=own.slots)
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, dict(zip(share, written, strict=True)))
    found = {number: ids for part in everywhere for number, ids in part.items()}
    return [found[number] for number in range(len(asked))]


def _own(merged: Merged) -> Any:
    return merged.config.model.algorithm


def _speed(answers: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    tokens = sum(one["tokens"] for one in answers)
    return {"tokens": tokens, "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)}


def _prompts(merged: Merged, tokenizer: Tokenizer) -> list[Prompt]:
    """Return the typed prompts, then those of files."""
    settings, own = row_settings(merged.config), _own(merged)
    found: list[Prompt] = []
    for number, text in enumerate(own.prompt, 1):
        where = f"--prompt {number}"
        if own.raw:
            found.append(made_prompt(tokenizer.encode(text), {tokenizer.eos_id}, where, settings))
            continue
        found.append(read_prompt(_row(text, merged, tokenizer), where, tokenizer, settings))
    for path in own.prompts_path:
        found += read_prompts(path, tokenizer, settings)
    return found


def _row(text: str, merged: Merged, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what a user says as a row: by the template a model was trained with, else its chat template."""
    settings = row_settings(merged.config)
    was_trained_so = merged.sources.get(TEMPLATE, "default").startswith("checkpoint")
    if tokenizer.chat_template is not None and not was_trained_so:
        return {"messages": [{"role": "user", "content": text}]}
    template = settings.template()
    fields = [name for name in template.keys if name != template.label_key]
    if len(fields) != 1:
        raise ConfigError(
            f"The checkpoint's prompt template has {len(fields)} fields ({', '.join(fields)}), and --prompt "
            "is one text. Give rows with --data FILE, or add --raw."
        )
    return {fields[0]: text}


def _agreement(backend: Backend, requests: Requests | None) -> Callable[[bool], bool]:
    """Return what is asked before each pass: whether any replica still writes. Collective."""

    def go_on(is_writing: bool) -> bool:
        pending = requests.pending() if requests is not None else [0.0] * 3
        writing, *asked = reduce_sums([], [is_writing, *pending], backend.device)
        Asked.of(asked).obey_keeping_nothing("while answering")
        return writing > 0

    return go_on


def _request(prompt: Prompt, number: int, own: Any, writer: _Writer) -> Request:
    return Request(prompt.ids, prompt.stop_ids, own.max_new_tokens, number, writer.has_ended)


@dataclass
class _Writer:
    """Turns ids into text, and ends an answer at a text that stops it."""

    tokenizer: Tokenizer
    stops: Sequence[str]
    stream: Stream | None
    _shown: int = 0

    def has_ended(self, ids: Sequence[int]) -> bool:
        """Show what is new, and return whether a text that stops an answer has come."""
        if not self.stops and self.stream is None:
            return False
        text = self.tokenizer.decode(list(ids))
        cut = self._cut(text)
        if self.stream is not None:
            held = 0 if len(cut) < len(text) else max(map(len, self.stops), default=1) - 1
            self._show(cut[: len(cut) - held] if held else cut)
        return len(cut) < len(text)

    def answer(self, prompt: Prompt, ids: Sequence[int]) -> dict[str, Any]:
        """Return an answer as a line of JSON holds it; one without room for its end is not finished."""
        ended = bool(ids) and ids[-1] in prompt.stop_ids
        text = self.tokenizer.decode(list(ids[:-1] if ended else ids))
        cut = self._cut(text)
        if self.stream is not None:
            self.stream(cut[self._shown :] + "\n")
        return {
            "source": prompt.source,
            "prompt": self.tokenizer.decode(list(prompt.ids)),
            "response": cut,
            "tokens": len(ids),
            "finished": ended or len(cut) < len(text),
        }

    def _cut(self, text: str) -> str:
        places = [text.find(stop) for stop in self.stops if stop in text]
        return text[: min(places)] if places else text

    def _show(self, text: str) -> None:
        """Show what is new of ``text``, unless its last character is not whole yet."""
        assert self.stream is not None, "only an answer that is shown"
        if len(text) > self._shown and not text.endswith(BROKEN):
            self.stream(text[self._shown :])
            self._shown = len(text)
