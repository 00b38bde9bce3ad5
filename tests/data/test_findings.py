import json

import pytest

from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoded import Storage
from nemoalign.data.encoder import SftSettings
from nemoalign.data.findings import Findings
from tests.data.tiny import CharTokenizer, write_jsonl

ROWS = [{"input": f"question {n}?", "output": "x" * (n + 1)} for n in range(6)]


def dataset(split, *paths, ahead_bytes=10**9):
    settings = SftSettings(max_seq_length=64)
    storage = Storage(ahead_bytes=ahead_bytes)
    return SftDataset([(p, 1) for p in paths], CharTokenizer(), settings, split, storage)


@pytest.fixture
def splits(tmp_path):
    train = dataset(
        "train",
        write_jsonl(tmp_path / "a.jsonl", ROWS[:4]),
        write_jsonl(tmp_path / "b.jsonl", [ROWS[5], ROWS[1], ROWS[1]]),
    )
    return train, dataset("validation", write_jsonl(tmp_path / "v.jsonl", ROWS[3:] + ROWS[3:4]))


def test_rows_measured_on_that_are_learned_too_are_counted_and_placed(splits):
    (overlap,) = Findings.of(*splits, None).overlaps
    assert (overlap.split, overlap.rows, overlap.of) == ("validation", 3, 4)
    assert overlap.first == ("v.jsonl line 1", "a.jsonl line 4")
    assert Findings.of(splits[0], None).overlaps == ()
    assert Findings.of(None, splits[1]).overlaps == ()


def test_rows_of_several_files_are_told_from_those_of_one(splits):
    report = Findings.of(*splits).reports[0]
    assert [file.duplicates for file in report.files] == [0, 1]
    assert report.repeated == 1


def test_every_oddity_is_a_sentence(splits):
    problems = Findings.of(*splits).problems()
    assert [problem[:40] for problem in problems] == [
        "1 row of the train data is in more than ",
        "3 of 4 rows of the validation data are t",
    ]


def test_text_that_a_template_wrote_is_counted_with_its_first_place(tmp_path):
    rows = [*ROWS, {"input": "x", "output": "y<end>"}, {"input": "<end>", "output": "z"}]
    findings = Findings.of(dataset("train", write_jsonl(tmp_path / "rows.jsonl", rows)))
    (problem,) = findings.problems()
    assert "2 rows whose text holds" in problem
    assert '"<end>" in rows.jsonl line 7' in problem


def test_the_document_is_json_and_its_lengths_add_up(splits):
    document = json.loads(json.dumps(Findings.of(*splits).document()))
    files = document["splits"][0]["files"]
    assert [file["rows"] for file in files] == [4, 3]
    assert [sum(rows for _, rows in file["lengths"]) for file in files] == [4, 3]
    assert [file["lengths"] for file in files] == [[[16, 4]], [[16, 2], [32, 1]]]
    assert document["overlaps"][0]["first"] == ["v.jsonl line 1", "a.jsonl line 4"]
    assert len(document["problems"]) == 2


def test_of_large_files_the_rows_read_ahead_are_compared(tmp_path):
    rows = [{"input": f"question {n}?", "output": "yes"} for n in range(1500)]
    train = dataset("train", write_jsonl(tmp_path / "t.jsonl", rows), ahead_bytes=1000)
    other = dataset("validation", write_jsonl(tmp_path / "v.jsonl", rows[7:9]))
    (overlap,) = Findings.of(train, other).overlaps
    assert (overlap.rows, overlap.first) == (2, ("v.jsonl line 1", "t.jsonl line 8"))
