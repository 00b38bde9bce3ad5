from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from nemoalign.model.attention import CoreAttention, Documents
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

HEADS, GROUPS, WIDTH, BATCH = 4, 2, 8, 2


def _attention(window=None, dropout=0.0, layer=1, every=None, cap=None, **options):
    config = SimpleNamespace(
        attention_dropout=dropout,
        window_size=window,
        window_attn_skip_freq=every,
        attn_logit_softcapping=cap,
        sequence_parallel=False,
    )
    return CoreAttention(config, layer, None, "self", **options)


def _inputs(queries, keys, dtype=torch.float32):
    torch.manual_seed(2)
    return (
        torch.randn(queries, BATCH, HEADS, WIDTH, dtype=dtype),
        torch.randn(keys, BATCH, GROUPS, WIDTH, dtype=dtype),
        torch.randn(keys, BATCH, GROUPS, WIDTH, dtype=dtype),
    )


def _plain(query, key, value, hidden, scale=WIDTH**-0.5, cap=None):
    """Softmax attention, spelled out in double precision; ``hidden`` [b, 1, q, k] is masked."""
    repeat = HEADS // GROUPS
    key, value = (t.double().repeat_interleave(repeat, 2) for t in (key, value))
    scores = torch.einsum("qbnd,kbnd->bnqk", query.double(), key) * scale
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bnqk,kbnd->qbnd", weights, value).flatten(2)


def _causal(length, window=None):
    row, column = torch.arange(length)[:, None], torch.arange(length)
    hidden = column > row
    return hidden if window is None else hidden | (row - column > window)


@pytest.mark.parametrize("window", [None, 3, 100])
def test_attention_is_causal_within_the_window(window):
    inputs = _inputs(9, 9)
    ours = _attention(window and (window, 0))(*inputs, None)
    assert_close(ours.double(), _plain(*inputs, _causal(9, window)), rtol=0, atol=1e-6)


def test_a_single_query_sees_every_key():
    inputs = _inputs(1, 9)
    ours = _attention()(*inputs, None)
    nothing = torch.zeros(1, 9, dtype=torch.bool)
    assert_close(ours.double(), _plain(*inputs, nothing), rtol=0, atol=1e-6)


def test_an_explicit_mask_replaces_everything_and_true_hides():
    inputs = _inputs(9, 9)
    hidden = torch.rand(BATCH, 1, 9, 9) < 0.4
    hidden[..., range(9), range(9)] = False
    ours = _attention((2, 0))(*inputs, hidden)
    assert_close(ours.double(), _plain(*inputs, hidden), rtol=0, atol=1e-6)


def test_a_scale_of_ones_own_is_used():
    inputs = _inputs(5, 5)
    ours = _attention(softmax_scale=0.3)(*inputs, None)
    assert_close(ours.double(), _plain(*inputs, _causal(5), scale=0.3), rtol=0, atol=1e-6)


def test_bf16_is_rounded_only_at_the_end():
    inputs = _inputs(9, 9, torch.bfloat16)
    ours = _attention()(*inputs, None)
    assert ours.dtype is torch.bfloat16
    assert_close(ours.double(), _plain(*inputs, _causal(9)), rtol=2**-7, atol=2e-2)


def test_a_prefill_in_chunks_needs_a_mask():
    with pytest.raises(AssertionError, match="explicit mask"):
        _attention()(*_inputs(3, 9), None)


def test_dropout_acts_in_training_only():
    inputs = _inputs(9, 9)
    attention = _attention(dropout=0.5)
    with start(ParallelLayout(1), seed=1):
        dropped = attention.train()(*inputs, None)
        kept = attention.eval()(*inputs, None)
    assert_close(kept, _attention()(*inputs, None), rtol=0, atol=0)
    assert (dropped - kept).abs().max() > 0.1


@pytest.mark.parametrize("window", [None, 3])
def test_capped_scores_are_causal_within_the_window(window):
    query, key, value = _inputs(9, 9)
    attention = _attention(window=None if window is None else (window, 0), cap=0.7)
    found = attention(query, key, value, None)
    expected = _plain(query, key, value, _causal(9, window), cap=0.7)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_every_second_layer_may_see_everything():
    query, key, value = _inputs(9, 9)
    for layer, window in ((1, 3), (2, None), (3, 3)):
        found = _attention(window=(3, 0), layer=layer, every=2)(query, key, value, None)
        expected = _plain(query, key, value, _causal(9, window))
        assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


LENGTHS = (7, 5, 5, 1)


def _apart(length, window):
    """Hide what is ahead, beyond the window or in another document."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    return _causal(length, window) | (document[:, None] != document)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cap", [None, 0.7])
def test_documents_of_a_pack_do_not_see_each_other(window, cap):
    query, key, value = (tensor[:, :1] for tensor in _inputs(sum(LENGTHS), sum(LENGTHS)))
    attention = _attention(window and (window, 0), cap=cap)
    documents = Documents.of(LENGTHS, query.device)
    found = attention(query, key, value, None, packed_seq_params=documents)
    expected = _plain(query, key, value, _apart(len(query), window), cap=cap)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_neighbours_of_one_length_are_one_batch():
    documents = Documents.of(LENGTHS, torch.device("cpu"))
    assert documents.runs() == [(1, 7), (2, 5), (1, 1)]
    assert documents.cu_seqlens_q.tolist() == [0, 7, 12, 17, 18]
    assert documents.max_seqlen_q == 7


def test_torchs_kernel_over_documents_takes_what_it_is_given():
    """Without a card only shapes can be checked, forward and backward."""
    with FakeTensorMode():
        query = torch.empty(18, 1, HEADS, 64, dtype=torch.bfloat16, requires_grad=True)
        key = value = torch.empty(18, 1, GROUPS, 64, dtype=torch.bfloat16, requires_grad=True)
        documents = Documents.of(LENGTHS, query.device)
        context = _attention((3, 0))._attend_varlen(query, key, value, documents)
        context.sum().backward()
    assert context.shape == (18, 1, HEADS * 64)
    assert query.grad.shape == query.shape
    assert key.grad.shape == key.shape
