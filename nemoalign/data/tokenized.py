"""Rows that are token ids already, in the spellings of transformers, TRL and NeMo's packed files."""

from __future__ import annotations

import numpy as np

from nemoalign.data.rows import Record, TokenRow
from nemoalign.errors import DataError

MASKS = ("loss_mask", "assistant_masks", "completion_mask")
"""Fields that say with 1 which ids are learned, one number for each id."""

NOT_LEARNED = -100


def is_tokenized(record: Record) -> bool:
    """True when a row holds ids."""
    return "input_ids" in record


def token_row(record: Record) -> TokenRow:
    """Return ids and which of them are learned: by ``labels``, by a mask, or all but the first.

    ``labels`` are transformers': each stands at its own id, -100 where nothing is learned.
    """
    ids = _numbers(record, "input_ids")
    if len(ids) < 2:
        raise DataError('has fewer than two numbers as "input_ids": there is nothing to learn.')
    if ids.min() < 0:
        raise DataError(f'has the id {ids.min()} in "input_ids"; ids are not negative.')
    if "labels" in record:
        labels = _numbers(record, "labels", len(ids))
        learned = labels != NOT_LEARNED
        wrong = np.flatnonzero(learned & (labels != ids))
        if len(wrong):
            raise DataError(
                f'has label {labels[wrong[0]]} at id {ids[wrong[0]]} (number {wrong[0]}). "labels" '
                "repeat the ids, unshifted, or are -100."
            )
        return TokenRow(ids, learned)
    for name in MASKS:
        if name in record:
            return TokenRow(ids, _numbers(record, name, len(ids)) != 0)
    return TokenRow(ids, np.ones(len(ids), bool))


def _numbers(record: Record, name: str, length: int | None = None) -> np.ndarray:
    values = record[name]
    if not isinstance(values, list | np.ndarray):
        raise DataError(f'has no list of numbers as "{name}".')
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iub" or (array.size and array.max() >= 2**31):
        raise DataError(f'has something else than whole numbers in "{name}".')
    if length is not None and len(array) != length:
        raise DataError(f'has {len(array)} numbers in "{name}" for {length} "input_ids".')
    return array.astype(np.int32)
