import numpy as np
import pytest

from nemoalign.data.tokenized import token_row
from nemoalign.errors import DataError

IDS = [5, 6, 7]


@pytest.mark.parametrize(
    ("fields", "learned"),
    [
        ({}, [1, 1, 1]),
        ({"labels": [-100, 6, 7]}, [0, 1, 1]),
        ({"loss_mask": [0, 0, 1]}, [0, 0, 1]),
        ({"completion_mask": [False, True, True]}, [0, 1, 1]),
        ({"labels": [-100, -100, 7], "loss_mask": [1, 1, 1]}, [0, 0, 1]),
        ({"attention_mask": [1, 1, 1], "assistant_masks": np.array([0, 1, 0])}, [0, 1, 0]),
    ],
)
def test_ids_are_taken_with_what_is_learned(fields, learned):
    row = token_row({"input_ids": IDS} | fields)
    assert (row.ids.tolist(), row.loss_mask.astype(int).tolist()) == (IDS, learned)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"input_ids": [1]}, "fewer than two"),
        ({"input_ids": "12"}, 'no list of numbers as "input_ids"'),
        ({"input_ids": [1, 2.5]}, "whole numbers"),
        ({"input_ids": [1, -2]}, "id -2"),
        ({"input_ids": [1, 2**40]}, "whole numbers"),
        ({"input_ids": IDS, "labels": [6, 7, -100]}, "label 6 at id 5"),
        ({"input_ids": IDS, "loss_mask": [1]}, '1 numbers in "loss_mask" for 3'),
    ],
)
def test_a_bad_row_is_said(record, words):
    with pytest.raises(DataError, match=words):
        token_row(record)
