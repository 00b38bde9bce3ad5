"""megatron-core's GPTModel with a head that is only computed where a label asks for it.

With a loss on answers only, most rows of a 49k-wide head would be computed and thrown away. The
subclass changes what happens after the decoder, and where the documents of a pack begin to count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from nemoalign.model.linear import product
from nemoalign.model.reward_head import Answers, RewardHead
from nemoalign.parallel.logprobs import vocab_parallel_logprobs

RowFunction = Callable[[Tensor, int], Tensor]
"""Of logits [rows, v/tp] and the size of the vocabulary, a number a row [rows]; collective over tp."""


class LabelGPT(GPTModel):
    """GPTModel whose call with ``labels`` [b, s] returns their log-probs [b, s], 0 where negative.

    Without labels it returns logits [b, s, v/tp], as GPTModel does.
    """

    def __init__(self, *args: Any, real_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_vocab_size = self.softmax_size = real_vocab_size
        self.splits_sequence = self.config.sequence_parallel
        self.head_positions: Tensor | None = None
        """Of a pack the places whose logits are asked for, [rows]; None for all."""
        self.beside: tuple[RowFunction, ...] = ()
        """What else is asked for of each label's logits, beside its log-prob."""
        self.rm_head: RewardHead | None = None
        """Of a reward model, on its last pipeline stage."""
        self.answers: Answers | None = None
        """Answers whose rewards are asked for; None for logits, log-probs or values."""
        self.value_head: RewardHead | None = None
        """Of a policy whose values come from its own trunk, on its last pipeline stage."""
        self.wants_values: Literal["alone", "beside"] | None = None
        """Ask for the value of every position: beside log-probs, as their last number, or alone."""
        if self.post_process and self.splits_sequence:
            # The hidden states are gathered here, before rows are chosen; the gather's backward sums
            # over tp, so the head itself must neither gather nor reduce.
            self.output_layer.sequence_parallel = False
            self.output_layer.disable_grad_reduce = True

    def _preprocess(
        self, *args: Any, position_ids: Tensor, packed_seq_params: Any = None, **kwargs: Any
    ) -> Any:
        """Return megatron-core's preparations, in a pack with the rotary table by position.

        Its table is by place in the row; it looks positions up only on the way to Transformer
        Engine's kernels.
        """
        hidden, rotary, *others = super()._preprocess(
            *args, position_ids=position_ids, packed_seq_params=packed_seq_params, **kwargs
        )
        if packed_seq_params is not None and rotary is not None:
            rotary = rotary.index_select(0, position_ids[0])
        return hidden, rotary, *others

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return hidden states, logits, label log-probs or values, by stage and by what was asked."""
        if not self.post_process:
            return super()._postprocess(hidden_states, *args, labels=labels, **kwargs)
        if self.wants_values == "alone":
            return self._values(hidden_states)
        values = self._values(hidden_states) if self.wants_values else None
        if self.splits_sequence:
            # The reward head is whole on every rank, so each has the whole gradient already.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states,
                tensor_parallel_output_grad=self.answers is None,
                group=self.pg_collection.tp,
            )
        if self.answers is not None:
            assert self.rm_head is not None, "a reward model has a head"
            return self.rm_head(hidden_states, self.answers)
        if labels is None:
            if self.head_positions is not None:
                return self._logits_at(hidden_states, self.head_positions)
            return self._capped(super()._postprocess(hidden_states, *args, labels=None, **kwargs))
        found = self._label_logprobs(hidden_states, labels)
        return found if values is None else _beside(found, values)

    def _values(self, hidden_states: Tensor) -> Tensor:
        """Return the value of every position, [b, s], of hidden states as the decoder leaves them."""
        head = self.rm_head or self.value_head
        assert head is not None, "a critic and a policy with values have a head"
        return head.values(hidden_states, self.pg_collection.tp if self.splits_sequence else None)

    def _logits_at(self, hidden_states: Tensor, places: Tensor) -> Tensor:
        """Return logits [rows, 1, v/tp] of some places [rows] of hidden states [s, 1, h]."""
        weight: Any = self.output_layer.weight
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        return self._capped(product(hidden_states.index_select(0, places), weight))

    def _label_logprobs(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """Return log-probs [b, s] of ``labels`` [b, s] from hidden states [s, b, h].

        With n functions in ``beside`` [b, s, 1 + n]: theirs follow the log-prob of a label, 0 as it is.
        """
        flat_labels = labels.t().reshape(-1)  # [b, s] -> [s * b], the order of the hidden states
        rows = (flat_labels >= 0).nonzero()[:, 0]
        if not len(rows):
            # One ignored row keeps the graph and the collectives of tp ranks whole.
            rows = flat_labels.new_zeros(1)
        chosen = hidden_states.flatten(0, 1)
        if len(rows) < len(flat_labels):
            chosen = chosen.index_select(0, rows)
        weight = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        logits, _ = self.output_layer(chosen.unsqueeze(1), weight=weight)  # [rows, 1, v/tp]
        # squeeze, not [:, 0]: the gradient of an index is a second, zeroed tensor of that size.
        logits = self._capped(logits).squeeze(1)
        asked, size = flat_labels[rows], self.softmax_size
        others = [function(logits, size).where(asked >= 0, 0.0) for function in self.beside]
        # Whatever learns through the logits reads them in its backward pass.
        reuse_logits = not any(other.requires_grad for other in others)
        logprobs = vocab_parallel_logprobs(logits, asked, size, reuse_logits=reuse_logits)
        found = torch.stack([logprobs, *others], -1) if others else logprobs
        spread = found.new_zeros(len(flat_labels), *found.shape[1:]).index_put((rows,), found)
        return spread.view(*reversed(labels.shape), *found.shape[1:]).transpose(0, 1).contiguous()

    def _capped(self, logits: Tensor) -> Tensor:
        """Return logits that tanh keeps below the cap, where the model has one."""
        cap: float | None = vars(self.config).get("final_logit_softcapping")
        return cap * torch.tanh(logits / cap) if cap else logits


def _beside(found: Tensor, values: Tensor) -> Tensor:
    """Return one or n numbers of each position, [b, s] or [b, s, n], and its value after them."""
    numbers = found.unsqueeze(-1) if found.dim() == values.dim() else found
    return torch.cat([numbers, values.unsqueeze(-1)], -1)
