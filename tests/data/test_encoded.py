import gzip
import json

import pytest

from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoded import Storage
from nemoalign.data.encoder import SftSettings
from tests.data.tiny import CharTokenizer, write_jsonl

ROWS = [{"input": f"question {n}?", "output": "x" * (n + 1)} for n in range(6)]


class Watched(CharTokenizer):
    """Counts the texts it is given."""

    texts = 0

    def encode_batch(self, texts):
        Watched.texts += len(list(texts))
        return super().encode_batch(texts)


@pytest.fixture
def tokenizer():
    Watched.texts = 0
    return Watched()


def samples(path, storage, tokenizer, **settings):
    chosen = SftSettings(**{"max_seq_length": 64, **settings})
    data = SftDataset([(path, 1)], tokenizer, chosen, storage=storage)
    return [(data[n].tokens.tolist(), data[n].loss_mask.tolist()) for n in range(len(data))]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_later_start_tokenizes_nothing(tmp_path, tokenizer, zipped):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    storage = Storage(index_directory=tmp_path / "index")
    first = samples(path, storage, tokenizer)
    seen, texts = Watched.texts, samples(path, Storage(), tokenizer)
    assert seen == 2 * len(ROWS)
    assert first == samples(path, storage, tokenizer) == texts
    assert Watched.texts == 2 * seen


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_length": 20},
        {"add_eos": False},
        {"prompt_template": "Q {input} A {output}"},
        {"mask": "none"},
        {"truncation_method": "left"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_decides_tokens_makes_another_index(tmp_path, tokenizer, change):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    storage = Storage(index_directory=tmp_path / "index")
    samples(path, storage, tokenizer)
    assert samples(path, storage, tokenizer, **change) == samples(
        path, Storage(), tokenizer, **change
    )


def test_another_tokenizer_makes_another_index(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    storage = Storage(index_directory=tmp_path / "index")
    samples(path, storage, tokenizer)
    seen = Watched.texts
    tokenizer.fingerprint = "of another"
    samples(path, storage, tokenizer)
    assert Watched.texts == 2 * seen


def test_rows_of_a_large_file_are_tokenized_once_for_length_and_ids(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS * 200)
    storage = Storage(index_directory=tmp_path / "index", ahead_bytes=100)
    data = SftDataset([(path, 1)], tokenizer, SftSettings(max_seq_length=64), storage=storage)
    seen = Watched.texts
    assert data.length(700) == len(data[700].tokens) - 1
    assert Watched.texts == seen + 2
    data = SftDataset([(path, 1)], tokenizer, SftSettings(max_seq_length=64), storage=storage)
    assert Watched.texts == seen + 2, "the sample is kept too"
    with path.open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    data = SftDataset([(path, 1)], tokenizer, SftSettings(max_seq_length=64), storage=storage)
    assert len(data) == 1201
