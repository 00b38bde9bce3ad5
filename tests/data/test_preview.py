from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoder import SftSettings
from nemoalign.data.preview import preview
from tests.data.tiny import CharTokenizer, write_jsonl

ROWS = [{"input": "a?", "output": "bcd"}, {"input": "e" * 40, "output": "f"}]


def shown(tmp_path, count, **settings):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    rows = SftDataset([(path, 1.0)], CharTokenizer(), SftSettings(add_eos=False, **settings))
    return list(preview(rows, CharTokenizer(), count))


def test_samples_are_shown_with_what_is_learned_between_brackets(tmp_path):
    assert shown(tmp_path, 1, max_seq_length=64) == [
        "rows.jsonl line 1: 5 tokens, 4 trained",
        "a?⟦ bcd⟧",
    ]


def test_no_more_are_shown_than_there_are_and_as_they_were_cut(tmp_path):
    lines = shown(tmp_path, 9, max_seq_length=12)
    assert lines[2:] == ["rows.jsonl line 2: 11 tokens, 2 trained", f"{'e' * 10}⟦ f⟧"]
    assert shown(tmp_path, 0, max_seq_length=64) == []
