"""One micro-batch through the model, on whatever pipeline stage this rank is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, nn
from torch.nn import functional

from nemoalign.model.attention import Documents
from nemoalign.model.gpt import LabelGPT, RowFunction
from nemoalign.model.reward_head import Answers
from nemoalign.parallel.entropy import vocab_parallel_entropy
from nemoalign.parallel.logprobs import vocab_parallel_concentration

LENGTH = "length"
"""What a batch calls the number of tokens of each of its answers."""


class TokenBatch(Protocol):
    """Tokens and their positions.

    Without an ``attention_mask`` attribute attention is causal; with one it is megatron-core's mask:
    boolean, broadcastable to [b, 1, s, s], True where a key is hidden (left padding). With a
    ``documents`` attribute the one row [1, s] is a pack of so long documents, each seeing only itself.
    """

    @property
    def tokens(self) -> Tensor:
        """Ids, [b, s]."""
        ...

    @property
    def position_ids(self) -> Tensor:
        """Positions, [b, s]."""
        ...


class LabelledBatch(TokenBatch, Protocol):
    """Tokens with labels, which are already shifted."""

    @property
    def labels(self) -> Tensor:
        """The id that follows each token, [b, s]; negative where nothing is learned."""
        ...


class JudgedBatch(TokenBatch, Protocol):
    """Tokens of whole answers."""

    @property
    def documents(self) -> tuple[int, ...] | None:
        """Lengths of the rows in a pack; None where rows lie apart."""
        ...

    @property
    def fields(self) -> Mapping[str, Tensor]:
        """Among them ``length``, the tokens of each answer, [documents]."""
        ...


class CachedPack(TokenBatch, Protocol):
    """The next tokens of rows whose keys and values are kept, end to end, [1, s]."""

    @property
    def last(self) -> Tensor:
        """Of each row the place of its last token, [rows]."""
        ...

    def cached(self, padding: int) -> Documents:
        """Return what attention needs to know of them, with ``padding`` more positions."""
        ...


def forward_logprobs(
    model: nn.Module, batch: LabelledBatch, *, with_values: bool = False
) -> Tensor:
    """Return log-probs of ``batch.labels`` [b, s], fp32, 0 where a label is negative.

    On a pipeline stage before the last, returns the hidden states the schedule sends on. Collective
    over tp. Only positions with a label go through the output layer.

    With values, which a policy with a value head has, [b, s, 2]: log-prob and value. Values are those of
    all positions, as ``forward_values`` gives.
    """
    unwrapped = _unwrapped(model)
    unwrapped.wants_values = "beside" if with_values else None
    try:
        return _without_padding(model, batch, _call(model, batch, batch.labels))
    finally:
        unwrapped.wants_values = None


def forward_concentrations(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Return log-probs as ``forward_logprobs`` does and, beside each, its concentration: [b, s, 2].

    The second number is the log of the sum of squared probabilities there, without gradient.
    """
    return _forward_beside(model, batch, vocab_parallel_concentration)


def forward_entropies(
    model: nn.Module, batch: LabelledBatch, *, learned: bool, with_values: bool = False
) -> Tensor:
    """Return log-probs as ``forward_logprobs`` does and, beside each, its entropy: [b, s, 2].

    The second number is the entropy of the distribution the label was drawn from, in nats; 0 where a
    label is negative. Gradient flows through it if ``learned``: the backward pass then holds two
    gradients of the logits beside them, where one in their place is enough without.

    With values, which a policy with a value head has, [b, s, 3]: log-prob, entropy and value.
    """
    entropy = vocab_parallel_entropy if learned else torch.no_grad()(vocab_parallel_entropy)
    return _forward_beside(model, batch, entropy, with_values=with_values)


def _forward_beside(
    model: nn.Module, batch: LabelledBatch, function: RowFunction, *, with_values: bool = False
) -> Tensor:
    unwrapped = _unwrapped(model)
    unwrapped.beside = (function,)
    try:
        return forward_logprobs(model, batch, with_values=with_values)
    finally:
        unwrapped.beside = ()


