from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoder import SftSettings
from nemoalign.data.preview import preview
from nemoalign.data.tokenizer import build_tokenizer
from tests.data.tiny import CharTokenizer, regions, save_hf_tokenizer, write_jsonl

ROWS = [{"input": "a?", "output": "bcd"}, {"input": "e" * 40, "output": "f"}]


def shown(tmp_path, count, *, rows=ROWS, tokenizer=None, **settings):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer = tokenizer or CharTokenizer()
    chosen = SftSettings(**{"add_eos": False, **settings})
    return list(preview(SftDataset([(path, 1.0)], tokenizer, chosen), tokenizer, count))


def test_samples_are_shown_in_parts_that_are_learned_or_only_read(tmp_path):
    assert shown(tmp_path, 1, max_seq_length=64) == [
        ("rows.jsonl line 1: 5 tokens, 4 trained", [("masked", "a?"), ("trained", " bcd")])
    ]


def test_no_more_are_shown_than_there_are(tmp_path):
    assert len(shown(tmp_path, 9, max_seq_length=64)) == 2
    assert shown(tmp_path, 0, max_seq_length=64) == []


def test_what_is_cut_from_a_prompt_is_shown_where_it_stood(tmp_path):
    rows = [{"input": "abcdefgh", "output": "xy"}]
    more = {"rows": rows, "max_seq_length": 9, "prompt_template": "Q {input}\nA {output}"}
    assert shown(tmp_path, 1, **more) == [
        (
            "rows.jsonl line 1: 8 tokens, 3 trained, 6 cut away",
            [
                ("masked", "Q ab"),
                ("truncated", "cdefgh"),
                ("masked", "\nA"),
                ("trained", " xy"),
            ],
        )
    ]
    ((_, left),) = shown(tmp_path, 1, **more, truncation_method="left")
    assert left[1:3] == [("truncated", " abcde"), ("masked", "fgh\nA")]
    assert left[0] == ("masked", "Q")


def test_an_answer_may_be_cut_too_and_an_end_token_stays(tmp_path):
    rows = [{"input": "ab", "output": "uvwxyz"}]
    more = {"rows": rows, "max_seq_length": 8, "truncation_field": "output", "add_eos": True}
    ((_, parts),) = shown(tmp_path, 1, **more)
    assert parts == [
        ("masked", "ab"),
        ("trained", " uvwx"),
        ("truncated", "yz"),
        ("trained", "<end>"),
    ]


def test_the_end_of_a_conversation_that_is_cut_is_shown(tmp_path):
    tokenizer = build_tokenizer(regions(save_hf_tokenizer(tmp_path)), {})
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    limits = {"rows": [{"messages": talk}], "tokenizer": tokenizer}
    ((_, whole),) = shown(tmp_path, 1, **limits, max_seq_length=256)
    ((title, cut),) = shown(
        tmp_path, 1, **limits, max_seq_length=len(tokenizer.encode(whole[0][1]))
    )
    assert [kind for kind, _ in cut] == ["masked", "trained", "truncated"]
    assert "".join(text for _, text in cut) == "".join(text for _, text in whole)
    assert title.endswith("cut away")


def test_control_characters_are_shown_and_not_obeyed(tmp_path):
    rows = [{"input": "a\x1b[31m\x11", "output": "b\tc"}]
    ((_, parts),) = shown(tmp_path, 1, rows=rows, max_seq_length=64)
    assert parts == [("masked", "a\\x1b[31m\\x11"), ("trained", " b\tc")]
