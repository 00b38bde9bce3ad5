import pytest

from nemoalign.data.encoder import Encoder, SftSettings
from nemoalign.data.files import open_rows
from nemoalign.data.formats import choose_schema
from nemoalign.errors import DataError
from tests.data.tiny import CharTokenizer, write_jsonl


def encoded(tmp_path, *rows, **settings):
    file = open_rows(write_jsonl(tmp_path / "rows.jsonl", rows))
    encoder = Encoder(CharTokenizer(), SftSettings(**{"max_seq_length": 64} | settings))
    return encoder.encode(file, choose_schema(file, encoder.template), range(len(rows)))


def test_ids_pass_through_and_are_cut_with_one_more_to_predict(tmp_path):
    row = {"input_ids": list(range(3, 15)), "labels": [-100] * 6 + list(range(9, 15))}
    (whole,) = encoded(tmp_path, row)
    assert whole.ids.tolist() == row["input_ids"]
    assert whole.loss_mask.tolist() == [False] * 6 + [True] * 6
    (cut,) = encoded(tmp_path, row, max_seq_length=8)
    assert (len(cut.ids), cut.truncated) == (9, True)
    (all_of_it,) = encoded(tmp_path, row, mask="none")
    assert all_of_it.loss_mask.all()


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"line 2 has the id 2000, but the tokenizer has 2000"):
        encoded(tmp_path, {"input_ids": [1, 2]}, {"input_ids": [1, 2000]})


def test_sharegpt_and_alpaca_are_written_by_the_chat_template(tmp_path):
    share = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    alpaca = {"instruction": "a", "input": "", "output": "b"}
    (one,), (two,) = encoded(tmp_path, share), encoded(tmp_path, alpaca)
    assert one.ids.tolist() == two.ids.tolist()
    assert CharTokenizer().decode(one.ids[:-1]) == "[user]a[assistant]b"
    assert CharTokenizer().decode(one.ids[one.loss_mask][:-1]) == "b"