def forward_values(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Return the values of all positions [b, s], fp32, by a head of one output.

    The value at a token is what the head makes of its hidden state, with a label or without, as NeMo's
    ``output_sequence``. On a pipeline stage before the last, returns hidden states. Collective over tp.
    """
    unwrapped = _unwrapped(model)
    unwrapped.wants_values = "alone"
    try:
        return _without_padding(model, batch, _call(model, batch, batch.labels))
    finally:
        unwrapped.wants_values = None


def forward_rewards(model: nn.Module, batch: JudgedBatch, *, averages: bool = False) -> Tensor:
    """Return the rewards of the answers, [documents, outputs] in fp32; else as ``forward_logits``.

    With ``averages`` they come from the mean over an answer's tokens, without from its last one.
    """
    unwrapped = _unwrapped(model)
    unwrapped.answers = Answers(batch.fields[LENGTH], batch.documents, averages)
    try:
        return _call(model, batch, None)
    finally:
        unwrapped.answers = None


def forward_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return logits [b, s, v/tp] of every position; hidden states on a stage before the last."""
    return _without_padding(model, batch, _call(model, batch, None))


def forward_last_logits(model: nn.Module, pack: CachedPack) -> Tensor:
    """Return logits [rows, 1, v/tp] of the last token of each row of a pack; else as ``forward_logits``."""
    unwrapped = _unwrapped(model)
    unwrapped.head_positions = pack.last
    try:
        return _call(model, pack, None)
    finally:
        unwrapped.head_positions = None


def _unwrapped(model: nn.Module) -> LabelGPT:
    unwrapped = get_attr_wrapped_model(model, "splits_sequence", return_model_obj=True)
    assert isinstance(unwrapped, LabelGPT), "build_model makes LabelGPT"
    return unwrapped


def _call(model: nn.Module, batch: TokenBatch, labels: Tensor | None) -> Tensor:
    unwrapped = _unwrapped(model)
    length = batch.tokens.shape[1]
    # Sequence parallelism cuts the sequence evenly; the added positions have no label.
    tp = unwrapped.config.tensor_model_parallel_size if unwrapped.splits_sequence else 1
    missing = -length % tp
    return model(
        functional.pad(batch.tokens, (0, missing)),
        functional.pad(batch.position_ids, (0, missing)),
        _padded_mask(getattr(batch, "attention_mask", None), missing),
        labels=None if labels is None else functional.pad(labels, (0, missing), value=-100),
        packed_seq_params=_documents(batch, missing),
        padding_mask=_unlearned(unwrapped, labels, missing),
    )


def _without_padding(model: nn.Module, batch: TokenBatch, output: Tensor) -> Tensor:
    """Return an output by position without the positions that were added to it."""
    return output[:, : batch.tokens.shape[1]] if _unwrapped(model).post_process else output


def _documents(batch: TokenBatch, missing: int) -> Documents | None:
    """Return the borders inside a pack, with ``missing`` more positions as a document of their own."""
    cached = getattr(batch, "cached", None)
    if cached is not None:
        return cached(missing)
    lengths: tuple[int, ...] | None = getattr(batch, "documents", None)
    if lengths is None:
        return None
    assert batch.tokens.shape == (1, sum(lengths)), (
        f"documents of {lengths} in {batch.tokens.shape}"
    )
    return Documents.of(lengths + ((missing,) if missing else ()), batch.tokens.device)


def _unlearned(model: LabelGPT, labels: Tensor | None, missing: int) -> Tensor | None:
    """Return the positions whose routing counts in no balancing loss: those without a label.

    A router weighs its own loss by the tokens it counts, and the learner divides by the tokens with
    a label; so both count the same.
    """
    if labels is None or not model.config.num_moe_experts:
        return None
    return functional.pad(labels, (0, missing), value=-100) < 0


def _padded_mask(mask: Tensor | None, missing: int) -> Tensor | None:
    """Return the mask with ``missing`` more positions, which see nothing but themselves."""
    if mask is None or not missing:
        return mask
    padded = functional.pad(mask, (0, missing, 0, missing), value=True)
    padded[..., range(-missing, 0), range(-missing, 0)] = False
    return padded
