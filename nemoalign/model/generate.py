"""The likeliest next token, again and again. Nothing is cached: every token computes its whole row.

Meant for a handful of prompts at a validation; it runs in every layout, inside megatron-core's schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor, nn

from nemoalign.model.forward import forward_last_logits


@dataclass(frozen=True)
class _Rows:
    """Rows so far, padded on the right, which causal attention never sees."""

    tokens: Tensor
    position_ids: Tensor
    last: Tensor
    """Of each row the place of its last token, [b]."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> _Rows:
        width = max(map(len, rows))
        filled = [[*row, *([0] * (width - len(row)))] for row in rows]
        tokens = torch.tensor(filled, device=device)
        positions = torch.arange(width, device=device).expand_as(tokens)
        return cls(tokens, positions, torch.tensor([len(row) - 1 for row in rows], device=device))


@torch.no_grad()
def generate_greedy(
    chunks: Sequence[GPTModel],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[Collection[int]],
    go_on: Callable[[bool], bool],
) -> list[list[int]]:
    """Return the tokens that follow each prompt, up to and with one of its ``stop_ids``.

    Collective over a model replica, whose ranks bring the same prompts; replicas may bring different
    ones, or none. ``go_on`` is told before each token whether this replica has rows to continue, and
    must answer alike on all ranks of all replicas.
    """
    for chunk in chunks:
        chunk.eval()
    rows = [list(prompt) for prompt in prompts]
    open_rows = list(range(len(rows)))
    longest = chunks[0].max_sequence_length
    for _ in range(max_new_tokens):
        open_rows = [i for i in open_rows if len(rows[i]) < longest]
        if not go_on(bool(open_rows)):
            break
        if open_rows:
            for i, token in zip(
                open_rows, _next_tokens(chunks, [rows[i] for i in open_rows]), strict=True
            ):
                rows[i].append(token)
            open_rows = [i for i in open_rows if rows[i][-1] not in stop_ids[i]]
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _next_tokens(chunks: Sequence[GPTModel], rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the likeliest next token of each row, on every rank of the replica."""
    device = next(chunks[0].parameters()).device
    parts = [_Rows.of(part, device) for part in _parts(rows, len(chunks))]
    iterators = [iter(parts) for _ in chunks]
    found: list[Tensor] = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(parts),
        seq_length=max(part.tokens.shape[1] for part in parts),
        micro_batch_size=len(parts[0].tokens),
        forward_only=True,
        collect_non_loss_data=True,
    )
    count = sum(len(part.tokens) for part in parts)
    tokens = torch.cat(found) if found else torch.zeros(count, dtype=torch.long, device=device)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        group: Any = parallel_state.get_pipeline_model_parallel_group()
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(tokens, last, group=group)
    return tokens.tolist()[: len(rows)]


def _parts(rows: Sequence[Sequence[int]], chunks: int) -> list[Sequence[Sequence[int]]]:
    """Return the micro-batches: one; for interleaved stages as many as there are stages."""
    if chunks == 1:
        return [rows]
    count = parallel_state.get_pipeline_model_parallel_world_size()
    each = -(-len(rows) // count)
    filled = [*rows, *([rows[-1]] * (each * count - len(rows)))]
    return [filled[start : start + each] for start in range(0, len(filled), each)]


def _forward_step(iterator: Iterator[_Rows], model: nn.Module) -> tuple[Tensor, Any]:
    rows = next(iterator)
    output = forward_last_logits(model, rows, rows.last)
    return output, partial(_likeliest, vocab_size=model.real_vocab_size)


def _likeliest(logits: Tensor, *, vocab_size: Any, non_loss_data: bool = True) -> Tensor:
    """Return the likeliest token of each row from logits [b, 1, v/tp]; padding is no token."""
    assert non_loss_data, "the schedule collects tokens, not losses"
    whole = gather_from_tensor_model_parallel_region(logits[:, 0].contiguous())
    return whole[:, :vocab_size].float().argmax(-1)
